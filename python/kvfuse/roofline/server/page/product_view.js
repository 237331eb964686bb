// The view of a matrix product: one, and a sweep over shapes and formats.

import { Latest, post } from "./api.js";
import { $, $$, announce, el, fillSelect } from "./dom.js";
import { bytes, entered, flops, number, rate, time } from "./format.js";
import { draw } from "./plot.js";
import { clearProblems, showProblems } from "./problems.js";
import { extent, roofline } from "./roofline_chart.js";
import { fillProfiles, hardwareOptions } from "./setup.js";
import { table } from "./table.js";

const PAUSE_MS = 180;
const SWEPT_AT_FIRST = ["fp16", "fp8", "nvfp4"];
const IDS = { hardware: "p-hardware", profile: "p-profile", precision: "p-precision", M: "p-m", N: "p-n", K: "p-k", measure: "p-measure" };
const SWEEP_IDS = { hardware: "p-hardware", profile: "p-profile", shapes: "s-shapes", precisions: "s-formats" };

const ms = (us) => us / 1e3;
const shapeOf = (row) => `${row.M} × ${row.N} × ${row.K}`;

const COLUMNS = [
  { title: "M × N × K", text: shapeOf, key: (row) => row.M * row.N * row.K },
  { title: "Format", text: (row) => row.precision, key: (row) => row.precision },
  { title: "Predicted", text: (row) => time(ms(row.theory.predicted_time_us)), key: (row) => row.theory.predicted_time_us, numeric: true },
  { title: "Rate", text: (row) => rate(rateOf(row.theory)), key: (row) => rateOf(row.theory), numeric: true },
  { title: "FLOPs", text: (row) => flops(row.theory.flops), key: (row) => row.theory.flops, numeric: true },
  { title: "Bytes", text: (row) => bytes(row.theory.bytes), key: (row) => row.theory.bytes, numeric: true },
  { title: "FLOP/byte", text: (row) => number(row.theory.ai), key: (row) => row.theory.ai, numeric: true },
  { title: "Bound by", text: (row) => row.theory.bottleneck, key: (row) => row.theory.bottleneck },
];

const rateOf = (theory) => (1e6 * theory.flops) / theory.predicted_time_us;

const pointOf = (row) => ({
  ...row.theory, name: shapeOf(row), precision: row.precision, rate: rateOf(row.theory), time_ms: ms(row.theory.predicted_time_us), share: 0,
});

// The roofs that the answers were made with: those of the formats that they compute in.
function roofsOf(answers) {
  const [{ theory: first }] = answers;
  const peaks = answers.map(({ theory }) => [theory.computed_in, theory.flops / theory.compute_time_us / 1e6]);
  return { bandwidth_gb_s: first.bytes / first.memory_time_us / 1e3, peak_tflop_s: Object.fromEntries(peaks) };
}

function shapesOf(text) {
  return text.split("\n").map((line) => line.trim().split(/[\s,×x]+/)).filter(([first]) => first)
    .map(([M, N, K]) => ({ M: entered(M), N: entered(N ?? ""), K: entered(K ?? "") }));
}

export class ProductView {
  constructor(catalogue) {
    this.catalogue = catalogue;
    this.requests = { one: new Latest(), sweep: new Latest() };
    this.rows = [];
    this.one = null;
    const { precisions } = catalogue.options;
    fillSelect($("#p-hardware"), hardwareOptions(catalogue));
    $("#p-measure").closest(".check").hidden = !catalogue.options.measuring;
    fillSelect($("#p-precision"), [{ options: precisions.map((name) => ({ value: name, text: name })) }]);
    for (const name of precisions) {
      const id = `s-${name}`;
      const box = el("input", { type: "checkbox", id, name: `s.${name}`, value: name, checked: SWEPT_AT_FIRST.includes(name) });
      $("#s-formats").append(el("span", { class: "check" }, box, el("label", { for: id }, name)));
    }
    this.settle();
  }

  settle() {
    fillProfiles($("#p-profile"), this.catalogue, $("#p-hardware").value);
  }

  refresh(control, typing = false) {
    this.settle();
    const pause = typing ? PAUSE_MS : 0;
    const name = control?.name ?? "";
    const shared = ["", "p.hw", "p.fig"].includes(name);
    if (shared || name.startsWith("p.")) this.requests.one.run((signal) => this.askOne(signal), pause);
    if (shared || name.startsWith("s.")) this.requests.sweep.run((signal) => this.askSweep(signal), pause);
  }

  machine() {
    return { hardware: $("#p-hardware").value, profile: $("#p-profile").value };
  }

  async ask(path, question, ids, problem, signal) {
    const find = (key) => document.getElementById(ids[key]);
    try {
      const answer = await post(path, question, signal);
      clearProblems(Object.keys(ids).map(find));
      problem.hidden = true;
      return answer;
    } catch (error) {
      if (signal.aborted) throw error;
      clearProblems(Object.keys(ids).map(find));
      problem.hidden = true;
      showProblems(error, find, problem);
      return null;
    }
  }

  async askOne(signal) {
    const [M, N, K] = ["#p-m", "#p-n", "#p-k"].map((id) => entered($(id).value));
    const measure = this.catalogue.options.measuring && $("#p-measure").checked;
    const question = { ...this.machine(), M, N, K, precision: $("#p-precision").value, measure };
    const answer = await this.ask("analyze", question, IDS, $("#p-problem"), signal);
    if (!answer || signal.aborted) return;
    this.one = { ...question, ...answer };
    this.showTiles();
    this.showChart();
    announce(`Predicted ${time(ms(answer.theory.predicted_time_us))}, bound by ${answer.theory.bottleneck}.`);
  }

  async askSweep(signal) {
    const precisions = $$("#s-formats input:checked").map(({ value }) => value);
    const question = { ...this.machine(), shapes: shapesOf($("#s-shapes").value), precisions, measure: false };
    const answer = await this.ask("sweep", question, SWEEP_IDS, $("#s-problem"), signal);
    if (!answer || signal.aborted) return;
    this.rows = answer.results;
    $("#s-table").replaceChildren(table("Rows of the sweep", COLUMNS, this.rows));
    this.showChart();
  }

  showTiles() {
    const { theory, measurement, efficiency } = this.one;
    const tile = (title, text) => el("div", {}, el("dt", {}, title), el("dd", {}, text));
    const measured = measurement ? [
      tile(measurement.emulated ? "Measured, emulated" : "Measured", time(ms(measurement.measured_time_us))),
      tile("Measured rate", rate(1e12 * measurement.measured_tflops)),
      tile("Predicted : measured", number(efficiency)),
    ] : [];
    $("#p-tiles").replaceChildren(
      tile("Predicted", time(ms(theory.predicted_time_us))), tile("Bound by", theory.bottleneck), tile("Rate", rate(rateOf(theory))),
      tile("FLOPs a byte", number(theory.ai)), tile("Ridge, FLOPs a byte", number(theory.critical_ai)),
      tile("Computed", flops(theory.flops)), tile("Moved", bytes(theory.bytes)), ...measured);
  }

  showChart() {
    if (!this.one) return;
    const roofs = roofsOf([this.one, ...this.rows]);
    const points = this.rows.map(pointOf);
    const total = { ...pointOf(this.one), share: undefined };
    draw($("#p-chart"), "Roofline of the product and the sweep; the table below has the figures",
      (width) => roofline(roofs, points, extent(roofs, [...points, total]), { colour: "setup-a", total }, width));
  }
}
