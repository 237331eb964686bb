// The view of measured records: a results file laid over its predictions.

import { Latest, postText } from "./api.js";
import { $, announce, el } from "./dom.js";
import { number, percent, rate, time } from "./format.js";
import { draw, logSpan, plain } from "./plot.js";
import { clearProblems, showProblems } from "./problems.js";
import { details, table } from "./table.js";
import { colour } from "./theme.js";

const LARGEST_BYTES = 1 << 20;

const COLUMNS = [
  { title: "Record", text: (one) => one.label, key: (one) => one.label },
  { title: "Benchmark", text: (one) => one.benchmark, key: (one) => one.benchmark },
  { title: "Measured", text: (one) => time(one.measured_ms), key: (one) => one.measured_ms, numeric: true },
  { title: "Predicted", text: (one) => time(one.predicted_ms), key: (one) => one.predicted_ms, numeric: true },
  { title: "Error", text: (one) => percent(one.error), key: (one) => one.error, numeric: true },
  { title: "Shortest", text: (one) => time(one.shortest_ms), key: (one) => one.shortest_ms, numeric: true },
  { title: "FLOP/byte", text: (one) => number(one.ai), key: (one) => one.ai, numeric: true },
  { title: "Rate", text: (one) => rate(one.achieved_flops), key: (one) => one.achieved_flops, numeric: true },
  { title: "Roof", text: (one) => (one.above_roof ? "above: roof or record is wrong" : "kept"), key: (one) => String(one.above_roof) },
];

const hoverOf = (one) => [
  plain(one.label), `measured ${time(one.measured_ms)}`, `predicted ${time(one.predicted_ms)}, ${percent(one.error)}`,
  `${number(one.ai)} FLOP/byte, ${rate(one.achieved_flops)}`,
].join("<br>");

// A record's rate had it taken another time.
const rateAt = (one, time_ms) => (one.achieved_flops * one.measured_ms) / time_ms;

function marks(records, name, y, marker) {
  return {
    x: records.map(({ ai }) => ai), y: records.map(y), name, mode: "markers", marker,
    customdata: records.map(hoverOf), hovertemplate: "%{customdata}<extra></extra>", meta: name,
  };
}

function rates(records) {
  const shown = records.filter(({ ai, achieved_flops }) => ai > 0 && achieved_flops > 0);
  const roof = { symbol: "line-ew-open", size: 16, color: colour("ink-soft"), line: { width: 2, color: colour("ink-soft") } };
  const predicted = { symbol: "circle-open", size: 11, color: colour("setup-b"), line: { width: 2 } };
  return {
    traces: [
      marks(shown, "roof", (one) => rateAt(one, one.shortest_ms), roof),
      marks(shown, "predicted", (one) => rateAt(one, one.predicted_ms), predicted),
      marks(shown, "measured", (one) => one.achieved_flops, { symbol: "circle", size: 8, color: colour("setup-a") }),
    ],
    layout: {
      xaxis: { type: "log", title: "FLOP/byte", range: logSpan(shown.map(({ ai }) => ai)) },
      yaxis: { type: "log", title: "FLOP/s", range: logSpan(shown.flatMap((one) => [one.achieved_flops, rateAt(one, one.shortest_ms)])) },
      showlegend: true,
    },
  };
}

function scatter(records) {
  const all = records.flatMap(({ measured_ms, predicted_ms }) => [measured_ms, predicted_ms]);
  const ends = [Math.min(...all) / 2, Math.max(...all) * 2];
  const exact = { x: ends, y: ends, mode: "lines", hoverinfo: "skip", line: { color: colour("line"), width: 1.5 } };
  const points = {
    x: records.map(({ measured_ms }) => measured_ms), y: records.map(({ predicted_ms }) => predicted_ms), mode: "markers", meta: "records",
    marker: { size: 9, color: colour("setup-a"), symbol: records.map(({ above_roof }) => (above_roof ? "x" : "circle")) },
    customdata: records.map(hoverOf), hovertemplate: "%{customdata}<extra></extra>",
  };
  const axis = { type: "log", range: logSpan(all) };
  return { traces: [exact, points], layout: { xaxis: { ...axis, title: "Measured, ms" }, yaxis: { ...axis, title: "Predicted, ms" } } };
}

export class MeasuredView {
  constructor() {
    this.requests = new Latest();
    this.answer = null;
    this.input = $("#m-file");
    this.input.addEventListener("change", () => this.take(this.input.files[0]));
    const drop = $("#m-drop");
    drop.addEventListener("dragover", (event) => event.preventDefault());
    drop.addEventListener("drop", (event) => {
      event.preventDefault();
      this.take(event.dataTransfer.files[0]);
    });
  }

  refresh() {
    if (this.answer) this.show();
  }

  take(file) {
    if (file) this.requests.run((signal) => this.ask(file, signal));
  }

  async ask(file, signal) {
    const problem = $("#m-problem");
    clearProblems([this.input]);
    problem.hidden = true;
    try {
      if (file.size > LARGEST_BYTES) throw new Error(`${file.name} has ${file.size} bytes, more than the 1 MiB that is taken.`);
      const answer = await postText("validate", await file.text(), signal);
      if (signal.aborted) return;
      this.answer = { ...answer, file: file.name };
      this.show();
    } catch (error) {
      if (signal.aborted) return;
      this.answer = null;
      $("#m-results").hidden = true;
      $("#m-tiles").replaceChildren();
      showProblems(error, () => this.input, problem);
    }
  }

  show() {
    const { records, skipped, median_absolute_error, machine, file } = this.answer;
    const above = records.filter(({ above_roof }) => above_roof).length;
    const tile = (title, text) => el("div", {}, el("dt", {}, title), el("dd", {}, text));
    $("#m-tiles").replaceChildren(
      tile("File", file), tile("Predicted from", machine ? `calibration of ${machine}` : "each record's own limits"),
      tile("Records", String(records.length)), tile("Skipped", String(skipped.length)),
      tile("Median error, absolute", median_absolute_error === null ? "–" : percent(median_absolute_error)),
      tile("Above their roof", String(above)));
    $("#m-results").hidden = false;
    $("#m-table").replaceChildren(table("Records beside their predictions", COLUMNS, records),
      skipped.length ? details($("#m-table"), `Skipped lines: ${skipped.length}`, {}, el("ul", { class: "reasons" },
        ...skipped.map(({ line, reason }) => el("li", {}, `Line ${line}: ${reason}`)))) : "");
    draw($("#m-roofline"), "Measured and predicted rates; the table below has the figures", () => rates(records));
    draw($("#m-scatter"), "Predicted over measured times; the table below has the figures", () => scatter(records));
    announce(`${file}: ${records.length} records, median absolute error ${percent(median_absolute_error)}.`);
  }
}
