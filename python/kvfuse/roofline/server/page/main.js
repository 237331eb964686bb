// Starts the page: catalogue, state from the URL, views.

import { get } from "./api.js";
import { $, $$ } from "./dom.js";
import { LiveView } from "./live_view.js";
import { MeasuredView } from "./measured_view.js";
import { ModelView } from "./model_view.js";
import { loadPlotly, redrawAll } from "./plot.js";
import { ProductView } from "./product_view.js";
import { applyUrl, pushUrl, rememberDefaults } from "./state.js";
import { startTheme } from "./theme.js";

// What the page starts with: the machine and the format that most readers know.
const START = { "a.hw": "h100", "a.model": "llama-3-8b", "b.hw": "h100", "b.model": "llama-3-8b", "p.hw": "h100", "p.fmt": "fp16" };

const views = {};
let current = "";

async function catalogue() {
  const [{ hardware }, { models }, options] = await Promise.all(["hardware", "models", "options"].map(get));
  return { hardware, models, options };
}

function showView() {
  const wanted = $("[name=view]").value;
  const name = wanted in views ? wanted : "model";
  if (name !== current) views[current]?.hide?.();
  current = name;
  for (const section of $$("main > section")) section.hidden = section.id !== `view-${name}`;
  for (const link of $$("[data-view]")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${$(`[data-view=${name}]`).textContent} · kvfuse roofline`;
  views[name].refresh();
}

function fromUrl() {
  applyUrl();
  for (const setup of views.model.setups.values()) setup.settle();
  views.product.settle();
  applyUrl();  // again: the profiles to choose from follow the machines
  showView();
}

function changed(control, typing = false) {
  views[current].refresh(control, typing);
  if (!typing) pushUrl();
}

const typed = (control) => control.matches("input:not([type=checkbox]), textarea");

function listen() {
  const main = $("#main");
  main.addEventListener("input", ({ target }) => {
    if (target.name && typed(target)) changed(target, true);
  });
  main.addEventListener("change", ({ target }) => {
    if (!target.name) return;
    if (typed(target)) pushUrl();
    else changed(target);
  });
  $("nav").addEventListener("click", (event) => {
    const link = event.target.closest("[data-view]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    $("[name=view]").value = link.dataset.view;
    pushUrl();
    showView();
  });
  addEventListener("popstate", fromUrl);
  addEventListener("pagehide", () => views.live.hide());
}

async function start() {
  startTheme(redrawAll);
  const known = await catalogue();
  Object.assign(views, {
    model: new ModelView(known, { changed }), product: new ProductView(known), measured: new MeasuredView(), live: new LiveView(),
  });
  for (const [name, value] of Object.entries(START)) {
    const select = $(`[name="${name}"]`);
    if ([...select.options].some((option) => option.value === value)) select.value = value;
  }
  for (const setup of views.model.setups.values()) setup.settle();
  views.product.settle();
  rememberDefaults();
  listen();
  fromUrl();
  for (const fieldset of $$("[data-controls]")) fieldset.disabled = false;
  performance.mark("controls-enabled");
  document.documentElement.dataset.ready = "true";
  await loadPlotly();
}

start().catch((error) => {
  const problem = $("#start-problem");
  problem.textContent = `The page could not start: ${error.message} Reload it to try again.`;
  problem.hidden = false;
});
