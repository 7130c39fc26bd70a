// Tables: what a latency rests on. Slices and comparisons are estimates of one-block models, so they show what answers give.
import { UNITS } from "./arch.js";
import { Chart, axis, colours } from "./chart.js";
import { Problem, get, post, query, send } from "./client.js";
import { $, definitions, h, name, options, table } from "./dom.js";
import { interval, latency, number, percent, time } from "./format.js";
import { emptyBox, fail, guarded, latest, notice, page, parameters, problemBox, remember } from "./frame.js";
import { badge, sorted } from "./targets.js";

const AXES = [["embed_dim", "EMB"], ...UNITS.map(([field, long]) => [field, long])];
const TYPES = { parquet: "application/vnd.apache.parquet", csv: "text/csv", json: "application/json" };
const state = { targets: [], chosen: null, other: null, sizes: null };

// A model of one block with as many tokens as the target: patches in one row, and a class token where there is room for one.
const oneBlock = (target, sizes) => {
  const count = target.tokens ?? 197, token = count > 1;
  return { image_size: [16, 16 * (token ? count - 1 : count)], patch_size: [16, 16], in_chans: 3, num_classes: 1000, embed_dim: sizes.embed_dim,
    blocks: [{ num_heads: sizes.num_heads, qk_dim: sizes.qk_dim, v_dim: sizes.v_dim, mlp_dim: sizes.mlp_dim }], class_token: token, pool: token ? "token" : "avg", norm: target.norm ?? "layer" };
};

const blockTimes = async (signal, target, many) => {
  const answer = await post("/v1/latency/estimate", { targets: [target.target], architectures: many.map((sizes) => oneBlock(target, sizes)) }, { signal });
  return answer.architectures.map((one) => one.estimates[0]);
};

const steps = ([low, high], field, count = 33) => {
  const unit = field === "num_heads" ? 1 : 8, from = Math.max(low, 1);
  const found = Array.from({ length: count }, (_, at) => Math.round((from + ((high - from) * at) / (count - 1)) / unit) * unit);
  return [...new Set(found.map((size) => Math.min(Math.max(size, low), high)))];
};

const middle = (target) => Object.fromEntries(AXES.map(([field]) => {
  const [low, high] = target.bounds[field], usual = { embed_dim: 384, num_heads: 6, qk_dim: 64, v_dim: 64, mlp_dim: 1536 }[field];
  return [field, usual >= low && usual <= high ? usual : Math.max(low, Math.round((low + Math.min(high, 2 * usual)) / 2))];
}));

// Slices

const showSlices = latest(async (signal) => {
  const target = state.chosen, sizes = state.sizes, field = $("slice-axis").value, second = $("slice-by").value;
  const others = second === "none" || second === field ? [null] : steps(bounded(target, second), second, 5);
  const across = steps(bounded(target, field), field);
  const curves = [];
  for (const other of others) {
    const at = across.map((size) => ({ ...sizes, ...(other === null ? {} : { [second]: other }), [field]: size }));
    curves.push({ label: other === null ? target.target : `${AXES.find(([one]) => one === second)[1]} ${other}`, target, found: await blockTimes(signal, target, at) });
  }
  if (state.other && others[0] === null) {
    const shared = across.every((size) => inside(state.other, { ...sizes, [field]: size }));
    if (shared) curves.push({ label: state.other.target, target: state.other, found: await blockTimes(signal, state.other, across.map((size) => ({ ...sizes, [field]: size }))) });
  }
  const long = AXES.find(([one]) => one === field)[1], fixed = AXES.filter(([one]) => one !== field && one !== second).map(([one, label]) => `${label} ${sizes[one]}`).join(", ");
  const chart = new Chart({ label: `Latency of one block of ${target.target} along ${long}, at ${fixed}`,
    make: () => ({ tooltip: { trigger: "axis", valueFormatter: (value) => latency(value, target.unit) }, xAxis: axis(long, { type: "value", min: "dataMin", max: "dataMax" }),
      yAxis: axis(target.unit === "ms" ? "ms a block" : "million MACs a block", { type: "value", min: 0, nameGap: 46, axisLabel: { formatter: (value) => number(value, 3) } }),
      series: curves.map(({ label, found }) => ({ name: label, type: "line", symbolSize: 4, data: across.map((size, at) => [size, found[at].block_ms[0]]) })) }),
    numbers: () => [[{ label: long, of: (row) => across[row] }, ...curves.map(({ label, target: of, found }) => ({ label, of: (row) => latency(found[row].block_ms[0], of.unit) }))], across.map((_, row) => row)] });
  chart.into($("slice"));
  $("slice-fixed").textContent = `At ${fixed}.`;
});

const bounded = (target, field) => { const [low, high] = target.bounds[field]; return [low, Math.min(high, field === "mlp_dim" ? 6144 : field === "embed_dim" ? 1536 : field === "num_heads" ? 24 : 128)]; };
const inside = (target, sizes) => AXES.every(([field]) => sizes[field] >= target.bounds[field][0] && sizes[field] <= target.bounds[field][1]);

// A heat map of the two sizes that weigh most.
const showMap = latest(async (signal) => {
  const target = state.chosen, embeds = steps(bounded(target, "embed_dim"), "embed_dim", 9), mlps = steps(bounded(target, "mlp_dim"), "mlp_dim", 12);
  const at = embeds.flatMap((embed_dim) => mlps.map((mlp_dim) => ({ ...state.sizes, embed_dim, mlp_dim })));
  const found = await blockTimes(signal, target, at), values = found.map((one) => one.block_ms[0]);
  new Chart({ label: `Latency of one block of ${target.target} by EMB and MLP`, make: () => ({ legend: { show: false }, grid: { right: 90, top: 16 }, tooltip: { formatter: (item) => `EMB ${embeds[item.value[1]]}, MLP ${mlps[item.value[0]]}: ${latency(item.value[2], target.unit)}` },
    xAxis: axis("MLP", { type: "category", data: mlps }), yAxis: axis("EMB", { type: "category", data: embeds, nameGap: 42 }),
    visualMap: { min: Math.min(...values), max: Math.max(...values), right: 0, top: "middle", calculable: false, text: [latency(Math.max(...values), target.unit), latency(Math.min(...values), target.unit)], formatter: (value) => latency(value, target.unit), textStyle: { color: getComputedStyle(document.body).color }, inRange: { color: ["#fde725", "#5ec962", "#21918c", "#3b528b", "#440154"] } },
    series: [{ type: "heatmap", data: values.map((value, index) => [index % mlps.length, Math.floor(index / mlps.length), value]) }] }),
    numbers: () => [[{ label: "EMB", of: (row) => embeds[row] }, ...mlps.map((mlp, column) => ({ label: `MLP ${mlp}`, of: (row) => latency(values[row * mlps.length + column], target.unit) }))], embeds.map((_, row) => row)] }).into($("map"));
});

// Two tables over the same random blocks.

const random = (seed) => () => { seed = (seed * 1664525 + 1013904223) >>> 0; return seed / 2 ** 32; };

const showComparison = latest(async (signal) => {
  const [a, b] = [state.chosen, state.other];
  $("compared").replaceChildren();
  if (!b) return;
  const shared = Object.fromEntries(AXES.map(([field]) => [field, [Math.max(bounded(a, field)[0], bounded(b, field)[0]), Math.min(bounded(a, field)[1], bounded(b, field)[1])]]));
  if (AXES.some(([field]) => shared[field][0] > shared[field][1])) { $("compared").replaceChildren(emptyBox("These two have no sizes in common", `${a.target} and ${b.target} cover ranges that do not meet.`)); return; }
  const draw = random(1), many = Array.from({ length: 300 }, () => Object.fromEntries(AXES.map(([field]) => {
    const [low, high] = shared[field];
    return [field, Math.round(low + draw() * (high - low))];
  })));
  const [first, second] = [await blockTimes(signal, a, many), await blockTimes(signal, b, many)].map((found) => found.map((one) => one.block_ms[0]));
  const ratios = first.map((ms, at) => second[at] / ms).sort((x, y) => x - y), quantile = (share) => ratios[Math.round(share * (ratios.length - 1))];
  const top = Math.max(...first), units = a.unit === b.unit;
  new Chart({ label: `Latency of 300 random blocks, ${b.target} against ${a.target}`, make: () => ({ tooltip: { formatter: (item) => (item.seriesType === "scatter" ? `${AXES.map(([field, label]) => `${label} ${many[item.dataIndex][field]}`).join(", ")}\n${a.target}: ${latency(item.value[0], a.unit)}\n${b.target}: ${latency(item.value[1], b.unit)}` : "equal") },
    xAxis: axis(`${a.target}, ${a.unit}`, { type: "value", min: 0, axisLabel: { formatter: (value) => number(value, 3) } }), yAxis: axis(`${b.target}, ${b.unit}`, { type: "value", min: 0, nameGap: 46, axisLabel: { formatter: (value) => number(value, 3) } }),
    series: [{ name: b.target, type: "scatter", symbolSize: 6, data: first.map((ms, at) => [ms, second[at]]) }, ...(units ? [{ name: "equal", type: "line", symbol: "none", color: colours()[4], lineStyle: { type: "dashed" }, data: [[0, 0], [top, top]] }] : [])] }),
    numbers: () => [[...AXES.map(([field, label]) => ({ label, of: (row) => many[row][field] })), { label: a.target, of: (row) => latency(first[row], a.unit) }, { label: b.target, of: (row) => latency(second[row], b.unit) }], first.map((_, row) => row)] }).into($("compared"));
  if (units) $("compared").prepend(h("p", { id: "ratio" }, name(b.target), " takes ", h("strong", {}, `${number(quantile(0.5), 3)} times`), " as long as ", name(a.target), ` (median of 300 random blocks; nine in ten between ${number(quantile(0.05), 3)} and ${number(quantile(0.95), 3)}).`));
});

// Validation: the report of `vitfit table validate --json`, read here and sent nowhere.

const showValidation = async (file) => {
  let report;
  try {
    report = JSON.parse(await file.text());
    if (!Array.isArray(report.predicted_ms) || !report.predicted_ms.length || report.predicted_ms.length !== report.measured_ms?.length) throw new Error("it has no predicted_ms and measured_ms of one length");
  } catch (error) {
    $("validation").replaceChildren(problemBox(new Problem({ status: 400, title: "This is no validation report", detail: `${file.name}: ${error.message}`, hint: "Make one with: vitfit table validate TABLE --json > report.json" })));
    return;
  }
  const { predicted_ms: predicted, measured_ms: measured, names = [] } = report, top = Math.max(...measured), errors = predicted.map((ms, at) => Math.abs(ms / measured[at] - 1)).sort((x, y) => x - y);
  new Chart({ label: "Predicted against measured latency", make: () => ({ tooltip: { formatter: (item) => (item.seriesType === "scatter" ? `${names[item.dataIndex] ?? ""}\nmeasured ${latency(item.value[0])}, predicted ${latency(item.value[1])}` : "exact") },
    xAxis: axis("measured, ms", { type: "value", min: 0 }), yAxis: axis("predicted, ms", { type: "value", min: 0, nameGap: 46 }),
    series: [{ name: "models and blocks", type: "scatter", symbolSize: 7, data: measured.map((ms, at) => [ms, predicted[at]]) }, { name: "exact", type: "line", symbol: "none", color: colours()[4], lineStyle: { type: "dashed" }, data: [[0, 0], [top, top]] }] }),
    numbers: () => [[{ label: "what", text: true, of: (row) => name(names[row] ?? row) }, { label: "measured", of: (row) => latency(measured[row]) }, { label: "predicted", of: (row) => latency(predicted[row]) }, { label: "error", of: (row) => percent(predicted[row] / measured[row] - 1) }], measured.map((_, row) => row)] }).into($("validation"));
  $("validation").prepend(h("p", {}, `Mean error ${percent(errors.reduce((a, b) => a + b, 0) / errors.length)}, median ${percent(errors[errors.length >> 1])}, worst ${percent(errors.at(-1))}, of ${errors.length}.`));
};

// Upload

const upload = guarded(async () => {
  const file = $("file").files[0], said = $("upload-said"), button = $("upload");
  if (!file) { said.replaceChildren(emptyBox("No file chosen", "Choose a .parquet, .csv or .json file first.")); return; }
  const type = TYPES[file.name.split(".").pop().toLowerCase()];
  if (!type) { said.replaceChildren(problemBox(new Problem({ status: 415, title: "Not a table", detail: `${file.name} ends in none of .parquet, .csv and .json.`, hint: "vitfit profile writes .parquet tables" }))); return; }
  button.disabled = true;
  said.replaceChildren(h("p", { role: "status" }, "Uploading…"));
  try {
    const given = query({ target: $("upload-target").value.trim(), outside_ms: $("upload-outside").value });
    const response = await send("POST", `/v1/tables${given}`, { body: new Blob([file]), headers: { "content-type": type } });
    const added = await response.json();
    said.replaceChildren(h("div", { class: "box good" }, h("h3", {}, response.status === 200 ? "This table was here already" : "Added"), h("p", {}, name(added.target), added.answers ? "" : `: ${added.note}`)));
    await list(added.target);
    await show();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    said.replaceChildren(problemBox(error));
  } finally { button.disabled = false; }
});

// The page

const show = latest(async (signal) => {
  const { chosen } = state, { provenance } = chosen;
  remember({ table: chosen.target, other: state.other?.target });
  $("list").querySelectorAll("a[data-target]").forEach((link) => link.setAttribute("aria-current", String(link.dataset.target === chosen.target)));
  $("detail").hidden = false;
  $("detail-title").replaceChildren(name(chosen.target), " ", badge(chosen.kind));
  $("provenance").replaceChildren(definitions([["device", provenance.device || chosen.device], ["runtime", chosen.runtime], ["dtype", chosen.dtype], ["batch", chosen.batch], ["tokens", chosen.tokens ?? "any"], ["norm", chosen.norm],
    ["file", chosen.file ?? "none: a closed form"], ["made", provenance.created_at ? time(provenance.created_at) : null], ["by", provenance.created_by], ["method", provenance.method], ["driver", provenance.driver], ["clocks", provenance.clocks], ["source", provenance.source], ["licence", provenance.license],
    ...Object.entries(provenance.versions), ["nine in ten within", provenance.interval ? `${number(provenance.interval[0])} to ${number(provenance.interval[1])} times the estimate` : null]]));
  const quality = Object.entries(provenance.quality);
  $("quality").replaceChildren(quality.length ? table("Quality of the fit and of the measurements", [{ label: "figure", text: true, of: ([field]) => name(field.replaceAll("_", " ")) }, { label: "value", of: ([, value]) => number(value) }], quality) : h("p", { class: "quiet" }, "This table says nothing of its own quality."));
  $("coverage").replaceChildren(table("Sizes that can be asked for", [{ label: "size", text: true, of: ([, label]) => label }, { label: "from", of: ([field]) => number(chosen.bounds[field][0]) }, { label: "to", of: ([field]) => number(chosen.bounds[field][1]) }], AXES));
  state.sizes = middle(chosen);
  options($("other"), [["", "none"], ...state.targets.filter((one) => one !== chosen).map((one) => [one.target, one.target])], state.other?.target ?? "");
  for (const part of [showSlices, showMap, showComparison]) {
    await part();
    signal.throwIfAborted();
  }
});

const list = async (wanted) => {
  const found = await get("/v1/targets");
  state.targets = sorted(found.targets);
  const chosen = (slug) => state.targets.find((one) => one.target === slug);
  $("list").replaceChildren(table(`${state.targets.length} targets`, [
    { label: "target", text: true, of: (one) => h("a", { href: `?${new URLSearchParams({ table: one.target })}`, "data-target": one.target, onclick: (event) => { event.preventDefault(); state.chosen = one; state.other = null; show().then(() => $("detail-title").scrollIntoView()); } }, name(one.target)) },
    { label: "evidence", text: true, of: (one) => badge(one.kind) }, { label: "batch", of: (one) => one.batch }, { label: "tokens", of: (one) => one.tokens ?? "any" },
    { label: "nine in ten within", of: (one) => (one.provenance.interval ? `${number(one.provenance.interval[0], 3)} to ${number(one.provenance.interval[1], 3)}×` : "") },
    { label: "device", text: true, of: (one) => name(one.provenance.device || one.device) }, { label: "file", text: true, of: (one) => name(one.file ?? "closed form") }], state.targets));
  if (found.unreadable.length) $("list").append(h("details", { open: found.unreadable.length < 4 }, h("summary", {}, `${found.unreadable.length} file${found.unreadable.length > 1 ? "s are" : " is"} not used`), table("Files that are not used", [{ label: "file", text: true, of: (row) => name(row.file) }, { label: "why", text: true, of: (row) => name(row.error) }], found.unreadable)));
  if (found.targets.length === 1) $("list").append(emptyBox("No tables yet", "Only the analytic target `macs` answers. Measure this machine:", h("pre", {}, "vitfit profile --points auto --validate 20"), "or upload a table below."));
  if (wanted && !chosen(wanted)) {
    const one = await get(`/v1/targets/${encodeURIComponent(wanted)}`); // a modelled device at a batch of its own, or gone
    state.targets.push(one);
  }
  state.chosen = chosen(wanted) ?? state.targets[0];
};

page(async () => {
  options($("slice-axis"), AXES, "mlp_dim");
  options($("slice-by"), [["none", "nothing"], ...AXES], "embed_dim");
  for (const id of ["slice-axis", "slice-by"]) $(id).addEventListener("change", showSlices);
  $("other").addEventListener("change", guarded(async () => { state.other = state.targets.find((one) => one.target === $("other").value) ?? null; if (state.other) { $("slice-by").value = "none"; } remember({ other: state.other?.target }); await showSlices(); await showComparison(); }));
  $("upload").addEventListener("click", upload);
  $("validation-file").addEventListener("change", () => { if ($("validation-file").files[0]) guarded(showValidation)($("validation-file").files[0]); });
  notice();
  try {
    await list(parameters().get("table"));
  } catch (error) {
    fail(error);
    if (error.status !== 404) return;
    await list(null);
  }
  state.other = state.targets.find((one) => one.target === parameters().get("other")) ?? null;
  await show();
});
