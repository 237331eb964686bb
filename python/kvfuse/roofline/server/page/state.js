// The page's state is what its named controls hold; the URL carries what differs from how the page starts.

import { $$, el } from "./dom.js";

const controls = () => $$("input[name], select[name], textarea[name]");
let defaults = new Map();

const read = (control) => (control.type === "checkbox" ? (control.checked ? "1" : "0") : control.value);

function write(control, value) {
  if (control.type === "checkbox") control.checked = value === "1";
  else if (control instanceof HTMLSelectElement && ![...control.options].some((option) => option.value === value))
    control.prepend(el("option", { value, selected: true }, value));  // kept, so that the server can say what is wrong with it
  else control.value = value;
}

export const rememberDefaults = () => {
  defaults = new Map(controls().map((control) => [control.name, read(control)]));
};

export function applyUrl() {
  const wanted = new URLSearchParams(location.search);
  for (const control of controls()) write(control, wanted.get(control.name) ?? defaults.get(control.name));
}

function toUrl() {
  const changed = controls().map((control) => [control.name, read(control)])
    .filter(([name, value]) => defaults.get(name) !== value);
  const query = new URLSearchParams(changed).toString();
  return query ? `?${query}` : location.pathname;
}

export function pushUrl() {
  const url = toUrl();
  if (url !== location.search && !(url === location.pathname && location.search === "")) history.pushState(null, "", url);
}
