// Charts: plotly, loaded once the controls work, drawn in the page's colours.

import { colour } from "./theme.js";

// plotly's map component adds a style element unless it finds one of this id; the policy would refuse it.
const MAP_STYLE_ID = "9f215cf04c5486422605d13261cb87401f4e7763b6296af81e98efbc0130da53";

let loading = null;
const drawn = new Map();  // element: how to draw it again

export function loadPlotly() {
  loading ??= new Promise((resolve, reject) => {
    document.head.append(Object.assign(document.createElement("template"), { id: MAP_STYLE_ID }));
    const script = Object.assign(document.createElement("script"), { src: "page/plotly.min.js" });
    script.addEventListener("load", () => resolve(globalThis.Plotly));
    script.addEventListener("error", () => reject(new Error("The charts could not be loaded; the tables hold their figures.")));
    document.head.append(script);
  });
  return loading;
}

// Text for plotly, which reads tags in it.
export const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

// A log axis's range around values, as plotly wants it.
export const logSpan = (values) => [Math.log10(Math.min(...values) / 1.5), Math.log10(Math.max(...values) * 1.5)];

const PREFIXES = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

function short(value) {
  const [size, prefix] = PREFIXES.find(([step]) => value >= step * 0.999) ?? [1, ""];
  return `${Number((value / size).toPrecision(3))}${prefix}`;
}

// Ticks at decades, and between them where few fit: plotly's own would write 10 to the 15th as styled text.
function logTicks([low, high]) {
  const span = high - low;
  const steps = span < 0.9 ? [1, 1.5, 2, 3, 4, 5, 7] : span < 2.5 ? [1, 2, 5] : [1];
  const found = [];
  for (let decade = Math.floor(low); decade <= high; decade += 1)
    for (const step of steps) {
      const value = step * 10 ** decade;
      if (Math.log10(value) >= low && Math.log10(value) <= high) found.push(value);
    }
  return { tickvals: found, ticktext: found.map(short) };
}

function merged(axis, own) {
  const ticks = own?.type === "log" && !own.tickvals ? logTicks(own.range) : {};
  return { ...axis, ...own, ...ticks, title: { text: own?.title ?? "", standoff: 8 } };
}

function themed(layout) {
  const hovers = matchMedia("(hover: hover)").matches;  // a finger scrolls the page instead
  const ink = colour("ink-soft");
  const axis = {
    color: ink, gridcolor: colour("grid"), linecolor: colour("line"), zeroline: false, automargin: true, fixedrange: !hovers,
  };
  const font = { family: "system-ui, sans-serif", size: 12, color: ink };
  return {
    font, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 8, r: 8, t: 8, b: 8 },
    hovermode: "closest", showlegend: false, autosize: true, dragmode: hovers ? "zoom" : false,
    hoverlabel: { bgcolor: colour("raised"), bordercolor: colour("line"), font: { ...font, color: colour("ink") }, align: "left" },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font },
    ...layout,
    xaxis: merged(axis, layout.xaxis),
    yaxis: merged(axis, layout.yaxis),
  };
}

// make(width): {traces, layout}, called again when the theme changes. label: what the chart shows, in words.
export async function draw(element, label, make) {
  drawn.set(element, make);
  element.setAttribute("role", "img");
  element.setAttribute("aria-label", label);
  let plotly;
  try {
    plotly = await loadPlotly();
  } catch (error) {
    element.textContent = error.message;
    return;
  }
  if (drawn.get(element) !== make || !element.isConnected || element.offsetParent === null) return;
  const { traces, layout } = make(element.clientWidth);
  await plotly.react(element, traces, themed(layout), { displayModeBar: false, responsive: true, showTips: false });
  element.dataset.drawn = String(Number(element.dataset.drawn ?? 0) + 1);
}

export function redrawAll() {
  for (const [element, make] of drawn) {
    if (element.isConnected) draw(element, element.getAttribute("aria-label"), make);
    else drawn.delete(element);
  }
}
