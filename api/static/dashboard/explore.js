// Explore: one saliency on one target, every budget at once. The whole frontier is here, so a budget that is dragged needs
// no request.
import { UNITS, Staircase, macs, params, toText, tokens } from "./arch.js";
import { blockChart } from "./blocks.js";
import { Chart, axis, colours } from "./chart.js";
import { Problem, get, post, send } from "./client.js";
import { $, definitions, h, name, options, perFrame, table, tiles } from "./dom.js";
import { count, interval, latency, number, percent } from "./format.js";
import { badge, sorted } from "./targets.js";
import { emptyBox, fail, guarded, latest, notice, page, parameters, problemBox, remember } from "./frame.js";

const LEVELS = [["kept", "Saliency kept"], ["lost", "Saliency given up, logarithmic"], ["params", "Parameters"], ["macs", "MACs"]];
const state = { stairs: null, index: 0, budget: 0, level: "kept", entries: [], pins: [], target: null, dense: null };
let frontier, blocks;

const unit = () => state.stairs.document.unit;
const bounds = () => state.stairs.document.provenance.interval;
const band = (ms) => (bounds() ? bounds().map((factor) => factor * ms) : null);

const level = (index) => {
  if (state.level === "kept") return 100 * state.stairs.kept[index];
  if (state.level === "lost") return state.stairs.kept[index] < 1 ? 100 * (1 - state.stairs.kept[index]) : null;
  const arch = state.stairs.architecture(index);
  return state.level === "params" ? params(arch) : macs(arch);
};

// What is published and what is in the catalogue, where this target has a latency for it; accuracy where it is known.
const loadEntries = async (signal, target) => {
  const found = [];
  for (const kind of ["published", "preset"]) {
    const answer = await post("/v1/catalogue/find", { target, kind, limit: 200, order: "latency" }, { signal });
    found.push(...answer.entries.filter((entry) => entry.latency_ms !== null));
  }
  return [...found, ...await bySpeedup(signal, found)];
};

// Shapes that were never published (NViT's), or have another number of tokens (ReViT's), have a place where their speed-up over DeiT-B was printed for this device.
const bySpeedup = async (signal, found) => {
  const device = state.target?.device, dense = found.find((entry) => entry.name === "deit-b-distilled" || entry.name === "deit-b");
  if (!device || !dense) return [];
  const { published } = await get("/v1/presets", { signal });
  return published.filter((row) => row.speedup[device] && !found.some((entry) => entry.name === row.name)).map((row) => ({ name: row.name, kind: "published", architecture_id: null,
    latency_ms: dense.latency_ms / row.speedup[device], params: row.params_m * 1e6, macs: row.macs_g === null ? null : row.macs_g * 1e9,
    source: `${row.source}; placed by its printed speed-up over DeiT-B, ${row.speedup[device]}×`, accuracies: [{ data: "imagenet-1k", value: row.top1 / 100, evidence: "published", recipe: "" }] }));
};

const accuracyOf = (entry) => entry.accuracies.find((one) => one.data === "imagenet-1k") ?? entry.accuracies[0] ?? null;

const frontierOption = (chart) => {
  const { stairs } = state, hues = colours(), lost = state.level === "lost", kept = state.level === "kept" || lost;
  state.sampled = stairs.sample(Math.max(chart.canvas.clientWidth, 300));
  const line = state.sampled.map((index) => [stairs.ms[index], level(index)]).filter(([, y]) => y !== null);
  const marked = state.entries.map((entry) => ({ entry, accuracy: accuracyOf(entry) }))
    .map((one) => ({ ...one, value: [one.entry.latency_ms, kept ? (one.accuracy ? 100 * one.accuracy.value : null) : one.entry[state.level]] }))
    .filter(({ value }) => value[1] !== null);
  const { narrow } = chart, ends = bounds();
  const high = Math.max(stairs.document.full_ms * (ends ? ends[1] : 1), ...(marked.map(({ value }) => value[0]).filter((ms) => ms < 3 * stairs.document.full_ms)));
  const scatter = (kind, symbol, colour, label) => ({ name: label, type: "scatter", symbol, symbolSize: 12, yAxisIndex: kept ? 1 : 0, z: 4, itemStyle: { color: colour, opacity: 1 },
    data: marked.filter(({ entry }) => entry.kind === kind).map(({ entry, accuracy, value }) => ({ value, name: entry.name, entry, accuracy, label: { position: value[0] > 0.75 * high ? "left" : "right" } })),
    label: { show: !narrow, formatter: "{b}", position: "right", minMargin: 6, color: colour, fontSize: 11, textBorderWidth: 0 }, labelLayout: { hideOverlap: true } });
  const shown = [scatter("published", "diamond", hues[1], kept ? "published, top-1 (right)" : "published"), scatter("preset", "rect", hues[2], kept ? "preset, top-1 (right)" : "preset")].filter((one) => one.data.length);
  const area = ends && { name: "nine in ten lie here", type: "custom", silent: true, z: 1, data: [[0, 0]], itemStyle: { color: hues[0], opacity: 0.15 }, tooltip: { show: false },
    renderItem: (_, api) => ({ type: "polygon", shape: { points: [...line.map(([ms, y]) => api.coord([ms * ends[0], y])), ...line.toReversed().map(([ms, y]) => api.coord([ms * ends[1], y]))] },
      style: { fill: hues[0], opacity: 0.15 }, clipPath: null }), clip: true };
  const lowest = 100 * stairs.kept[0], floor = lowest > 50 ? Math.floor(lowest / 5) * 5 : 0;
  const amounts = { axisLabel: { formatter: (value) => (kept ? `${number(value, 3)}` : count(value)) } };
  return {
    grid: { right: kept && shown.length ? 62 : 24, left: narrow ? 54 : 62 },
    tooltip: { trigger: "item", formatter: (item) => {
      const { entry, accuracy } = item.data ?? {};
      if (!entry) return dimensions(state.stairs.best(item.value[0]));
      return [entry.name, latency(entry.latency_ms, unit()), accuracy ? `${percent(accuracy.value)} top-1, ${accuracy.evidence}` : "accuracy not known", `${count(entry.params)} parameters, ${count(entry.macs)} MACs`, entry.source].join("\n");
    } },
    xAxis: axis(unit() === "ms" ? `latency, ms a batch${state.target ? ` of ${state.target.batch}` : ""}` : "million MACs an image", { type: "value", min: 0, max: Math.ceil(high * 1.02 * 100) / 100, axisLabel: { formatter: (value) => number(value, 3), showMaxLabel: false } }),
    yAxis: [axis(LEVELS.find(([value]) => value === state.level)[1].replace(", logarithmic", "") + (kept ? ", %" : ""), { type: lost ? "log" : "value", scale: !kept, min: kept && !lost ? floor : undefined, max: kept && !lost ? 100 : undefined, nameGap: narrow ? 38 : 44, ...amounts }),
      ...(kept && shown.length ? [axis("ImageNet top-1, %", { type: "value", scale: true, boundaryGap: ["6%", "2%"], nameGap: 44, splitLine: { show: false } })] : [])],
    series: [...(area ? [area] : []),
      { name: "frontier", type: "line", step: state.level === "kept" ? "end" : false, showSymbol: false, symbolSize: 7, data: line, z: 3, lineStyle: { width: 2.5 }, triggerLineEvent: false },
      { name: "uncut model", type: "scatter", symbol: "circle", symbolSize: 11, z: 5, itemStyle: { color: hues[4] }, data: lost ? [] : [{ value: [stairs.document.full_ms, kept ? 100 : stairs.document.whole[state.level]] }], tooltip: { formatter: () => `uncut model\n${latency(stairs.document.full_ms, unit())}` } },
      ...shown,
      ...(state.pins.length ? [{ name: "pinned", type: "scatter", symbol: "pin", symbolSize: 22, z: 6, itemStyle: { color: hues[5] }, data: state.pins.map((index) => [stairs.ms[index], level(index)]), tooltip: { formatter: (item) => dimensions(state.pins[item.dataIndex]) } }] : [])],
  };
};

const dimensions = (index) => {
  const arch = state.stairs.architecture(index);
  const range = (field) => { const sizes = arch.blocks.map((block) => block[field]); return `${Math.min(...sizes)} to ${Math.max(...sizes)}`; };
  return [`${latency(state.stairs.ms[index], unit())}, keeps ${percent(state.stairs.kept[index])}`, `EMB ${arch.embed_dim}`, ...UNITS.map(([field, , short]) => `${short} ${range(field)}`), `${count(params(arch))} parameters, ${count(macs(arch))} MACs`].join("\n");
};

// The budget line: a slider over the chart, for pointers and keys.
const line = () => $("budget-line");

const placeLine = () => {
  if (!frontier?.chart || !state.stairs) return;
  const grid = frontier.chart.getModel().getComponent("grid").coordinateSystem.getRect();
  const x = frontier.chart.convertToPixel({ xAxisIndex: 0 }, state.budget), element = line();
  element.style.top = `${grid.y}px`;
  element.style.height = `${grid.height}px`;
  element.style.left = "0";
  element.style.transform = `translateX(${Math.min(Math.max(x, grid.x), grid.x + grid.width)}px)`;
};

const range = () => [state.stairs.document.smallest_ms, state.stairs.document.full_ms];

const showBest = () => {
  const { stairs, index, budget } = state, { document: about } = stairs, ms = stairs.ms[index], arch = stairs.architecture(index);
  placeLine();
  const element = line(), [low, high] = range();
  element.setAttribute("aria-valuemin", low.toFixed(3));
  element.setAttribute("aria-valuemax", high.toFixed(3));
  element.setAttribute("aria-valuenow", budget.toFixed(3));
  element.setAttribute("aria-valuetext", `${latency(budget, unit())}: keeps ${percent(stairs.kept[index])}, EMB ${arch.embed_dim}`);
  if (document.activeElement !== $("budget")) $("budget").value = Number(budget.toPrecision(5));
  $("best-tiles").replaceChildren(tiles([
    [about.kind === "modelled" ? "latency, modelled" : unit() === "ms" ? "latency" : "MACs", latency(ms, unit()), bounds() ? interval(band(ms), unit()) : `budget ${latency(budget, unit())}`],
    ["speed-up", `${number(about.full_ms / ms, 3)}×`, `uncut ${latency(about.full_ms, unit())}`],
    ["saliency kept", percent(stairs.kept[index], 2), `nothing this fast keeps more than ${percent(stairs.bound[index], 2)}`],
    ["EMB", String(arch.embed_dim), `of ${about.whole.architecture.embed_dim}`],
    ["parameters", count(params(arch)), `of ${count(about.whole.params)}`],
    ["MACs", count(macs(arch)), `of ${count(about.whole.macs)}`]]));
  blocks.follow();
};

export const drag = perFrame(() => showBest());

const setBudget = (budget) => {
  const [low, high] = range();
  state.budget = Math.min(Math.max(budget, low), high);
  state.index = state.stairs.best(state.budget);
  drag();
};

const settle = () => {
  remember({ budget_ms: Number(state.budget.toPrecision(6)) });
  $("open").href = `/architecture${search()}`;
};

const search = () => `?${new URLSearchParams({ saliency: $("saliency").value, target: $("target").value, sizes: toText(state.stairs.architecture(state.index)), budget_ms: Number(state.budget.toPrecision(6)) })}`;

const wireLine = () => {
  const element = line(), at = (event) => frontier.chart.convertFromPixel({ xAxisIndex: 0 }, event.clientX - frontier.canvas.getBoundingClientRect().left);
  element.addEventListener("pointerdown", (event) => { element.setPointerCapture(event.pointerId); element.focus(); event.preventDefault(); });
  element.addEventListener("pointermove", (event) => { if (element.hasPointerCapture(event.pointerId)) setBudget(at(event)); });
  element.addEventListener("pointerup", settle);
  element.addEventListener("keydown", (event) => {
    const [low, high] = range(), step = (high - low) / 100;
    const moves = { ArrowLeft: -step, ArrowDown: -step, ArrowRight: step, ArrowUp: step, PageDown: -10 * step, PageUp: 10 * step };
    const to = event.key === "Home" ? low : event.key === "End" ? high : event.key in moves ? state.budget + moves[event.key] : null;
    if (to === null) return;
    event.preventDefault();
    setBudget(to);
    settle();
  });
  $("budget").addEventListener("input", () => { if (Number($("budget").value) > 0) { setBudget(Number($("budget").value)); settle(); } });
};

const showPins = () => {
  const pins = state.pins.map((index) => ({ index, arch: state.stairs.architecture(index) }));
  $("pins-section").hidden = !pins.length;
  const mean = (arch, field) => number(arch.blocks.reduce((sum, block) => sum + block[field], 0) / arch.blocks.length, 3);
  $("pins").replaceChildren(table("Pinned architectures; sizes of blocks as means", [
    { label: "latency", of: ({ index }) => latency(state.stairs.ms[index], unit()) }, { label: "kept", of: ({ index }) => percent(state.stairs.kept[index], 2) },
    { label: "params", of: ({ arch }) => count(params(arch)) }, { label: "MACs", of: ({ arch }) => count(macs(arch)) }, { label: "EMB", of: ({ arch }) => arch.embed_dim },
    ...UNITS.map(([field, long]) => ({ label: long, of: ({ arch }) => mean(arch, field) })),
    { label: "", of: ({ index }) => h("button", { type: "button", class: "small", "aria-label": `Go to ${latency(state.stairs.ms[index], unit())}`, onclick: () => { setBudget(state.stairs.ms[index]); settle(); } }, "go") },
    { label: "", of: ({ index }) => h("button", { type: "button", class: "small", "aria-label": `Unpin ${latency(state.stairs.ms[index], unit())}`, onclick: () => { state.pins = state.pins.filter((one) => one !== index); showPins(); frontier.draw(); } }, "unpin") }], pins));
  if (pins.length) comparison(pins);
};

const comparison = (pins) => {
  const select = $("pin-unit"), field = select.value || "mlp_dim";
  const [, long] = UNITS.find(([value]) => value === field);
  new Chart({ label: `${long} by block of every pinned architecture`, low: true,
    make: () => ({ tooltip: { trigger: "axis" }, xAxis: axis("block", { type: "category", data: pins[0].arch.blocks.map((_, index) => index) }), yAxis: axis(long, { type: "value", min: 0, nameGap: 44 }),
      series: pins.map(({ index, arch }) => ({ name: latency(state.stairs.ms[index], unit()), type: "line", symbolSize: 6, data: arch.blocks.map((block) => block[field]) })) }),
    numbers: () => [[{ label: "block", of: (_, index) => index }, ...pins.map(({ index, arch }) => ({ label: latency(state.stairs.ms[index], unit()), of: (_, at) => arch.blocks[at][field] }))], pins[0].arch.blocks] }).into($("pins-chart"));
};

// One architecture within a budget on every one of several targets: no frontier has these, so the service searches, for seconds.
const together = guarded(async () => {
  const said = $("together-said"), button = $("together"), more = Number($("together-budget").value);
  button.disabled = true;
  said.replaceChildren(h("p", { role: "status" }, "Searching, for some seconds…"));
  try {
    const targets = [{ target: $("target").value, budget_ms: state.budget }, { target: $("together-target").value, budget_ms: more }];
    const found = await post("/v1/architectures/search", { saliency: $("saliency").value, targets });
    const open = `/architecture?${new URLSearchParams({ saliency: found.saliency, target: found.target, sizes: toText(found.architecture) })}`;
    said.replaceChildren(tiles([["saliency kept", percent(found.kept, 2), found.bound === null ? null : `nothing within both keeps more than ${percent(found.bound, 2)}`], ["parameters", count(found.params)], ["MACs", count(found.macs)], ["EMB", String(found.architecture.embed_dim)]]),
      table("Latency on every target", [{ label: "target", text: true, of: (one) => name(one.target) }, { label: "evidence", text: true, of: (one) => badge(one.kind) }, { label: "latency", of: (one) => latency(one.latency_ms, one.unit) }, { label: "budget", of: (one) => latency(one.budget_ms, one.unit) }, { label: "nine in ten within", of: (one) => interval(one.interval_ms, one.unit) }], found.targets),
      h("p", {}, h("a", { href: open }, "Open this architecture")));
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    said.replaceChildren(problemBox(error));
  } finally { button.disabled = false; }
});

const about = () => {
  const { document: known } = state.stairs, { provenance } = known;
  $("evidence").replaceChildren(h("p", {}, badge(known.kind), " ", name(provenance.device || known.target),
    bounds() ? `. Nobody timed this here: nine in ten published latencies lay between ${number(bounds()[0])} and ${number(bounds()[1])} times the estimate; the shaded band shows it.` : ""),
    h("details", {}, h("summary", {}, "What these latencies rest on"), definitions([["method", provenance.method], ["made", provenance.created_at], ["source", provenance.source], ...Object.entries(provenance.versions), ...Object.entries(provenance.quality).map(([field, value]) => [field.replaceAll("_", " "), number(value)])])));
  $("published").replaceChildren(state.entries.length
    ? h("details", {}, h("summary", {}, `Published models and presets on this target (${state.entries.length})`), table("Published models and presets", [
        { label: "name", text: true, of: (entry) => (entry.architecture_id ? h("a", { href: `/architecture?${new URLSearchParams({ id: entry.architecture_id, target: $("target").value })}` }, name(entry.name)) : name(entry.name)) },
        { label: "kind", text: true, of: (entry) => entry.kind }, { label: "latency", of: (entry) => latency(entry.latency_ms, unit()) },
        { label: "top-1", of: (entry) => percent(accuracyOf(entry)?.value) }, { label: "params", of: (entry) => count(entry.params) }, { label: "MACs", of: (entry) => count(entry.macs) },
        { label: "source", text: true, of: (entry) => name(accuracyOf(entry)?.recipe ? `${entry.source}; ${accuracyOf(entry).recipe}` : entry.source) }], state.entries))
    : h("p", { class: "quiet" }, "No published model can be placed on this target: it is of other images or another number of tokens."));
};

const show = latest(async (signal) => {
  const saliency = $("saliency").value, target = $("target").value;
  notice(h("p", { class: "quiet", role: "status" }, "Loading the frontier; the first time it is built, which takes some seconds."));
  $("result").hidden = true;
  remember({ saliency, target });
  const answer = await send("POST", "/v1/architectures/staircase", { body: { saliency, target }, signal });
  state.stairs = new Staircase(await answer.arrayBuffer());
  state.pins = [];
  state.entries = [];
  notice();
  $("result").hidden = false;
  state.level = $("level").value;
  const wanted = Number(parameters().get("budget_ms")), [low, high] = range();
  state.budget = wanted >= low && wanted <= high ? wanted : (low + high) / 2;
  state.index = state.stairs.best(state.budget);
  if (!frontier) {
    frontier = new Chart({ label: "Latency against saliency kept: the frontier of every budget", make: frontierOption, numbers: () => {
      const step = Math.max(Math.floor(state.stairs.length / 100), 1), rows = Array.from({ length: Math.ceil(state.stairs.length / step) }, (_, row) => row * step);
      return [[{ label: "latency", of: (index) => latency(state.stairs.ms[index], unit()) }, { label: "kept", of: (index) => percent(state.stairs.kept[index], 2) },
        { label: "bound", of: (index) => percent(state.stairs.bound[index], 2) }, { label: "EMB", of: (index) => state.stairs.row(index)[0] },
        { label: "params", of: (index) => count(params(state.stairs.architecture(index))) }, { label: "MACs", of: (index) => count(macs(state.stairs.architecture(index))) }], rows];
    } });
    frontier.onResize = placeLine;
    frontier.onDrawn = placeLine;
    blocks = blockChart(() => [state.stairs.architecture(state.index), state.stairs.document.whole.architecture], { low: true });
    frontier.into($("frontier"));
    frontier.plot.append(line());
    line().hidden = false;
    blocks.into($("blocks"));
    wireLine();
  } else {
    frontier.draw();
    blocks.draw();
  }
  $("answers").textContent = `${state.stairs.length.toLocaleString("en")} architectures, each the best for its budget.`;
  setBudget(state.budget);
  showBest();
  settle();
  showPins();
  about();
  performance.mark("vitfit-first-picture");
  // They are an addition, and asked for when the frontier is there: it shows without.
  const entries = await loadEntries(signal, target).catch(() => []);
  signal.throwIfAborted();
  if (!entries.length) return;
  state.entries = entries;
  frontier.draw();
  about();
});

page(async () => {
  const [saliencies, targets] = await Promise.all([get("/v1/saliencies"), get("/v1/targets")]);
  const broken = [...saliencies.unreadable, ...targets.unreadable.filter((file) => !file.error.startsWith("not used"))];
  if (broken.length) $("broken").replaceChildren(h("details", {}, h("summary", {}, `${broken.length} file${broken.length > 1 ? "s" : ""} of the library cannot be used`), table("Files that cannot be used", [{ label: "file", text: true, of: (row) => name(row.file) }, { label: "why", text: true, of: (row) => name(row.error) }], broken)));
  if (!saliencies.saliencies.length) {
    notice(emptyBox("No saliency yet", "A frontier starts from how much each unit of a model matters. Compute it for a model of yours:",
      h("pre", {}, "vitfit import deit_small_patch16_224 --weights my.pth -o dense.safetensors\nvitfit rebase dense.safetensors -d path/to/images -o rebased.safetensors\nvitfit saliency rebased.safetensors -d path/to/images -c gates --labels model -o my.safetensors"),
      "and put the last file into the folder saliencies/ of the data folder. Or see the presets:", h("a", { class: "button", href: "/architecture" }, "Open an architecture")));
    return;
  }
  const wanted = parameters();
  options($("saliency"), saliencies.saliencies.map((one) => [one.saliency, one.saliency]), wanted.get("saliency"));
  targets.targets = sorted(targets.targets);
  const labels = () => {
    const whole = saliencies.saliencies.find((one) => one.saliency === $("saliency").value);
    const long = targets.targets.filter((target) => target.tokens === null || target.tokens === tokens(whole.architecture));
    const rest = targets.targets.filter((target) => !long.includes(target));
    const label = (target) => `${target.target} · ${target.kind}`;
    return [...long.map((target) => [target.target, label(target)]), ...rest.map((target) => [target.target, `${label(target)} · another number of tokens`])];
  };
  const asked = wanted.get("target"), known = labels();
  if (asked && !known.some(([value]) => value === asked)) {
    // Not in the list: a modelled device at another batch, or gone. The service knows, and says so.
    await get(`/v1/targets/${encodeURIComponent(asked)}`).then(() => known.unshift([asked, asked]), fail);
    if (known[0][0] !== asked) { $("controls").hidden = false; options($("target"), known, known[0][0]); wire(targets, labels); return; }
  }
  options($("target"), known, asked);
  options($("level"), LEVELS, wanted.get("level"));
  $("controls").hidden = false;
  wire(targets, labels);
  state.target = targets.targets.find((one) => one.target === $("target").value);
  await show();
});

function wire(targets, labels) {
  if (!$("level").options.length) options($("level"), LEVELS);
  options($("pin-unit"), UNITS.map(([field, long]) => [field, long]), "mlp_dim");
  const choose = () => { state.target = targets.targets.find((one) => one.target === $("target").value); remember({ budget_ms: null }); show(); };
  $("saliency").addEventListener("change", () => { options($("target"), labels(), $("target").value); choose(); });
  $("target").addEventListener("change", choose);
  $("level").addEventListener("change", () => { state.level = $("level").value; remember({ level: state.level }); if (state.stairs) frontier.draw(); });
  $("pin").addEventListener("click", () => { if (!state.pins.includes(state.index)) state.pins.push(state.index); showPins(); frontier.draw(); });
  $("pin-unit").addEventListener("change", showPins);
  $("together").addEventListener("click", together);
  options($("together-target"), labels());
}
