// Tables: the other way to read a chart. Columns sort by their headers.

import { el } from "./dom.js";

function sortBy(body, rows, column, descending) {
  const order = [...rows].sort((a, b) => {
    const [x, y] = [column.key(a.record), column.key(b.record)];
    const difference = typeof x === "number" ? x - y : String(x).localeCompare(String(y));
    return descending ? -difference : difference;
  });
  body.replaceChildren(...order.map(({ row }) => row));
}

function header(column, sort) {
  if (!column.key) return el("th", { scope: "col", class: column.numeric && "number" }, column.title);
  const button = el("button", { type: "button" }, column.title);
  const cell = el("th", { scope: "col", class: column.numeric && "number" }, button);
  button.addEventListener("click", () => sort(cell, column));
  return cell;
}

// columns: [{title, text(record): string or node, key?(record): what to sort by, numeric?}], the first names its row.
export function table(caption, columns, records) {
  const rows = records.map((record) => ({
    record,
    row: el("tr", {}, ...columns.map(({ text, numeric }, index) =>
      el(index ? "td" : "th", { class: numeric && "number", scope: index ? null : "row" }, text(record)))),
  }));
  const body = el("tbody", {}, ...rows.map(({ row }) => row));
  const sort = (cell, column) => {
    const descending = cell.getAttribute("aria-sort") === "ascending";
    for (const other of cell.parentNode.children) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
    sortBy(body, rows, column, descending);
  };
  const head = el("thead", {}, el("tr", {}, ...columns.map((column) => header(column, sort))));
  const whole = el("table", {}, el("caption", { class: "visually-hidden" }, caption), head, body);
  return el("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": caption }, whole);
}

const WIDE = matchMedia("(min-width: 1080px)");

// Stays open or closed when its contents are made anew; before that, open only where asked for and wide enough.
export function details(holder, title, { openIfWide = false }, ...contents) {
  const before = [...holder.querySelectorAll("details")].find((one) => one.firstChild.textContent === title);
  const open = before ? before.open : openIfWide && WIDE.matches;
  return el("details", { open }, el("summary", {}, title), ...contents);
}
