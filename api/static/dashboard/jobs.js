// Jobs: the list, and one job followed live. What is shown comes from the service each time, so a reload loses nothing.
import { Problem, download, events, get, post, query, send } from "./client.js";
import { $, definitions, h, name, options, table, tiles } from "./dom.js";
import { count, latency, number, percent, seconds, time } from "./format.js";
import { emptyBox, fail, guarded, latest, notice, page, parameters, problemBox, remember } from "./frame.js";

const FINISHED = ["done", "failed", "cancelled"];
const STATES = ["queued", "running", ...FINISHED];
const state = { id: null, job: null, follow: null, log: [], stage: null };

const stateBadge = (value) => h("span", { class: `badge ${value === "done" ? "good" : value === "failed" ? "bad" : value === "cancelled" ? "warn" : ""}`, "data-state": value }, value);
const about = (request) => [request.model ?? request.study?.study ?? "", request.data ? `on ${request.data}` : "", request.target ? `for ${request.target}` : "",
  request.budget_ms ? `within ${number(request.budget_ms)}` : request.speedup ? `${number(request.speedup)}× as fast` : ""].filter(Boolean).join(" ");

const list = latest(async (signal) => {
  const found = await get(`/v1/jobs${query({ limit: 50, state: $("state").value, kind: $("kind").value })}`, { signal });
  const chosen = (job) => ({ "aria-current": job.id === state.id ? "true" : null });
  $("list").replaceChildren(found.jobs.length
    ? table("The newest jobs", [{ label: "job", text: true, of: (job) => h("a", { href: `?job=${job.id}`, onclick: (event) => { event.preventDefault(); open(job.id); } }, job.kind, " ", h("code", {}, job.id.slice(0, 12))) },
      { label: "state", text: true, of: (job) => stateBadge(job.state) }, { label: "progress", of: (job) => progressText(job.progress) }, { label: "asked", text: true, of: (job) => name(about(job.request)) },
      { label: "taken on", of: (job) => time(job.created_at) }, { label: "finished", of: (job) => (job.finished_at ? time(job.finished_at) : "") }], found.jobs, { rowAttributes: chosen })
    : $("state").value || $("kind").value ? emptyBox("No such jobs", "None is in this state and of this kind; choose others above.")
      : emptyBox("No jobs yet", "A job fits a model to a budget, prunes, fine-tunes or profiles. Start one from an architecture:", h("a", { class: "button primary", href: "/architecture" }, "Open an architecture")));
});

const progressText = (progress) => (progress ? `${progress.stage} ${progress.done}/${progress.total}` : "");

const showProgress = (progress) => {
  if (!progress) { $("progress").replaceChildren(h("p", { class: "quiet" }, "Waits for a worker.")); return; }
  const share = progress.total ? progress.done / progress.total : 0;
  $("progress").replaceChildren(h("label", { for: "bar" }, `${progress.stage}: ${progress.done} of ${progress.total}`), h("progress", { id: "bar", max: 1, value: share }));
};

const addLine = (text) => {
  const log = $("log"), end = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
  log.append(`${text}\n`);
  if (end) log.scrollTop = log.scrollHeight;
};

const lineOf = ({ type, data }) => `${time(data.at)}  ${type === "log" ? data.text : [type, ...Object.entries(data).filter(([field]) => field !== "at").map(([field, value]) => (field === "seconds" ? seconds(value) : value))].join(" ")}`;

const result = (job) => {
  const found = job.result;
  if (!found) return [];
  const unit = found.kind === "analytic" || found.target === "macs" ? "million MACs" : "ms";
  return [tiles([
    found.latency_ms !== undefined && [unit === "ms" ? "latency" : "MACs of an image", latency(found.latency_ms, unit), `budget ${latency(found.budget_ms, unit)}${found.full_ms ? `, before ${latency(found.full_ms, unit)}` : ""}`],
    found.accuracy !== undefined && ["accuracy", percent(found.accuracy.after ?? found.accuracy), found.accuracy.before !== undefined ? `before ${percent(found.accuracy.before)}` : null],
    found.kept !== undefined && ["saliency kept", percent(found.kept, 2), found.bound !== undefined && found.bound !== null ? `nothing in the budget keeps more than ${percent(found.bound, 2)}` : null],
    found.after && ["parameters", count(found.after.params), `before ${count(found.before.params)}`],
    found.loss !== undefined && ["loss", number(found.loss)], found.points !== undefined && ["points", number(found.points)], found.difference !== undefined && ["largest difference", number(found.difference)],
    found.rounds !== undefined && ["rounds", number(found.rounds)]]),
  ["prune", "finetune", "sparsify", "compress"].includes(job.kind) ? h("p", {}, h("a", { href: `/runs?job=${job.id}` }, "See this run step by step")) : null];
};

const showJob = (job) => {
  state.job = job;
  $("job").hidden = false;
  $("job-title").replaceChildren(job.kind, " ", h("code", {}, job.id.slice(0, 12)), " ", stateBadge(job.state));
  const finished = FINISHED.includes(job.state);
  if (finished && job.state === "done") $("progress").replaceChildren(); else showProgress(job.progress);
  const took = job.finished_at ? (new Date(job.finished_at) - new Date(job.created_at)) / 1000 : null;
  $("facts").replaceChildren(definitions([["asked", about(job.request)], ["taken on", time(job.created_at)], ["finished", job.finished_at ? time(job.finished_at) : null], ["took", took === null ? null : seconds(took)],
    ["goes on with", job.retry_of ? h("a", { href: `?job=${job.retry_of}` }, job.retry_of) : null]]),
    h("details", {}, h("summary", {}, "The request"), h("pre", { tabindex: 0, role: "region", "aria-label": "Request" }, JSON.stringify(job.request, null, 2))));
  $("cancel").hidden = finished;
  $("retry").hidden = !["failed", "cancelled"].includes(job.state);
  $("delete").hidden = !finished;
  $("error").replaceChildren(...(job.error ? [problemBox(new Problem(job.error))] : []));
  $("result").replaceChildren(...result(job).filter(Boolean));
  const files = Object.entries(job.files ?? {});
  $("files").replaceChildren(...(files.length ? [h("h3", {}, "Files"), h("ul", {}, files.map(([kind, path]) => h("li", {}, h("a", { href: path, download: "", onclick: guarded(async (event) => { event.preventDefault(); await download(path, path.split("/").pop()); }) }, path.split("/").pop()), " ", h("span", { class: "quiet" }, kind))))] : []));
};

// An answer that comes late is not shown over the job that was opened meanwhile.
const reload = latest(async (signal, id) => { const job = await get(`/v1/jobs/${encodeURIComponent(id)}`, { signal }); if (id === state.id) showJob(job); });
const refresh = async () => { if (state.id) await reload(state.id); await list(); };

const open = guarded(async (id) => {
  state.follow?.abort();
  const follow = (state.follow = new AbortController());
  state.id = id;
  remember({ job: id });
  $("log").textContent = "";
  $("connection").textContent = "";
  showJob(await get(`/v1/jobs/${encodeURIComponent(id)}`, { signal: follow.signal }));
  await list();
  if (follow.signal.aborted) return;
  notice();
  events(`/v1/jobs/${encodeURIComponent(id)}/events`, { signal: follow.signal, isLast: (event) => event.type === "end",
    onState: (now) => { if (!follow.signal.aborted) $("connection").textContent = now === "connected" ? (FINISHED.includes(state.job.state) ? "" : "Live.") : "The service went away; this page goes on as soon as it is back."; },
    onEvent: (event) => {
      if (follow.signal.aborted) return;
      if (event.type === "progress") showProgress(event.data);
      else if (event.type === "end") { $("connection").textContent = ""; refresh(); }
      else { addLine(lineOf(event)); if (event.type === "state") refresh(); }
    } }).catch((error) => { if (!follow.signal.aborted) fail(error); });
});

page(async () => {
  options($("state"), [["", "any"], ...STATES.map((one) => [one, one])]);
  options($("kind"), [["", "any"], ...["profile", "saliency", "compress", "prune", "finetune", "sparsify", "study", "export"].map((one) => [one, one])]);
  for (const id of ["state", "kind"]) $(id).addEventListener("change", list);
  $("reload").addEventListener("click", list);
  $("cancel").addEventListener("click", guarded(async () => { await post(`/v1/jobs/${state.id}/cancel`); await refresh(); }));
  $("retry").addEventListener("click", guarded(async () => { const job = await post(`/v1/jobs/${state.id}/retry`); await open(job.id); }));
  $("delete").addEventListener("click", guarded(async () => {
    await send("DELETE", `/v1/jobs/${state.id}`);
    state.follow?.abort();
    state.id = null;
    remember({ job: null });
    $("job").hidden = true;
    await list();
  }));
  await list();
  const wanted = parameters().get("job");
  if (wanted) await open(wanted);
});
