// The view of a model: one set-up, or two side by side.

import { Latest, post } from "./api.js";
import { showAttention } from "./attention_section.js";
import { $, $$, announce, el } from "./dom.js";
import { bytes, entered, flops, number, perSecond, percent, time, times } from "./format.js";
import { contextsFor, showKv } from "./kv_section.js";
import { draw } from "./plot.js";
import { clearProblems, showProblems } from "./problems.js";
import { showRecommendation } from "./recommend.js";
import { extent, roofline, union } from "./roofline_chart.js";
import { SetUp } from "./setup.js";
import { details, table } from "./table.js";

const PAUSE_MS = 180;
const SECTIONS = ["roofline", "recommend", "kv", "attention"];
const SHARED_FIELDS = {
  max_quality_loss_pct: "loss", min_speedup: "speedup", allow_storage_only: "storage",
  recent_window: "window", kept_share: "kept", efficiencies: "efficiencies",
};

const OPERATOR_COLUMNS = [
  { title: "Operator", text: (one) => one.name, key: (one) => one.name },
  { title: "Format", text: (one) => (one.storage_only ? `${one.precision}, stored only` : one.precision), key: (one) => one.precision },
  { title: "Time", text: (one) => time(one.time_ms), key: (one) => one.time_ms, numeric: true },
  { title: "Share", text: (one) => percent(one.share), key: (one) => one.share, numeric: true },
  { title: "FLOPs", text: (one) => flops(one.flops), key: (one) => one.flops, numeric: true },
  { title: "Bytes", text: (one) => bytes(one.bytes), key: (one) => one.bytes, numeric: true },
  { title: "FLOP/byte", text: (one) => number(one.ai), key: (one) => one.ai, numeric: true },
  { title: "Bound by", text: (one) => one.bottleneck, key: (one) => one.bottleneck },
];

// [title, figure of an answer, its text, whether a ratio says something]
const TILES = [
  ["Time of a pass", ({ total }) => total.time_ms, time],
  ["Tokens", ({ tokens_per_s }) => tokens_per_s, perSecond],
  ["Time if overlapped", ({ total }) => total.shortest_ms, time],
  ["Bound by", ({ total }) => total.bottleneck, String],
  ["Weights", ({ weight_bytes }) => weight_bytes, bytes],
  ["K and V", ({ kv_cache_bytes }) => kv_cache_bytes, bytes],
  ["Fit the memory", ({ fits_memory }) => fits_memory, (fits) => (fits ? "yes" : "no")],
  ["Moved", ({ total }) => total.bytes, bytes],
  ["Computed", ({ total }) => total.flops, flops],
  ["FLOPs a byte", ({ total }) => total.ai, number],
];

const pointOf = (one, total_ms) => ({
  ...one, rate: one.time_ms > 0 ? (1e3 * one.flops) / one.time_ms : 0, share: total_ms > 0 ? one.time_ms / total_ms : 0,
});

export class ModelView {
  constructor(catalogue, { changed }) {
    this.catalogue = catalogue;
    this.changed = changed;  // what to call after the view itself has changed a control
    this.answers = new Map();  // letter: the latest answer
    this.requests = new Map();
    this.setups = new Map();
    for (const letter of ["a", "b"]) {
      const setup = new SetUp(letter, catalogue);
      this.setups.set(letter, setup);
      this.requests.set(letter, new Latest());
      $("#setups").append(setup.form);
      for (const section of SECTIONS)
        $(`[data-panes=${section}]`).append(el("div", { class: "pane", "data-pane": letter }));
      this.watchModel(setup);
    }
  }

  watchModel(setup) {
    const select = setup.control("model");
    let before = select.value;
    select.addEventListener("focus", () => { before = select.value; });
    select.addEventListener("change", () => {
      if (setup.ownSizes()) setup.takeSizes(before);
      before = select.value;
    });
  }

  pane(section, letter) {
    return $(`[data-panes=${section}] [data-pane=${letter}]`);
  }

  comparing() {
    return $("#compare").checked;
  }

  shown() {
    return this.comparing() ? ["a", "b"] : ["a"];
  }

  // After a control has changed; without one, everything is asked again.
  refresh(control, typing = false) {
    const name = control?.name ?? "";
    if (name === "compare" && this.comparing()) this.setups.get("b").copyFrom(this.setups.get("a"));
    for (const setup of this.setups.values()) setup.settle();
    this.layOut();
    const only = /^[ab]\./.test(name) ? [name[0]] : this.shown();
    for (const letter of only) this.requests.get(letter).run((signal) => this.ask(letter, signal), typing ? PAUSE_MS : 0);
  }

  layOut() {
    const comparing = this.comparing();
    $("#view-model").classList.toggle("comparing", comparing);
    this.setups.get("b").form.hidden = !comparing;
    for (const pane of $$("[data-pane=b]")) pane.hidden = !comparing;
    if (!comparing) this.answers.delete("b");
  }

  questions(setup, contexts) {
    const work = setup.workload();
    const { phase, seq_len, batch } = work;
    const option = (id) => entered($(`#${id}`).value);
    const known = this.catalogue.options.precisions;
    return {
      predict: { ...work, strategy: setup.value("fmt") },
      recommend: { ...work, max_quality_loss_pct: option("loss"), min_speedup: option("speedup"), allow_storage_only: $("#storage").checked },
      kv: { ...setup.model(), batch, contexts, precisions: known, recent_window: option("window") },
      attention: {
        ...setup.machine(), ...setup.heads(), batch, kv_len: seq_len, query_tokens: phase === "decode" ? 1 : seq_len,
        kept_share: option("kept"), efficiencies: $("#efficiencies").value,
      },
    };
  }

  async ask(letter, signal) {
    const setup = this.setups.get(letter);
    const context = entered(setup.value("ctx"));
    const contexts = contextsFor(context);
    setup.form.setAttribute("aria-busy", "true");
    const questions = Object.entries(this.questions(setup, contexts));
    const answers = await Promise.allSettled(questions.map(([path, question]) => post(path, question, signal)));
    if (signal.aborted) return;
    setup.form.removeAttribute("aria-busy");
    clearProblems([...setup.controls(), ...Object.values(SHARED_FIELDS).map((id) => document.getElementById(id))]);
    setup.problem.hidden = true;
    const refused = answers.filter(({ status }) => status === "rejected");
    for (const { reason } of refused) this.refuse(setup, reason);
    $("#view-model").classList.toggle("stale", refused.length > 0);
    if (refused.length) return;
    const [predicted, recommended, kv, attention] = answers.map(({ value }) => value);
    this.answers.set(letter, this.complete(setup, predicted));
    this.showPrediction(letter);
    showRecommendation(this.pane("recommend", letter), recommended, (strategy) => this.use(letter, strategy));
    showKv(this.pane("kv", letter), kv, contexts, context);
    showAttention(this.pane("attention", letter), attention.kernels);
  }

  refuse(setup, error) {
    const shared = (key) => document.getElementById(SHARED_FIELDS[key]);
    showProblems(error, (key) => setup.find(key) ?? shared(key), setup.problem);
  }

  use(letter, strategy) {
    const control = this.setups.get(letter).control("fmt");
    control.value = strategy;
    this.changed(control);
  }

  complete(setup, answer) {
    const { seq_len, batch, phase } = setup.workload();
    const tokens = batch * (phase === "decode" ? 1 : seq_len);
    const total = pointOf({ ...answer.total, name: "whole pass" }, answer.total.time_ms);
    return {
      ...answer, total, tokens_per_s: (1e3 * tokens) / total.time_ms, where: `${setup.value("hw")}, ${setup.value("model")}`,
      points: answer.operators.map((one) => pointOf(one, total.time_ms)),
    };
  }

  showPrediction(letter) {
    const { total, where } = this.answers.get(letter);
    this.showTiles();
    for (const one of this.shown()) this.showRoofline(one);
    announce(`Set-up ${letter.toUpperCase()}, ${where}: ${time(total.time_ms)}, bound by ${total.bottleneck}.`);
  }

  showTiles() {
    const answers = this.shown().map((letter) => [letter, this.answers.get(letter)]).filter(([, answer]) => answer);
    $("#tiles").replaceChildren(...TILES.map(([title, figure, text]) => {
      const values = answers.map(([letter, answer]) => el("dd", { "data-of": letter }, text(figure(answer))));
      const [a, b] = answers.map(([, answer]) => figure(answer));
      const ratio = typeof a === "number" && b > 0 ? el("dd", { class: "ratio" }, `A is ${times(a / b)} B`) : null;
      return el("div", {}, el("dt", {}, title), ...values, ratio);
    }));
  }

  // Both on the same axes, so that the eye can compare them.
  showRoofline(letter) {
    const answer = this.answers.get(letter);
    if (!answer) return;
    const pane = this.pane("roofline", letter);
    const plot = $(".chart", pane) ?? el("div", { class: "chart tall" });
    const every = this.shown().map((one) => this.answers.get(one)).filter(Boolean);
    const range = union(every.map((one) => extent(one.roofs, one.points)));
    const operators = table(`Operators of set-up ${letter.toUpperCase()}`, OPERATOR_COLUMNS, answer.points);
    pane.replaceChildren(plot, details(pane, "The operators as a table", { openIfWide: true }, operators));
    const label = `Roofline of set-up ${letter.toUpperCase()}: ${answer.points.length} operators; the table below has the figures`;
    const shown = { colour: `setup-${letter}`, total: answer.total };
    draw(plot, label, (width) => roofline(answer.roofs, answer.points, range, shown, width));
  }
}
