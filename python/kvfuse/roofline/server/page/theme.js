// Light, dark, or as the system has it; kept in this browser.

import { $ } from "./dom.js";

const KEY = "kvfuse-theme";

function stored() {
  try {
    return localStorage.getItem(KEY) ?? "auto";
  } catch {
    return "auto";  // storage is switched off
  }
}

export function startTheme(changed) {
  const select = $("#theme");
  const apply = (theme) => {
    document.documentElement.dataset.theme = theme;
    select.value = theme;
  };
  apply(stored());
  select.addEventListener("change", () => {
    apply(select.value);
    try {
      localStorage.setItem(KEY, select.value);
    } catch { /* storage is switched off: the choice holds until the page is left */ }
    changed();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
}

// The colour that a custom property of style.css has now.
export function colour(name) {
  const probe = document.documentElement.appendChild(document.createElement("i"));
  probe.style.color = `var(--${name})`;
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}
