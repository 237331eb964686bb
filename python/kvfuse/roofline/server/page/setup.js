// The controls of one set-up: machine, model, formats and the pass to predict.

import { $, $$, fillSelect } from "./dom.js";
import { entered } from "./format.js";

export const OWN_SIZES = "own";
const SIZES = ["H", "L", "nh", "nkv", "dh", "dff"];
// Keys of requests, and the words of the library's sentences.
const FIELD_OF_KEY = {
  hardware: "hw", profile: "fig", model: "model", strategy: "fmt", phase: "phase", batch: "batch",
  seq_len: "ctx", past: "ctx", tokens: "ctx", kv_len: "ctx", query_tokens: "ctx", prompt_length: "ctx",
  H: "H", L: "L", nh: "nh", nkv: "nkv", dh: "dh", dff: "dff",
  n_embd: "H", n_layer: "L", n_head: "nh", n_kv_head: "nkv", head_dim: "dh", d_ff: "dff",
};
const PROFILES = { vendor: "of the vendor", reference: "of the published study", user: "of a file", calibrated: "measured here" };

export const hardwareOptions = (catalogue) =>
  [{ options: catalogue.hardware.map(({ name, title }) => ({ value: name, text: title })) }];

// The profiles of the chosen machine; a profile that it does not have falls back to its first.
export function fillProfiles(select, catalogue, hardware) {
  const known = catalogue.hardware.find(({ name }) => name === hardware)?.profiles ?? [select.value || "vendor"];
  const before = select.value;
  fillSelect(select, [{ options: known.map((name) => ({ value: name, text: PROFILES[name] ?? name })) }]);
  if (known.includes(before)) select.value = before;
}

const modelOptions = (catalogue) => [
  { options: catalogue.models.map(({ name }) => ({ value: name, text: name })) },
  { options: [{ value: OWN_SIZES, text: "own sizes…" }] },
];

const strategyOptions = ({ options }) => [
  { title: "Mixed", options: options.strategies.map((name) => ({ value: name, text: name })) },
  { title: "All in one format", options: options.precisions.map((name) => ({ value: name, text: name })) },
];

export class SetUp {
  constructor(letter, catalogue) {
    this.letter = letter;
    this.catalogue = catalogue;
    this.form = $("#setup-template").content.cloneNode(true).firstElementChild;
    this.form.dataset.setup = letter;
    $("legend", this.form).textContent = `Set-up ${letter.toUpperCase()}`;
    this.problem = $(":scope > .problem", this.form);
    for (const field of $$("[data-field]", this.form)) {
      const control = $("input, select", field);
      control.name = `${letter}.${field.dataset.field}`;
      control.id = $("label", field).htmlFor = `${letter}-${field.dataset.field}`;
    }
    fillSelect(this.control("hw"), hardwareOptions(catalogue));
    fillSelect(this.control("model"), modelOptions(catalogue));
    fillSelect(this.control("fmt"), strategyOptions(catalogue));
    this.settle();
  }

  control(field) {
    return $(`[name="${this.letter}.${field}"]`, this.form);
  }

  controls() {
    return $$("[name]", this.form);
  }

  value(field) {
    return this.control(field).value;
  }

  // Makes what depends on other controls follow them.
  settle() {
    fillProfiles(this.control("fig"), this.catalogue, this.value("hw"));
    $(".sizes", this.form).hidden = !this.ownSizes();
  }

  ownSizes() {
    return this.value("model") === OWN_SIZES;
  }

  // Own sizes start from the model that was chosen before.
  takeSizes(name) {
    const model = this.catalogue.models.find((one) => one.name === name);
    if (!model) return;
    const from = { H: model.n_embd, L: model.n_layer, nh: model.n_head, nkv: model.n_kv_head, dh: model.head_dim, dff: model.d_ff };
    for (const size of SIZES) this.control(size).value = from[size];
  }

  copyFrom(other) {
    for (const control of this.controls()) {
      const field = control.name.slice(2);
      if (field === "fig") this.settle();
      control.value = other.value(field);
    }
    this.settle();
  }

  machine() {
    return { hardware: this.value("hw"), profile: this.value("fig") };
  }

  model() {
    if (!this.ownSizes()) return { model: this.value("model") };
    return { model_config: Object.fromEntries(SIZES.map((size) => [size, entered(this.value(size))])) };
  }

  // Heads, as the attention of one layer needs them.
  heads() {
    if (this.ownSizes()) {
      const [n_head, n_kv_head, head_dim] = ["nh", "nkv", "dh"].map((size) => entered(this.value(size)));
      return { n_head, n_kv_head, head_dim };
    }
    const { n_head, n_kv_head, head_dim } = this.catalogue.models.find(({ name }) => name === this.value("model")) ?? {};
    return { n_head, n_kv_head, head_dim };
  }

  workload() {
    const [seq_len, batch] = ["ctx", "batch"].map((field) => entered(this.value(field)));
    return { ...this.machine(), ...this.model(), phase: this.value("phase"), seq_len, batch };
  }

  // The control that a key of a request is from, if one is.
  find(key) {
    const field = Object.hasOwn(FIELD_OF_KEY, key) && FIELD_OF_KEY[key];
    const control = field && this.control(field);
    return control && !control.closest("[hidden]") ? control : null;
  }
}
