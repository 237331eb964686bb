// What the server refuses, beside the field it is about.

import { el } from "./dom.js";

export function clearProblems(controls) {
  for (const control of controls) {
    if (!control.hasAttribute("aria-invalid")) continue;
    document.getElementById(control.getAttribute("aria-describedby"))?.remove();
    control.removeAttribute("aria-invalid");
    control.removeAttribute("aria-describedby");
  }
}

function mark(control, text) {
  if (control.hasAttribute("aria-invalid")) return;  // one sentence a field: several requests share it
  const id = `${control.id}-problem`;
  control.setAttribute("aria-invalid", "true");
  control.setAttribute("aria-describedby", id);
  control.closest(".field").append(el("p", { class: "problem", id }, text));
}

// Where the path ends at the whole request, the sentence names the field.
const wordsOf = ({ loc, msg }) => [...[...loc].reverse(), ...(msg.match(/\w+/g) ?? [])];

// find: a key of the request to its control, or nothing. What no field is at fault for goes to the line `rest`.
export function showProblems(error, find, rest) {
  const problems = error.problems ?? [{ loc: [], msg: error.message }];
  const left = [];
  for (const problem of problems) {
    const control = wordsOf(problem).map(find).find(Boolean);
    if (control) mark(control, problem.msg);
    else left.push(problem.msg);
  }
  if (left.length) rest.textContent = [...new Set(left)].join(" ");
  rest.hidden = rest.hidden && left.length === 0;
}
