// Runs: what happened between the start and the end. Of a finished job, or of a file of a run folder, which stays here.
import { UNITS } from "./arch.js";
import { blockChart } from "./blocks.js";
import { Chart, axis, colours } from "./chart.js";
import { Problem, get, send } from "./client.js";
import { $, definitions, h, name, options, table } from "./dom.js";
import { latency, number, percent } from "./format.js";
import { emptyBox, latest, page, parameters, problemBox, remember } from "./frame.js";

const KINDS = ["prune", "finetune", "sparsify", "compress"];
const lines = (text) => text.split("\n").filter((line) => line.trim()).map((line) => JSON.parse(line));
const into = (chart) => { const place = h("section", {}); $("charts").append(place); chart.into(place); };
const title = (text) => $("charts").append(h("h3", {}, text));

// Loss, learning rate and accuracy by step.
const training = (reports) => {
  const seen = reports.filter((one) => one.accuracy !== null && one.accuracy !== undefined);
  title("Training");
  into(new Chart({ label: `Training loss and learning rate over ${reports.length} reports`, make: () => ({ grid: { right: 70 }, tooltip: { trigger: "axis", valueFormatter: (value) => number(value, 4) }, xAxis: axis("step", { type: "value", min: 0, max: "dataMax" }),
    yAxis: [axis("loss", { type: "value", scale: true, nameGap: 46 }), axis("learning rate", { type: "value", nameGap: 54, splitLine: { show: false }, axisLabel: { formatter: (value) => value.toPrecision(2) } })],
    series: [{ name: "loss", type: "line", showSymbol: reports.length < 40, data: reports.map((one) => [one.step, one.loss]) }, { name: "learning rate", type: "line", yAxisIndex: 1, showSymbol: false, lineStyle: { type: "dashed" }, itemStyle: { color: colours()[1] }, data: reports.map((one) => [one.step, one.lr]) }] }),
    numbers: () => [[{ label: "step", of: (one) => number(one.step, 9) }, { label: "loss", of: (one) => number(one.loss) }, { label: "learning rate", of: (one) => one.lr.toPrecision(3) }, { label: "accuracy", of: (one) => percent(one.accuracy) }], reports] }));
  if (!seen.length) return;
  into(new Chart({ label: "Accuracy on held-out images by step", low: true, make: () => ({ tooltip: { trigger: "axis", valueFormatter: (value) => `${number(value)} %` }, xAxis: axis("step", { type: "value", min: 0, max: "dataMax" }), yAxis: axis("accuracy, %", { type: "value", scale: true, nameGap: 46 }),
    series: [{ name: "accuracy", type: "line", data: seen.map((one) => [one.step, 100 * one.accuracy]) }] }), numbers: () => [[{ label: "step", of: (one) => one.step }, { label: "accuracy", of: (one) => percent(one.accuracy) }], seen] }));
};

// The way down: latency by round, and what is left of every size.
const pruning = (header, rounds) => {
  const unit = header.target === "macs" ? "million MACs" : "ms", archs = rounds.map((one) => one.architecture), first = archs[0];
  const mean = (arch, field) => (field === "embed_dim" ? arch.embed_dim : arch.blocks.reduce((sum, block) => sum + block[field], 0) / arch.blocks.length);
  const fields = [["embed_dim", "EMB"], ...UNITS.map(([field, , short]) => [field, short])], label = (_, index) => index + 1;
  title("Pruning, round by round");
  into(new Chart({ label: "Latency, and the budget of every round", make: () => ({ tooltip: { trigger: "axis", valueFormatter: (value) => latency(value, unit) }, xAxis: axis("round", { type: "category", data: rounds.map(label) }), yAxis: axis(unit, { type: "value", min: 0, nameGap: 46 }),
    series: [{ name: "latency", type: "line", data: rounds.map((one) => one.latency_ms) }, { name: "budget", type: "line", step: "middle", lineStyle: { type: "dashed" }, data: rounds.map((one) => one.budget_ms) }] }),
    numbers: () => [[{ label: "round", of: label }, { label: "latency", of: (one) => latency(one.latency_ms, unit) }, { label: "budget", of: (one) => latency(one.budget_ms, unit) }, { label: "saliency kept in it", of: (one) => percent(one.kept, 2) }, { label: "loss after", of: (one) => number(one.loss) }], rounds] }));
  into(new Chart({ label: "Sizes by round, as shares of those after the first round; of blocks the mean", make: () => ({ tooltip: { trigger: "axis", valueFormatter: (value) => `${number(value, 3)} %` }, xAxis: axis("round", { type: "category", data: rounds.map(label) }), yAxis: axis("% of the first round", { type: "value", nameGap: 46 }),
    // Sizes that shrink alike lie on each other: what is drawn first is wider, and shows.
    series: fields.map(([field, short], index) => ({ name: short, type: "line", color: colours()[index ? index - 1 : 4], symbol: ["circle", "rect", "triangle", "diamond", "circle"][index], symbolSize: 16 - 2.5 * index, lineStyle: { width: 7 - 1.3 * index }, data: archs.map((arch) => 100 * mean(arch, field) / mean(first, field)) })) }),
    numbers: () => [[{ label: "round", of: label }, ...fields.map(([field, short]) => ({ label: short, of: (arch) => number(mean(arch, field)) }))], archs] }));
  title("What was left at the end, block by block");
  into(blockChart(() => [archs.at(-1), first], { of: "the first round", label: "Sizes by block after the last round, as shares of those after the first" }));
};

const phases = (rows) => {
  title("Sparsity, phase by phase");
  into(new Chart({ label: "Share of weights removed, and loss, by phase", make: () => ({ grid: { right: 70 }, tooltip: { trigger: "axis", valueFormatter: (value) => number(value) }, xAxis: axis("phase", { type: "category", data: rows.map((one) => one.phase + 1) }),
    yAxis: [axis("removed, %", { type: "value", min: 0, max: 100, nameGap: 46 }), axis("loss", { type: "value", scale: true, nameGap: 50, splitLine: { show: false } })],
    series: [{ name: "removed", type: "line", step: "middle", data: rows.map((one) => 100 * one.sparsity) }, { name: "loss", type: "line", yAxisIndex: 1, data: rows.map((one) => one.loss) }] }),
    numbers: () => [[{ label: "phase", of: (one) => one.phase + 1 }, { label: "removed", of: (one) => percent(one.sparsity) }, { label: "loss", of: (one) => number(one.loss) }], rows] }));
};

const compressed = (report) => {
  title("What stays, block by block");
  into(blockChart(() => [report.after.architecture, report.before.architecture]));
  title("What the refit regained, layer by layer");
  const rows = report.refits, positive = (value) => (value > 0 ? 100 * value : null);
  into(new Chart({ label: "Error of every layer as cut and as refitted", make: () => ({ tooltip: { trigger: "axis", valueFormatter: (value) => `${number(value, 3)} %` }, xAxis: axis("layer, first to last", { type: "category", data: rows.map((_, index) => index) }), yAxis: axis("error, % of the variance", { type: "log", nameGap: 46 }),
    series: [["as cut", "before"], ["refitted", "after"]].map(([label, field]) => ({ name: label, type: "line", data: rows.map((row) => positive(row[field])) })) }),
    numbers: () => [[{ label: "layer", text: true, of: (row) => name(row.layer) }, { label: "as cut", of: (row) => percent(row.before, 2) }, { label: "refitted", of: (row) => percent(row.after, 2) }], rows] }));
};

// A journal or report by what it says of itself.
const draw = (rows, called) => {
  const header = rows[0] ?? {};
  if (header.journal === "vitfit-prune" && rows.length > 1) pruning(header, rows.slice(1));
  else if (header.journal === "vitfit-sparsify" && rows.length > 1) phases(rows.slice(1));
  else if (header.journal && rows.length === 1) $("charts").append(emptyBox("Nothing finished yet", `${called} has no finished round.`));
  else if ("loss" in header && "lr" in header) training(rows);
  else if (header.refits && header.after) compressed(header);
  else throw new Problem({ status: 400, title: "Not a run of vitfit", detail: `${called} is none of run.jsonl, training.jsonl and *.report.json.`, hint: "Choose a file of a run folder" });
};

const fromText = (text, called) => {
  try {
    const rows = text.trimStart().startsWith("{\n") ? [JSON.parse(text)] : lines(text);
    draw(rows, called);
  } catch (error) {
    $("charts").append(problemBox(error instanceof Problem ? error : new Problem({ status: 400, title: "Not a run of vitfit", detail: `${called}: ${error.message}`, hint: "Choose run.jsonl, training.jsonl or *.report.json" })));
  }
};

const showJob = async (signal, id) => {
  remember({ job: id });
  const job = await get(`/v1/jobs/${encodeURIComponent(id)}`, { signal });
  $("charts").replaceChildren(h("h2", {}, job.kind, " ", h("code", {}, job.id.slice(0, 12))), definitions([["state", job.state], ["model", job.request.model], ["images", job.request.data], ["target", job.request.target], ["details", h("a", { href: `/jobs?job=${job.id}` }, "the job")]]));
  const told = ["journal", "curve"].filter((kind) => job.files[kind]);
  if (job.kind === "compress" && job.result) compressed(job.result);
  else if (!told.length) $("charts").append(emptyBox("Nothing to draw", job.state === "done" ? "This job kept no record of its way." : `This job is ${job.state}; its curves are here when it is done.`, h("a", { class: "button", href: `/jobs?job=${job.id}` }, "Follow the job")));
  for (const kind of told) fromText(await (await send("GET", job.files[kind], { signal })).text(), job.files[kind].split("/").pop());
};

const showFile = async (signal, file) => {
  const text = await file.text();
  signal.throwIfAborted();
  $("charts").replaceChildren(h("h2", {}, name(file.name)));
  fromText(text, file.name);
};

// The run that was chosen last, a job or a file.
const show = latest((signal, chosen) => (chosen instanceof File ? showFile : showJob)(signal, chosen));

page(async () => {
  $("run-file").addEventListener("change", () => { if ($("run-file").files[0]) show($("run-file").files[0]); });
  const query = new URLSearchParams([["limit", "50"], ["state", "done"], ...KINDS.map((kind) => ["kind", kind])]);
  const { jobs } = await get(`/v1/jobs?${query}`), wanted = parameters().get("job");
  $("controls").hidden = false;
  if (!jobs.length && !wanted) {
    options($("run"), [["", "none yet"]]);
    $("charts").replaceChildren(emptyBox("No finished runs yet", "Jobs that prune, fine-tune, sparsify or compress show their way here. Or open a file of a run folder above, such as run.jsonl of `vitfit prune`.", h("a", { class: "button", href: "/architecture" }, "Start one from an architecture")));
    return;
  }
  options($("run"), [...(wanted && !jobs.some((job) => job.id === wanted) ? [[wanted, wanted.slice(0, 12)]] : []), ...jobs.map((job) => [job.id, `${job.kind} ${job.request.model ?? ""} ${job.id.slice(0, 8)}`])], wanted);
  $("run").addEventListener("change", () => show($("run").value));
  await show($("run").value);
});
