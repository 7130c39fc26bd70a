// Architecture: sizes by block beside the model they come from, what they cost everywhere, and what to do with them.
import { UNITS, Staircase, fromText, macs, params, resized, toText, tokens } from "./arch.js";
import { blockChart } from "./blocks.js";
import { Chart, axis, colours } from "./chart.js";
import { Problem, download, get, post, save, send } from "./client.js";
import { $, h, name, options, perFrame, table, tiles } from "./dom.js";
import { count, interval, latency, number, percent } from "./format.js";
import { copy, fail, guarded, latest, notice, page, parameters, problemBox, remember } from "./frame.js";
import { jobForm } from "./job_form.js";
import { badge, sorted } from "./targets.js";

const state = { base: null, arch: null, targets: [], target: null, estimate: null, before: null, bounds: {}, stairs: null, refused: null };
let sizes, times, split, parts;

const unit = () => state.target?.unit ?? "ms";
const label = () => state.baseName;

// Estimates of this architecture and of the base on one target, with all that they rest on.
const estimateOn = async (target, architectures, { components = false, signal } = {}) => {
  const answer = await post("/v1/latency/estimate", { targets: [target], architectures, components }, { signal });
  return { evidence: answer.targets[0], estimates: answer.architectures.map((one) => one.estimates[0]), ids: answer.architectures.map((one) => one.id) };
};

const evaluate = async () => {
  const { target } = state;
  try {
    const found = await estimateOn(target.target, [state.arch, state.base], { components: true });
    if (target !== state.target) return; // another was chosen, which is asked about itself
    [state.estimate, state.before] = found.estimates;
    state.id = found.ids[0];
    state.refused = null;
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (target === state.target) [state.estimate, state.before, state.refused] = [null, null, error];
  }
};

// One question at a time: what changed meanwhile is asked about when the answer is there.
let asking = false, again = false;
const ask = guarded(async () => {
  if (asking) { again = true; return; }
  asking = true;
  try {
    do {
      again = false;
      await evaluate();
      showCosts();
    } while (again);
  } finally { asking = false; }
});

const boundHere = () => {
  if (!state.stairs || !state.estimate) return null;
  return state.stairs.bound[state.stairs.best(state.estimate.latency_ms)];
};

const showCosts = () => {
  const { estimate, before, arch, base } = state, bound = boundHere();
  $("refused").replaceChildren(...(state.refused ? [problemBox(state.refused)] : []));
  $("tiles").replaceChildren(tiles([
    [estimate?.kind === "modelled" ? "latency, modelled" : "latency", latency(estimate?.latency_ms, unit()), estimate?.interval_ms ? interval(estimate.interval_ms, unit()) : state.target.target],
    ["speed-up", estimate ? `${number(before.latency_ms / estimate.latency_ms, 3)}×` : "–", `${label()}: ${latency(before?.latency_ms, unit())}`],
    ["parameters", count(params(arch)), `of ${count(params(base))}`],
    ["MACs an image", count(macs(arch)), `of ${count(macs(base))}`],
    ["EMB", String(arch.embed_dim), `of ${base.embed_dim}`],
    bound !== null && ["bound", percent(bound, 2), "of the saliency: nothing this fast keeps more"]]));
  $("notes").replaceChildren(...(estimate?.notes ?? []).map((note) => h("li", {}, name(note))));
  times.draw();
  showSplit();
};

const showSizes = () => { sizes.follow(); parts.draw(); };

const follow = perFrame(() => { showSizes(); ask(); });

const settle = () => {
  remember({ sizes: toText(state.arch) === toText(state.base) ? null : toText(state.arch) });
  snippets();
  everywhere();
};

// Sliders

const limits = (field) => {
  const largest = field === "embed_dim" ? state.base.embed_dim : Math.max(...state.base.blocks.map((block) => block[field]));
  const [low, high] = state.target.bounds[field] ?? [1, 2 * largest];
  const step = field === "num_heads" ? 1 : 8, top = Math.min(high, Math.max(2 * largest, largest + step));
  return { min: Math.min(Math.ceil(low / step) * step, largest), max: Math.max(top, largest), step };
};

// The size that all blocks have.
const spread = (field) => (state.arch.blocks.every((block) => block[field] === state.arch.blocks[0][field]) ? String(state.arch.blocks[0][field]) : "varies");

const slider = (short, long, value, field, of, change) => {
  const { min, max, step } = limits(field), output = h("output", {}, of === null ? spread(field) : `${value} of ${of}`);
  const fine = value % step === 0 && min % step === 0 ? step : 1;
  const input = h("input", { type: "range", min, max, step: fine, value, "aria-label": long, "data-field": field,
    oninput: () => { output.textContent = of === null ? input.value : `${input.value} of ${of}`; change(Number(input.value)); follow(); }, onchange: () => settle() });
  return h("div", { class: "slider" }, h("span", { "aria-hidden": "true" }, short), input, output);
};

const showSliders = () => {
  const { arch, base } = state;
  $("sliders").replaceChildren(
    h("fieldset", {}, h("legend", {}, "Whole model"), slider("EMB", "Embedding", arch.embed_dim, "embed_dim", base.embed_dim, (value) => { state.arch = resized(state.arch, value, state.arch.blocks); }),
      UNITS.map(([field, long, short]) => slider(short, `${long}, all blocks`, Math.round(arch.blocks.reduce((sum, block) => sum + block[field], 0) / arch.blocks.length), field, null, (value) => {
        state.arch = resized(state.arch, state.arch.embed_dim, state.arch.blocks.map((block) => ({ ...block, [field]: value })));
        document.querySelectorAll(`[data-block] [data-field="${field}"]`).forEach((input) => { input.value = value; input.nextElementSibling.textContent = `${value} of ${base.blocks[Number(input.closest("[data-block]").dataset.block)][field]}`; });
      }))),
    ...arch.blocks.map((block, index) => h("fieldset", { "data-block": index }, h("legend", {}, `Block ${index}`),
      UNITS.map(([field, long, short]) => slider(short, `${long}, block ${index}`, block[field], field, base.blocks[index][field], (value) => {
        state.arch = resized(state.arch, state.arch.embed_dim, state.arch.blocks.map((one, at) => (at === index ? { ...one, [field]: value } : one)));
        document.querySelector(`fieldset:not([data-block]) [data-field="${field}"]`).nextElementSibling.textContent = spread(field);
      })))));
};

// Charts

const timesOption = () => {
  const { estimate, before } = state, labels = [...state.arch.blocks.map((_, index) => String(index)), "outside"];
  const column = (one) => (one ? [...one.block_ms, one.outside_ms] : []);
  return { tooltip: { trigger: "axis", axisPointer: { type: "shadow" }, valueFormatter: (value) => latency(value, unit()) },
    xAxis: axis("block", { type: "category", data: labels }), yAxis: axis(unit() === "ms" ? "ms" : "million MACs", { type: "value", nameGap: 44, axisLabel: { formatter: (value) => number(value, 3) } }),
    series: [{ name: "this architecture", type: "bar", data: column(estimate) }, { name: label(), type: "bar", data: column(before) }] };
};

const COMPONENTS = [["Q and K", (n, e, b) => 2 * n * e * b.num_heads * b.qk_dim], ["V and projection", (n, e, b) => 2 * n * e * b.num_heads * b.v_dim],
  ["attention", (n, e, b) => n * n * b.num_heads * (b.qk_dim + b.v_dim)], ["MLP", (n, e, b) => 2 * n * e * b.mlp_dim]];
const component = (of, block) => of(tokens(state.arch), state.arch.embed_dim, block);

const partsOption = () => ({ tooltip: { trigger: "axis", axisPointer: { type: "shadow" }, valueFormatter: (value) => `${count(value)} MACs` },
  xAxis: axis("block", { type: "category", data: state.arch.blocks.map((_, index) => index) }), yAxis: axis("MACs", { type: "value", nameGap: 50, axisLabel: { formatter: count } }),
  series: COMPONENTS.map(([title, of]) => ({ name: title, type: "bar", stack: "macs", data: state.arch.blocks.map((block) => component(of, block)) })) });

// Parts of a block's time as the service tells them: closed forms know five, a table's differences three. Each has the
// colour that it has among the MACs.
const SHARES = [["qk_ms", "Q and K", 0], ["v_ms", "V and projection", 1], ["products_ms", "attention", 2], ["attn_ms", "attention branch", 0], ["mlp_ms", "MLP", 3], ["rest_ms", "rest", 4]];
const shares = () => {
  const found = state.estimate?.components;
  return SHARES.filter(([field]) => found?.[field] && !(field === "attn_ms" && found.qk_ms) && !(field === "rest_ms" && found.basis === "exact"));
};

const splitOption = () => ({ tooltip: { trigger: "axis", axisPointer: { type: "shadow" }, valueFormatter: (value) => latency(value, unit()) },
  xAxis: axis("block", { type: "category", data: state.arch.blocks.map((_, index) => index) }), yAxis: axis(unit() === "ms" ? "ms" : "million MACs", { type: "value", nameGap: 44, axisLabel: { formatter: (value) => number(value, 3) } }),
  series: shares().map(([field, title, colour]) => ({ name: title, type: "bar", stack: "ms", color: colours()[colour], data: state.estimate.components[field] })) });

const BASES = { exact: "exact", modelled: "modelled", differences: "estimated split" };
const showSplit = () => {
  const found = state.estimate?.components;
  $("split").hidden = !found;
  $("split-basis").textContent = found ? BASES[found.basis] : "";
  $("split-method").textContent = found ? `${found.method[0].toUpperCase()}${found.method.slice(1)}.`
    : state.estimate ? "This table times whole blocks, with one size of MLP or of H, QK and V: it knows no parts." : "";
  if (found) split.draw();
};

// All targets side by side

const everywhere = latest(async (signal) => {
  const asked = state.arch, fitting = state.targets.filter((target) => target.tokens === null || target.tokens === tokens(asked));
  const rows = await Promise.all(fitting.map(async (target) => {
    try {
      const { estimates: [now, before] } = await estimateOn(target.target, [asked, state.base], { signal });
      return { target, now, before };
    } catch (error) {
      if (!(error instanceof Problem) || error.status === 0) throw error;
      return { target, error };
    }
  }));
  const left = state.targets.length - fitting.length;
  $("targets").replaceChildren(table("Every target of this number of tokens", [
    { label: "target", text: true, of: ({ target }) => name(target.target) }, { label: "evidence", text: true, of: ({ target }) => badge(target.kind) },
    { label: "latency", of: ({ now, target }) => latency(now?.latency_ms, target.unit) }, { label: "nine in ten within", of: ({ now, target }) => interval(now?.interval_ms, target.unit) },
    { label: "speed-up", of: ({ now, before }) => (now ? `${number(before.latency_ms / now.latency_ms, 3)}×` : "–") },
    { label: "notes", text: true, of: ({ now, error }) => name(error ? error.detail : now.notes.join("; ")) }], rows),
    left ? h("p", { class: "quiet" }, `${left} more target${left > 1 ? "s are" : " is"} of another number of tokens.`) : "");
  const known = rows.filter(({ now, target }) => now && target.unit === "ms");
  if (known.length) new Chart({ label: "Speed-up over the base model on every target", low: true, make: ({ narrow }) => ({
    grid: { left: 16, right: 30, containLabel: true, top: 12 }, legend: { show: false }, tooltip: { trigger: "axis", valueFormatter: (value) => `${number(value, 3)}×` },
    xAxis: axis(`speed-up over ${label()}`, { type: "value", min: 0 }), yAxis: axis("", { type: "category", inverse: true, data: known.map(({ target }) => target.target), axisLabel: { width: narrow ? 110 : 260, overflow: "truncate" } }),
    series: [{ type: "bar", data: known.map(({ now, before }) => before.latency_ms / now.latency_ms), name: "speed-up" }] }) }).into($("targets-chart"));
});

// Taking it home

const snippets = () => {
  // ONNX takes torch, and so is made of architectures that the service knows.
  $("download-onnx").hidden = toText(state.arch) !== toText(state.base) || Boolean(parameters().get("saliency"));
  const body = JSON.stringify(state.arch), target = state.target.target;
  const texts = {
    json: JSON.stringify(state.arch, null, 2),
    curl: `curl -s ${location.origin}/v1/latency/estimate -H 'content-type: application/json' \\\n     -d '${JSON.stringify({ targets: [target], architectures: [state.arch] })}'`,
    python: `from vit.architecture import Architecture\nfrom vit.cost import macs, params\nfrom vit.model import VisionTransformer\n\narch = Architecture.from_json(r"""${body}""")\nprint(params(arch), macs(arch))\nmodel = VisionTransformer(arch)  # a torch module with random weights`,
  };
  $("snippets").replaceChildren(...[["json", "JSON"], ["curl", "curl"], ["python", "Python"]].map(([kind, title]) => h("details", {}, h("summary", {}, title),
    h("div", { class: "actions" }, h("button", { type: "button", "data-copy": kind, onclick: (event) => copy(texts[kind], event.currentTarget) }, `Copy ${title}`)), h("pre", { tabindex: 0, role: "region", "aria-label": title }, texts[kind]))));
};

const wireDownloads = () => {
  const stem = () => `vitfit-${(state.id ?? "architecture").slice(0, 12)}`;
  $("download-json").addEventListener("click", () => save(new Blob([JSON.stringify(state.arch, null, 2)], { type: "application/json" }), `${stem()}.json`));
  $("download-code").addEventListener("click", guarded(async () => save(await (await send("POST", "/v1/architectures/code", { body: state.arch })).blob(), `${stem()}.py`)));
  $("download-onnx").addEventListener("click", guarded(async (event) => {
    const button = event.currentTarget;
    button.disabled = true;
    try { await download(`/v1/architectures/${state.id}/onnx`, `${stem()}.onnx`); } finally { button.disabled = false; }
  }));
};

// Where the base comes from

const loadBase = async (presets, saliencies) => {
  const wanted = parameters(), id = wanted.get("id");
  const [kind, chosen] = wanted.get("saliency") ? ["saliency", wanted.get("saliency")] : id ? ["id", id] : ["preset", wanted.get("preset") ?? "deit-s"];
  const entries = [...saliencies.map((one) => [`saliency:${one.saliency}`, `${one.saliency} (model of this saliency)`]), ...presets.map((one) => [`preset:${one.preset}`, one.preset])];
  if (kind === "id") {
    const known = presets.find((one) => one.preset && one.id === id);
    if (!known) {
      const answer = await get(`/v1/architectures/${encodeURIComponent(id)}`);
      entries.unshift([`id:${id}`, id]);
      options($("base"), entries, `id:${id}`);
      return [answer.name ?? id.slice(0, 12), answer.architecture];
    }
    options($("base"), entries, `preset:${known.preset}`);
    return [known.preset, known.architecture];
  }
  const found = kind === "saliency" ? saliencies.find((one) => one.saliency === chosen) : presets.find((one) => one.preset === chosen);
  if (!found) {
    options($("base"), entries, "preset:deit-s");
    fail(new Problem({ status: 404, title: `No ${kind} of this name`, detail: `There is no ${kind} ${JSON.stringify(chosen)}; it may have been removed.`, hint: "Choose another one below" }));
    return ["deit-s", presets.find((one) => one.preset === "deit-s").architecture];
  }
  options($("base"), entries, `${kind}:${chosen}`);
  return [chosen, found.architecture];
};

const start = latest(async (signal) => {
  const wanted = parameters();
  const targets = state.targets.filter((target) => target.tokens === null || target.tokens === tokens(state.base));
  const asked = wanted.get("target");
  if (asked && !targets.some((one) => one.target === asked)) {
    try { targets.unshift(await get(`/v1/targets/${encodeURIComponent(asked)}`, { signal })); } catch (error) { signal.throwIfAborted(); fail(error); }
  }
  options($("target"), targets.map((one) => [one.target, `${one.target} · ${one.kind}`]), asked);
  state.target = targets.find((one) => one.target === $("target").value);
  state.arch = fromText(state.base, wanted.get("sizes")) ?? structuredClone(state.base);
  state.stairs = null;
  $("result").hidden = false;
  const pair = () => [state.arch, state.base];
  sizes = blockChart(pair, { of: "the base model" });
  times = new Chart({ label: "Latency by block and outside the blocks, beside the base model", make: timesOption, numbers: () => [[{ label: "part", of: (row) => row[0] }, { label: "this architecture", of: (row) => latency(row[1], unit()) }, { label: label(), of: (row) => latency(row[2], unit()) }],
    state.estimate ? [...state.estimate.block_ms.map((ms, index) => [`block ${index}`, ms, state.before.block_ms[index]]), ["outside", state.estimate.outside_ms, state.before.outside_ms]] : []] });
  parts = new Chart({ label: "MACs of an image by block and component", make: partsOption, numbers: () => [[{ label: "block", of: (_, index) => index }, ...COMPONENTS.map(([title, of]) => ({ label: title, of: (block) => count(component(of, block)) }))], state.arch.blocks] });
  split = new Chart({ label: "Latency by block and component", make: splitOption, numbers: () => [[{ label: "block", of: (row) => row }, ...shares().map(([field, title]) => ({ label: title, of: (row) => latency(state.estimate.components[field][row], unit()) })),
    { label: "whole block", of: (row) => latency(state.estimate.block_ms[row], unit()) }], shares().length ? state.arch.blocks.map((_, row) => row) : []] });
  await evaluate();
  signal.throwIfAborted();
  sizes.into($("sizes"));
  times.into($("times"));
  $("split").hidden = false; // a hidden chart has no size to be drawn in
  split.into($("split"));
  parts.into($("parts"));
  showCosts();
  showSliders();
  snippets();
  jobForm($("job"), { targets: state.targets, defaults: () => ({ target: state.target.target, saliency: wanted.get("saliency"), budget_ms: state.estimate ? Number(state.estimate.latency_ms.toPrecision(6)) : "" }) });
  await everywhere();
  signal.throwIfAborted();
  const saliency = wanted.get("saliency");
  if (saliency) {
    // The bound is an addition: where the frontier cannot be built the page shows without it.
    const answer = await send("POST", "/v1/architectures/staircase", { body: { saliency, target: state.target.target }, signal }).catch(() => null);
    signal.throwIfAborted();
    if (answer) { state.stairs = new Staircase(await answer.arrayBuffer()); showCosts(); }
  }
});

page(async () => {
  const [presets, saliencies, targets] = await Promise.all([get("/v1/presets"), get("/v1/saliencies"), get("/v1/targets")]);
  state.targets = sorted(targets.targets);
  notice();
  [state.baseName, state.base] = await loadBase(presets.presets, saliencies.saliencies);
  $("controls").hidden = false;
  wireDownloads();
  const go = (values) => { location.search = new URLSearchParams(Object.entries(values).filter(([, value]) => value)); };
  $("base").addEventListener("change", () => { const at = $("base").value.indexOf(":"); go({ [$("base").value.slice(0, at)]: $("base").value.slice(at + 1), target: $("target").value }); });
  $("target").addEventListener("change", () => { remember({ target: $("target").value }); start(); });
  $("reset").addEventListener("click", () => { state.arch = structuredClone(state.base); showSliders(); follow(); settle(); });
  await start();
});
