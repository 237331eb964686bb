// The recommendation of a set-up as a card: what to run with, what it gives, and why.

import { el } from "./dom.js";
import { bytes, number, percent, time, times } from "./format.js";
import { details, table } from "./table.js";

const fact = (title, text) => el("div", {}, el("dt", {}, title), el("dd", {}, text));

const CANDIDATE_COLUMNS = [
  { title: "Strategy", text: (one) => one.strategy_name, key: (one) => one.strategy_name },
  { title: "Time", text: (one) => time(one.time_ms), key: (one) => one.time_ms, numeric: true },
  { title: "Speed-up", text: (one) => times(one.speedup), key: (one) => one.speedup, numeric: true },
  { title: "Saved", text: (one) => percent(one.memory_saving), key: (one) => one.memory_saving, numeric: true },
  { title: "Loss quoted", text: (one) => `≤ ${number(one.quoted_loss_pct)} %`, key: (one) => one.quoted_loss_pct, numeric: true },
  { title: "Admitted", text: (one) => (one.admitted ? "yes" : "no"), key: (one) => String(one.admitted) },
];

const FORMAT_COLUMNS = [
  { title: "Operator", text: ([operator]) => operator },
  { title: "Format", text: ([, precision]) => precision },
];

// use(name): what the card's button does.
export function showRecommendation(pane, answer, use) {
  const button = el("button", { type: "button", class: "quiet" }, `Use ${answer.strategy_name}`);
  button.addEventListener("click", () => use(answer.strategy_name));
  pane.replaceChildren(...[
    el("p", { class: "verdict" }, el("strong", {}, answer.strategy_name),
      ` ${times(answer.predicted_speedup)} as fast as fp16_baseline`),
    answer.meets_min_speedup ? null : el("p", { class: "problem" }, "Below the least speed-up that was asked for."),
    el("dl", { class: "facts" },
      fact("Time", time(answer.predicted_time_ms)),
      fact("In fp16_baseline", time(answer.baseline_time_ms)),
      fact("Memory saved", percent(answer.memory_saving)),
      fact("Attention", answer.attention),
      fact("K and V", bytes(answer.kv_cache_bytes)),
      fact("Loss quoted", `≤ ${number(answer.quoted_loss_pct)} %`),
      fact("Bound by", answer.bottleneck)),
    el("ul", { class: "reasons" }, ...answer.reasons.map((reason) => el("li", {}, reason))),
    button,
    details(pane, "Strategies weighed", { openIfWide: true }, table("Strategies weighed", CANDIDATE_COLUMNS, answer.candidates)),
    details(pane, "Format of each operator", {},
      table("Format of each operator", FORMAT_COLUMNS, Object.entries(answer.precisions.operators))),
  ].filter(Boolean));
}
