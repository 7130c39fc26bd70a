// A job to start: what every kind needs, and the rest as JSON for who knows it.
import { Problem, get, post } from "./client.js";
import { h } from "./dom.js";
import { problemBox } from "./frame.js";

const KINDS = [["compress", "compress: without training"], ["prune", "prune: in rounds, with training"]];

const field = (id, label, control, help) => h("div", {}, h("label", { for: id }, label), control, help ? h("div", { class: "quiet" }, help) : null);

export const jobForm = (parent, { targets, defaults }) => {
  const given = defaults(), choose = (id, entries, value) => {
    const select = h("select", { id }, entries.map(([key, text]) => h("option", { value: key, selected: key === value }, text)));
    return select;
  };
  const kind = choose("job-kind", KINDS, "compress");
  const model = h("input", { id: "job-model", required: true, list: "job-models", autocomplete: "off", spellcheck: "false" });
  const list = h("datalist", { id: "job-models" });
  model.addEventListener("focus", async () => { // names to choose from, for who comes this far
    const { models } = await get("/v1/models").catch(() => ({ models: [] }));
    list.replaceChildren(...models.map((one) => h("option", { value: one.model ?? one.name ?? one.id })));
  }, { once: true });
  const data = h("input", { id: "job-data", required: true, value: "digits", autocomplete: "off", spellcheck: "false" });
  const target = choose("job-target", targets.map((one) => [one.target, one.target]), given.target);
  const budget = h("input", { id: "job-budget", type: "number", step: "any", min: 0, required: true, value: given.budget_ms });
  const said = h("div", { "aria-live": "polite" });
  const form = h("form", { onsubmit: async (event) => {
    event.preventDefault();
    const button = form.querySelector("button");
    button.disabled = true;
    said.replaceChildren();
    try {
      const job = await post("/v1/jobs", { kind: kind.value, model: model.value.trim(), data: data.value.trim(), target: target.value, budget_ms: Number(budget.value) });
      location.assign(`/jobs?job=${encodeURIComponent(job.id)}`);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      said.replaceChildren(problemBox(error));
    } finally { button.disabled = false; }
  } }, h("div", { class: "controls" }, field("job-kind", "Job", kind), field("job-model", "Model", model), list, field("job-data", "Images", data), field("job-target", "Target", target), field("job-budget", "Budget", budget)),
  h("p", { class: "quiet" }, "The model is a checkpoint of this service (models/NAME.safetensors in its data folder), the images `digits`, `gratings`, `plaids` or a folder of datasets/. The job finds the best sizes for the budget on its own saliency."),
  h("div", { class: "actions" }, h("button", { type: "submit", class: "primary" }, "Start the job")), said);
  parent.replaceChildren(form);
};
