// One layer's attention by every kernel that does it: bars that are a table.

import { el } from "./dom.js";
import { percent, time, times } from "./format.js";
import { details, table } from "./table.js";

function bar(one, longest) {
  const fill = el("span", { class: "fill" });
  fill.style.width = `${(100 * one.time_ms) / longest}%`;
  return el("span", { class: "bar-cell" }, el("span", { class: "track", "aria-hidden": "true" }, fill), el("span", {}, time(one.time_ms)));
}

export function showAttention(pane, kernels) {
  const longest = Math.max(...kernels.map(({ time_ms }) => time_ms));
  const columns = [
    { title: "Kernel", text: (one) => one.kernel, key: (one) => one.kernel },
    { title: "Format", text: (one) => one.precision, key: (one) => one.precision },
    { title: "Time", text: (one) => bar(one, longest), key: (one) => one.time_ms },
    { title: "Over FA1", text: (one) => times(one.speedup), key: (one) => one.speedup, numeric: true },
    { title: "Bound by", text: (one) => one.bound, key: (one) => one.bound },
    { title: "Of the peak", text: (one) => percent(one.compute_efficiency), key: (one) => one.compute_efficiency, numeric: true },
  ];
  const sources = kernels.map((one) => el("li", {}, `${one.kernel}, ${one.precision}: ${one.source}`));
  pane.replaceChildren(table("Attention by kernel and format", columns, kernels),
    details(pane, "Sources of the shares of the peak", {}, el("ul", { class: "reasons" }, ...sources)));
}
