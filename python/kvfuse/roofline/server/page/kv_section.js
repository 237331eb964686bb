// K and V over the context, by format, against the weights.

import { el } from "./dom.js";
import { bytes, tokens } from "./format.js";
import { draw, logSpan, plain } from "./plot.js";
import { details, table } from "./table.js";
import { colour } from "./theme.js";

const FIRST_CONTEXT = 256;
const LAST_CONTEXT = 262144;
const MOST_CONTEXTS = 24;
const NAMES_PX = 84;
const CLOSE = 1.3;  // ratio of sizes whose names would overlap

// Powers of two, as far as the context asked about needs.
export function contextsFor(context) {
  const last = Math.max(LAST_CONTEXT, Number.isFinite(context) ? context : 0);
  const found = [];
  for (let length = FIRST_CONTEXT; length <= last && found.length < MOST_CONTEXTS; length *= 2) found.push(length);
  return found;
}

// Formats of the same size share a line.
function lines({ curves, crossover_tokens }) {
  const bySize = new Map();
  for (const { precision, bytes: sizes } of curves) {
    const known = bySize.get(sizes.join());
    if (known) known.name += `, ${precision}`;
    else bySize.set(sizes.join(), { name: precision, sizes, crossover: crossover_tokens[precision] });
  }
  return [...bySize.values()].sort((a, b) => b.sizes[0] - a.sizes[0]);
}

function curveTraces(found, contexts) {
  const shades = ["line-1", "line-2", "line-3", "line-4", "line-5", "line-6"];
  return found.map(({ name, sizes }, index) => ({
    x: contexts, y: sizes, mode: "lines", line: { width: 2, color: colour(shades[index % shades.length]) },
    customdata: sizes.map((size, at) => `${plain(name)}<br>${tokens(contexts[at])} tokens: ${bytes(size)}`),
    hovertemplate: "%{customdata}<extra></extra>",
  }));
}

// Names at the right end of the lines; lines closer than a line of text share one.
function lineNames(found, last) {
  const names = [];
  for (const { name, sizes } of found) {
    const size = sizes.at(-1);
    const before = names.at(-1);
    if (before && before.size / size < CLOSE) before.name += `, ${name}`;
    else names.push({ name, size });
  }
  return names.map(({ name, size }) => ({
    x: Math.log10(last), y: Math.log10(size), text: plain(name), xanchor: "left", xshift: 6, showarrow: false, font: { size: 11 },
  }));
}

const shortLength = (length) => (length < 1024 ? String(length) : `${length / 1024}K`);

function chart(answer, contexts, context) {
  const found = lines(answer);
  const first = contexts[0];
  const last = contexts.at(-1);
  const inside = found.filter(({ crossover }) => crossover >= first && crossover <= last);
  const weights = {
    x: [first, last], y: [answer.weight_bytes, answer.weight_bytes], mode: "lines",
    line: { width: 1.6, dash: "dash", color: colour("ink-soft") }, hovertemplate: `weights in 16 bits: ${bytes(answer.weight_bytes)}<extra></extra>`,
  };
  const crossings = {
    x: inside.map(({ crossover }) => crossover), y: inside.map(({ sizes, crossover }) => (sizes.at(-1) * crossover) / last),
    mode: "markers", meta: "crossover", marker: { symbol: "x", size: 9, color: colour("ink") },
    customdata: inside.map(({ name, crossover }) => `${plain(name)}: as large as the weights<br>at ${tokens(crossover)} tokens`),
    hovertemplate: "%{customdata}<extra></extra>",
  };
  const labelled = contexts.filter((_, index) => index % 2 === 0);
  const weightsName = {
    x: Math.log10(first), y: Math.log10(answer.weight_bytes), text: "weights in 16 bits",
    xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: 11 },
  };
  const chosen = Number.isFinite(context) && context >= first && context <= last;
  const here = { type: "line", x0: context, x1: context, y0: 0, y1: 1, yref: "paper", line: { width: 1, dash: "dot", color: colour("ink-soft") } };
  return {
    traces: [...curveTraces(found, contexts), weights, crossings],
    layout: {
      xaxis: { type: "log", title: "Context, tokens", range: [Math.log10(first), Math.log10(last)], tickvals: labelled, ticktext: labelled.map(shortLength) },
      yaxis: { type: "log", title: "Bytes", range: logSpan([...found.flatMap(({ sizes }) => sizes), answer.weight_bytes]) },
      margin: { l: 8, r: NAMES_PX, t: 12, b: 8 },
      annotations: [...lineNames(found, last), weightsName], shapes: chosen ? [here] : [],
    },
  };
}

function sizesTable(answer, contexts) {
  const found = lines(answer);
  const columns = [
    { title: "Context", text: (index) => tokens(contexts[index]) },
    ...found.map(({ name, sizes }) => ({ title: name, text: (index) => bytes(sizes[index]), numeric: true })),
  ];
  return table("K and V by context and format", columns, contexts.map((_, index) => index));
}

export function showKv(pane, answer, contexts, context) {
  const found = lines(answer);
  const plot = pane.querySelector(".chart") ?? el("div", { class: "chart" });
  const crossovers = found.map(({ name, crossover }) => `${name} ${tokens(crossover)}`).join("; ");
  pane.replaceChildren(plot,
    el("p", { class: "hint crossover" },
      `K and V outweigh the weights in 16 bits (${bytes(answer.weight_bytes)}) from so many tokens of context on: ${crossovers}.`),
    details(pane, "As a table", {}, sizesTable(answer, contexts)));
  draw(plot, "K and V over the context, by format; the table below has the figures", () => chart(answer, contexts, context));
}
