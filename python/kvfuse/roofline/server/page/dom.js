// Elements without HTML text: what comes from a server or a file only ever becomes text nodes.

export const $ = (selector, root = document) => root.querySelector(selector);
export const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

// el("td", {class: "number"}, "12"): attributes, then children (strings become text).
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// A polite announcement for those who do not see the figures change.
export function announce(text) {
  $("#status").textContent = text;
}

export function fillSelect(select, groups) {
  select.replaceChildren(...groups.map(({ title, options }) => {
    const made = options.map(({ value, text }) => el("option", { value }, text));
    return title ? el("optgroup", { label: title }, ...made) : made;
  }).flat());
}
