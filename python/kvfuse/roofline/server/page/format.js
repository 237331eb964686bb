// Figures as people read them: three or four digits and a unit.

const digits = (value) => {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2);
  if (size >= 100) return Math.round(value).toLocaleString("en");
  return Number.isInteger(value) ? String(value) : value.toPrecision(3);
};

const scaled = (steps) => (value) => {
  if (!Number.isFinite(value)) return "–";
  const [size, unit] = steps.find(([step]) => Math.abs(value) >= step) ?? steps.at(-1);
  return `${digits(value / size)}\u00a0${unit}`;  // never broken at the space
};

export const number = (value) => (Number.isFinite(value) ? digits(value) : "–");
export const bytes = scaled([[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]]);
export const flops = scaled([[1e15, "PFLOP"], [1e12, "TFLOP"], [1e9, "GFLOP"], [1e6, "MFLOP"], [1e3, "kFLOP"], [1, "FLOP"]]);
export const rate = (value) => `${flops(value)}/s`;
export const perSecond = scaled([[1e6, "M/s"], [1e3, "k/s"], [1, "/s"]]);
export const time = scaled([[1e3, "s"], [1, "ms"], [1e-3, "µs"], [1e-6, "ns"]]);  // of milliseconds
export const percent = (share) => {
  if (!Number.isFinite(share)) return "–";
  return share > 0 && share < 1e-4 ? "< 0.01 %" : `${number(share * 100)} %`;
};
export const times = (factor) => (Number.isFinite(factor) ? `${factor.toFixed(2)}×` : "–");
export const tokens = (value) => Math.round(value).toLocaleString("en");

// What a field holds as JSON: a number if it is one, else the text, for the server to refuse with its reason.
export function entered(text) {
  const trimmed = text.trim();
  if (trimmed === "") return null;
  const value = Number(trimmed);
  return Number.isFinite(value) ? value : trimmed;
}
