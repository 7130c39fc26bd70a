// Numbers as people read them. An unknown one is a dash, never "NaN".

const known = (value) => typeof value === "number" && Number.isFinite(value);

const digits = (value, significant = 3) => {
  if (value === 0) return "0";
  const size = Math.floor(Math.log10(Math.abs(value)));
  return value.toLocaleString("en", { minimumFractionDigits: 0, maximumFractionDigits: Math.max(significant - 1 - size, 0) });
};

// 12.3 ms; on the analytic target milliseconds are millions of MACs of one image.
export const latency = (ms, unit = "ms") => {
  if (!known(ms)) return "–";
  if (unit === "million MACs") return `${count(ms * 1e6)} MACs`;
  return ms >= 1e4 ? `${digits(ms / 1e3, 4)} s` : `${digits(ms, 4)} ms`;
};

export const interval = (ends, unit = "ms") => (ends ? `${latency(ends[0], unit)} to ${latency(ends[1], unit)}` : "");

export const count = (value) => {
  if (!known(value)) return "–";
  for (const [size, name] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(value) >= size) return `${digits(value / size)} ${name}`;
  return digits(value, 4);
};

export const bytes = (value) => (known(value) ? `${count(value).replace(/ k$/, " k")}${value < 1e3 ? " " : ""}B` : "–");

// A share in [0, 1]. Close to all or to nothing the digits that differ are what counts; only all of it is 100 %.
export const percent = (share, places = 1) => {
  if (!known(share)) return "–";
  const value = 100 * share, rest = Math.min(Math.abs(value), Math.abs(100 - value));
  if (rest < 1e-9) return `${Math.round(value)} %`;
  if (rest < 1e-4) return value > 50 ? "> 99.9999 %" : "< 0.0001 %";
  return `${value.toFixed(rest < 10 ** -places ? Math.ceil(-Math.log10(rest)) : places)} %`;
};

export const number = (value, significant = 4) => (known(value) ? (Math.abs(value) >= 1e5 && significant < 7 ? count(value) : digits(value, significant)) : "–");

export const time = (text) => {
  const at = new Date(text);
  return text && !Number.isNaN(at.getTime()) ? at.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" }) : "–";
};

export const seconds = (value) => {
  if (!known(value)) return "–";
  if (value < 60) return `${digits(value, 2)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
  return `${Math.floor(value / 3600)} h ${Math.round((value % 3600) / 60)} min`;
};
