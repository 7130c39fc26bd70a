// Studies: what was tried, what came of it, and which parameter mattered.
import { Chart, axis, colours } from "./chart.js";
import { get } from "./client.js";
import { $, definitions, h, name, options, table } from "./dom.js";
import { number, percent } from "./format.js";
import { emptyBox, fail, latest, page, parameters, remember } from "./frame.js";

const state = { study: null, trials: [], share: 100 };

const spread = (values) => { const mean = values.reduce((a, b) => a + b, 0) / values.length; return values.reduce((sum, value) => sum + (value - mean) ** 2, 0); };
const numeric = (trials, field) => trials.every((trial) => typeof trial.values[field] === "number");
const fieldsOf = (trials) => [...new Set(trials.flatMap((trial) => Object.keys(trial.values)))].filter((field) => trials.every((trial) => field in trial.values));

// How much of an objective's variance one parameter explains alone: the correlation ratio over up to four groups, less what as
// many groups of anything would explain by chance.
export const importance = (trials, field, objective) => {
  const scores = trials.map((trial) => trial.metrics[objective]), total = spread(scores);
  let groups = trials.map((trial) => String(trial.values[field]));
  if (numeric(trials, field) && new Set(groups).size > 4) {
    const order = trials.map((trial) => trial.values[field]).sort((a, b) => a - b), edges = [0.25, 0.5, 0.75].map((at) => order[Math.floor(at * order.length)]);
    groups = trials.map((trial) => String(edges.filter((edge) => trial.values[field] >= edge).length));
  }
  const kinds = [...new Set(groups)], n = trials.length, k = kinds.length;
  if (k < 2 || n <= k || total === 0) return 0;
  const within = kinds.reduce((sum, kind) => sum + spread(scores.filter((_, at) => groups[at] === kind)), 0);
  return Math.max(1 - (within / (n - k)) / (total / (n - 1)), 0);
};

const smaller = (objective) => !/accuracy|kept|top1|throughput|speedup/.test(objective);
const better = (objective, a, b) => (smaller(objective) ? a.metrics[objective] - b.metrics[objective] : b.metrics[objective] - a.metrics[objective]);
const best = () => new Set(state.study.best.map((trial) => trial.number));

// The best k % by the chosen objective.
const shown = () => {
  const objective = $("objective").value, ordered = state.trials.toSorted((a, b) => better(objective, a, b));
  return ordered.slice(0, Math.max(Math.ceil((state.share / 100) * ordered.length), 1));
};

const short = (value) => number(value, 3);

const draw = () => {
  const trials = shown(), objective = $("objective").value, fields = fieldsOf(trials);
  const metrics = Object.keys(trials[0].metrics), leaders = best();
  $("count").textContent = `${trials.length} of ${state.trials.length} finished trials, from the best ${objective} in orange to the worst in blue.`;
  const values = (trial) => [...fields.map((field) => (typeof trial.values[field] === "boolean" ? String(trial.values[field]) : trial.values[field])), ...metrics.map((metric) => trial.metrics[metric])];
  const dims = [...fields.map((field) => [field, numeric(trials, field)]), ...metrics.map((metric) => [metric, true])];
  const at = dims.findIndex(([field]) => field === objective), scores = trials.map((trial) => trial.metrics[objective]);
  const columns = [{ label: "trial", of: (trial) => trial.number }, ...dims.map(([field], index) => ({ label: field, text: !dims[index][1], of: (trial) => { const value = values(trial)[index]; return typeof value === "number" ? number(value) : name(value); } }))];
  new Chart({ label: `Parallel coordinates of ${trials.length} trials`, make: (_, hues = colours(), text = getComputedStyle(document.body).color) => ({ legend: { show: false }, tooltip: { formatter: (item) => `trial ${trials[item.dataIndex].number}\n${dims.map(([field], index) => `${field}: ${values(trials[item.dataIndex])[index]}`).join("\n")}` },
    parallel: { left: 50, right: 60, top: 40, bottom: 30 },
    parallelAxis: dims.map(([field, isNumber], index) => ({ dim: index, name: field.length > 18 ? `${field.slice(0, 17)}…` : field, nameTextStyle: { color: text }, axisLabel: { color: text, formatter: (value) => (typeof value === "number" ? number(value, 3) : value) }, axisLine: { lineStyle: { color: text } },
      ...(isNumber ? { type: "value", scale: true } : { type: "category", data: [...new Set(trials.map((trial) => String(values(trial)[index])))] }) })),
    visualMap: { show: false, dimension: at, min: Math.min(...scores), max: Math.max(...scores), inRange: { color: smaller(objective) ? [hues[1], hues[0]] : [hues[0], hues[1]] } },
    series: [{ type: "parallel", lineStyle: { width: 1.5, opacity: 0.7 }, data: trials.map((trial) => values(trial).map((value, index) => (dims[index][1] ? value : String(value)))) }] }), numbers: () => [columns, trials] }).into($("parallel"));
  const [x, y] = [$("x").value, objective];
  new Chart({ label: `Trials by ${x} and ${y}`, make: (_, hues = colours()) => ({ tooltip: { formatter: (item) => `trial ${item.data.number}\n${x} ${number(item.value[0])}\n${y} ${number(item.value[1])}` }, xAxis: axis(x, { type: "value", scale: true, axisLabel: { formatter: short } }), yAxis: axis(y, { type: "value", scale: true, nameGap: 46, axisLabel: { formatter: short } }),
    series: [["trials", (trial) => !leaders.has(trial.number), hues[0], "circle"], ["best", (trial) => leaders.has(trial.number), hues[1], "diamond"]].map(([label, of, color, symbol]) => ({ name: label, type: "scatter", symbol, symbolSize: label === "best" ? 14 : 8, itemStyle: { color },
      data: trials.filter(of).map((trial) => ({ number: trial.number, value: [trial.metrics[x], trial.metrics[y]] })) })) }), numbers: () => [[{ label: "trial", of: (trial) => trial.number }, { label: x, of: (trial) => number(trial.metrics[x]) }, { label: y, of: (trial) => number(trial.metrics[y]) }], trials] }).into($("scatter"));
  const found = fieldsOf(state.trials).map((field) => [field, importance(state.trials, field, objective)]).sort((a, b) => a[1] - b[1]);
  new Chart({ label: `Share of the variance of ${objective} that a parameter explains alone`, low: true, make: () => ({ legend: { show: false }, grid: { left: 16, top: 12, containLabel: true }, tooltip: { trigger: "axis", valueFormatter: percent }, xAxis: axis(`variance of ${objective} explained`, { type: "value", min: 0, max: 1, axisLabel: { formatter: (value) => percent(value, 0) } }),
    yAxis: axis("", { type: "category", data: found.map(([field]) => field) }), series: [{ type: "bar", data: found.map(([, value]) => value) }] }), numbers: () => [[{ label: "parameter", text: true, of: ([field]) => name(field) }, { label: "explains", of: ([, value]) => percent(value) }], found.toReversed()] }).into($("importance"));
  $("best").replaceChildren(table(`Trials that none beats in ${state.study.objectives.join(" and ")} at once`, [...columns, { label: "architecture", text: true, of: (trial) => h("a", { href: `/architecture?${new URLSearchParams({ id: trial.architecture_id })}` }, h("code", {}, trial.architecture_id.slice(0, 10))) }], state.study.best.filter((trial) => fields.every((field) => field in trial.values))));
};

const show = latest(async (signal, wanted) => {
  remember({ study: wanted });
  const study = await get(`/v1/studies/${encodeURIComponent(wanted)}`, { signal }), trials = [];
  for (let after = -1; after !== null;) {
    const some = await get(`/v1/studies/${encodeURIComponent(wanted)}/trials?limit=1000&after=${after}`, { signal });
    trials.push(...some.trials);
    after = some.next;
  }
  Object.assign(state, { study, trials });
  $("detail").hidden = false;
  $("title").replaceChildren(name(wanted));
  $("facts").replaceChildren(definitions([["objectives", state.study.objectives.join(", ")], ["trials", Object.entries(state.study.states).filter(([, count]) => count).map(([of, count]) => `${count} ${of}`).join(", ") || "none"]]),
    h("details", {}, h("summary", {}, "What it asks"), h("pre", { tabindex: 0, role: "region", "aria-label": "What the study asks" }, JSON.stringify(state.study.asks, null, 2))));
  $("charts").hidden = !state.trials.length;
  $("none").replaceChildren(...(state.trials.length ? [] : [emptyBox("No finished trials yet", "Trials show here as soon as one is finished.", h("a", { class: "button", href: "/jobs?kind=study" }, "See its jobs"))]));
  if (!state.trials.length) return;
  const metrics = Object.keys(state.trials[0].metrics);
  options($("objective"), metrics.map((one) => [one, one]), state.study.objectives.at(-1));
  options($("x"), metrics.map((one) => [one, one]), state.study.objectives.length > 1 ? state.study.objectives[0] : metrics.find((one) => one !== $("objective").value) ?? metrics[0]);
  draw();
});

page(async () => {
  const { studies } = await get("/v1/studies");
  for (const id of ["objective", "x"]) $(id).addEventListener("change", draw);
  $("share").addEventListener("input", () => { state.share = Number($("share").value); $("share-said").textContent = `${state.share} %`; draw(); });
  const wanted = parameters().get("study");
  if (!studies.length && !wanted) {
    $("none").replaceChildren(emptyBox("No studies yet", "A study searches shapes or recipes that have no closed form, with Optuna:", h("pre", {}, "vitfit study run shapes.yaml"), "or POST /v1/jobs with kind “study”."));
    return;
  }
  options($("study"), studies.map((one) => [one.study, one.study]), wanted);
  $("controls").hidden = !studies.length;
  $("study").addEventListener("change", () => show($("study").value));
  if (wanted && !studies.some((one) => one.study === wanted)) { await get(`/v1/studies/${encodeURIComponent(wanted)}`).catch(fail); return; }
  await show($("study").value);
});
