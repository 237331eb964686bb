// The log-log roofline: roofs of a machine, points under them.

import { plain } from "./plot.js";
import { bytes, flops, number, rate, time } from "./format.js";
import { colour } from "./theme.js";

const TERA = 1e12;
const SYMBOLS = { memory: "circle", compute: "diamond" };
const NAMED_SHARE = 0.02;  // of the time, from which on a point has its name beside it
const WIDE_PX = 520;  // from which on the roofs' names have room outside
const NAMES_PX = 152;

const hoverOf = (point) => [
  plain(point.name) + (point.precision ? ` · ${plain(point.precision)}` : ""),
  `${time(point.time_ms)}${point.share === undefined ? "" : `, ${number(point.share * 100)} % of the pass`}`,
  `${flops(point.flops)}, ${bytes(point.bytes)}`,
  point.bytes > 0 ? `${number(point.ai)} FLOP/byte, ${rate(point.rate)}` : "moves nothing of its own",
  `bound by ${plain(point.bottleneck)}`,
].join("<br>");

// Formats of the same peak share a roof.
function peaks(roofs) {
  const byPeak = new Map();
  for (const [precision, peak] of Object.entries(roofs.peak_tflop_s)) byPeak.set(peak, [...(byPeak.get(peak) ?? []), precision]);
  return [...byPeak].map(([peak, precisions]) => ({ peak: peak * TERA, precisions })).sort((a, b) => a.peak - b.peak);
}

// What the axes have to show, as [low, high] of FLOPs a byte and of FLOPs a second.
export function extent(roofs, points) {
  const bandwidth = roofs.bandwidth_gb_s * 1e9;
  const highest = Math.max(...Object.values(roofs.peak_tflop_s)) * TERA;
  const drawn = points.filter(({ ai, rate: reached }) => ai > 0 && reached > 0);
  const intensities = drawn.map(({ ai }) => ai);
  const low = Math.min(...intensities, 1) / 3;
  return {
    ai: [low, Math.max(...intensities, highest / bandwidth) * 8],
    rate: [Math.min(...drawn.map((point) => point.rate), low * bandwidth) / 2, highest * 3],
  };
}

export const union = (extents) => ({
  ai: [Math.min(...extents.map(({ ai }) => ai[0])), Math.max(...extents.map(({ ai }) => ai[1]))],
  rate: [Math.min(...extents.map((one) => one.rate[0])), Math.max(...extents.map((one) => one.rate[1]))],
});

function roofTraces(roofs, used, range) {
  const bandwidth = roofs.bandwidth_gb_s * 1e9;
  const [left, right] = range.ai;
  const lines = peaks(roofs);
  const highest = lines.at(-1).peak;
  const line = (x, y, strong) => ({
    x, y, mode: "lines", hoverinfo: "skip", meta: "roof",
    line: { color: colour(strong ? "ink-soft" : "line"), width: strong ? 1.6 : 1, dash: strong ? "solid" : "dot" },
  });
  const flat = lines.map(({ peak, precisions }) =>
    line([peak / bandwidth, right], [peak, peak], precisions.some((one) => used.has(one))));
  return [...flat, line([left, highest / bandwidth], [left * bandwidth, highest], true)];
}

// Names at the right end of each roof, outside where there is room; roofs closer than a line of text share one.
function roofNames(roofs, range, outside) {
  const close = Math.log10(range.rate[1] / range.rate[0]) / 24;
  const names = [];
  for (const { peak, precisions } of peaks(roofs)) {
    const last = names.at(-1);
    if (last && Math.log10(peak / last.peak) < close) last.precisions.push(...precisions);
    else names.push({ peak, precisions: [...precisions] });
  }
  const text = { showarrow: false, font: { size: 11, color: colour("ink-soft") } };
  const bandwidth = roofs.bandwidth_gb_s * 1e9;
  const at = range.ai[0] * (names.at(-1).peak / bandwidth / range.ai[0]) ** 0.75;  // three quarters up the slope
  const slope = {
    ...text, x: Math.log10(at), y: Math.log10(at * bandwidth), xanchor: "right", yanchor: "bottom", xshift: -4,
    text: `${bytes(bandwidth)}/s`,
  };
  return [slope, ...names.map(({ peak, precisions }) => ({
    ...text,
    x: Math.log10(range.ai[1]), y: Math.log10(peak),
    xanchor: outside ? "left" : "right", yanchor: outside ? "middle" : "bottom", xshift: outside ? 8 : 0,
    text: plain(`${precisions.join(", ")} · ${rate(peak)}`),
  }))];
}

// Points that would hide one another are named together, by the one that takes longest.
function clusters(points) {
  const found = [];
  for (const point of [...points].sort((a, b) => b.time_ms - a.time_ms)) {
    const near = found.find(([first]) =>
      Math.abs(Math.log10(point.ai / first.ai)) < 0.06 && Math.abs(Math.log10(point.rate / first.rate)) < 0.06);
    if (near) near.push(point);
    else found.push([point]);
  }
  return found;
}

function pointTrace(groups, shown) {
  const points = groups.flat();
  const names = new Map(groups.map(([first, ...others]) =>
    [first, others.length ? `${first.name} +${others.length}` : first.name]));
  const hover = new Map(groups.flatMap((group) => group.map((point) => [point,
    hoverOf(point) + (group.length > 1 ? `<br>here, too: ${plain(group.filter((one) => one !== point).map(({ name }) => name).join(", "))}` : "")])));
  return {
    x: points.map(({ ai }) => ai), y: points.map((point) => point.rate),
    text: points.map((point) => plain(names.get(point) && (point.share ?? 1) >= NAMED_SHARE ? names.get(point) : "")),
    customdata: points.map((point) => hover.get(point)), hovertemplate: "%{customdata}<extra></extra>",
    meta: "points", mode: "markers+text", textposition: "bottom right", textfont: { size: 11, color: colour("ink") }, cliponaxis: false,
    marker: {
      color: colour(shown.colour), opacity: 0.85, line: { width: 1, color: colour("surface") },
      size: points.map(({ share }) => 8 + 16 * Math.sqrt(share ?? 0.02)),
      symbol: points.map(({ bottleneck }) => SYMBOLS[bottleneck] ?? "circle"),
    },
  };
}

// Without FLOPs or without bytes there is no place on log axes: such points sit at the edge that they tend to.
function edgeTrace(points, range, shown) {
  return {
    x: points.map(({ flops: some }) => (some > 0 ? range.ai[1] : range.ai[0])),
    y: points.map((point) => (point.rate > 0 ? point.rate : range.rate[0])),
    customdata: points.map(hoverOf), hovertemplate: "%{customdata}<extra></extra>", meta: "edge", mode: "markers", cliponaxis: false,
    marker: { color: colour(shown.colour), size: 9, symbol: points.map(({ flops: some }) => (some > 0 ? "triangle-right-open" : "triangle-left-open")) },
  };
}

function totalTrace(total, shown) {
  return {
    x: [total.ai], y: [total.rate], customdata: [hoverOf(total)], hovertemplate: "%{customdata}<extra></extra>", meta: "total", mode: "markers",
    marker: { symbol: "star", size: 15, color: colour("surface"), line: { width: 1.8, color: colour(shown.colour) } },
  };
}

// A point's rate is FLOPs over its time. shown: {colour: a property of style.css, total?: a point}.
export function roofline(roofs, points, range, shown, width) {
  const outside = width >= WIDE_PX;
  const placed = points.filter(({ ai, rate: reached }) => ai > 0 && reached > 0);
  const edge = points.filter((point) => !placed.includes(point));
  const used = new Set(points.map(({ computed_in, precision }) => computed_in ?? precision));
  const traces = [...roofTraces(roofs, used, range), pointTrace(clusters(placed), shown)];
  if (edge.length) traces.push(edgeTrace(edge, range, shown));
  if (shown.total) traces.push(totalTrace(shown.total, shown));
  const log = ([low, high]) => [Math.log10(low), Math.log10(high)];
  return {
    traces,
    layout: {
      xaxis: { type: "log", range: log(range.ai), title: "FLOP/byte" },
      yaxis: { type: "log", range: log(range.rate), title: "FLOP/s" },
      annotations: roofNames(roofs, range, outside), margin: { l: 8, r: outside ? NAMES_PX : 12, t: 12, b: 8 },
    },
  };
}
