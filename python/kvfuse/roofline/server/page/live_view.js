// The view of the GPUs' state, as the server sends it about once a second.

import { $ } from "./dom.js";
import { number } from "./format.js";
import { draw, plain } from "./plot.js";
import { table } from "./table.js";
import { colour } from "./theme.js";

const KEPT_SAMPLES = 120;
const SHADES = ["line-1", "line-2", "line-3", "line-4", "line-5"];

const numeric = (title, text) => ({ title, text, numeric: true });
const COLUMNS = [
  { title: "GPU", text: (gpu) => `${gpu.index} · ${gpu.name}` },
  numeric("Utilisation", (gpu) => `${number(gpu.utilization_pct)} %`),
  numeric("Memory", (gpu) => `${number(gpu.memory_used_mb)} of ${number(gpu.memory_total_mb)} MB`),
  numeric("Temperature", (gpu) => `${number(gpu.temperature_c)} °C`),
  numeric("Power", (gpu) => `${number(gpu.power_w)} W`),
  numeric("SM clock", (gpu) => `${number(gpu.sm_clock_mhz)} MHz`),
  numeric("Memory clock", (gpu) => `${number(gpu.mem_clock_mhz)} MHz`),
  { title: "State", text: (gpu) => String(gpu.pstate ?? "–") },
];

export class LiveView {
  constructor() {
    this.source = null;
    this.samples = [];
  }

  refresh() {
    if (this.source) return;
    this.say("Asking…");
    this.source = new EventSource("api/nvml/stream");
    this.source.addEventListener("message", ({ data }) => this.take(JSON.parse(data)));
    this.source.addEventListener("error", () => this.say("The connection to the server is lost; trying again."));
  }

  hide() {
    this.source?.close();
    this.source = null;
    this.samples = [];
  }

  // A status region speaks when its text changes, so it is left alone while nothing does.
  say(text) {
    if ($("#l-state").textContent !== text) $("#l-state").textContent = text;
  }

  take(state) {
    const { available, gpus = [] } = state;
    $("#l-body").hidden = !available;
    if (!available) {
      this.say(state.reason ? `No GPU to show: ${state.reason}.` : "No GPU: this machine has none that NVML can see.");
      return;
    }
    this.say(gpus.length === 1 ? "One GPU, live." : `${gpus.length} GPUs, live.`);
    this.samples = [...this.samples, gpus].slice(-KEPT_SAMPLES);
    $("#l-table").replaceChildren(table("State of the GPUs", COLUMNS, gpus));
    draw($("#l-chart"), "Utilisation of the GPUs over the latest two minutes; the table above has the latest figures", () => this.chart());
  }

  chart() {
    const latest = this.samples.at(-1);
    const ages = this.samples.map((_, at) => at + 1 - this.samples.length);
    const traces = latest.map(({ index, name }, at) => ({
      x: ages, y: this.samples.map((gpus) => gpus.find((gpu) => gpu.index === index)?.utilization_pct ?? null), name: plain(`${index} · ${name}`),
      mode: "lines", line: { width: 2, color: colour(SHADES[at % SHADES.length]) }, hovertemplate: "%{y} %<extra></extra>",
    }));
    return {
      traces,
      layout: { xaxis: { title: "Samples ago", range: [-KEPT_SAMPLES, 0] }, yaxis: { title: "Utilisation, %", range: [0, 100] }, showlegend: true },
    };
  }
}
