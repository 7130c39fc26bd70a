// What every page has: theme, key, notices. `page(main)` runs a page and shows what stops it.
import { key, Problem } from "./client.js";
import { $, h, name } from "./dom.js";

const THEMES = ["auto", "light", "dark"];
const redraws = new Set();
const darkMedia = matchMedia("(prefers-color-scheme: dark)");

export const theme = () => document.documentElement.dataset.theme ?? "auto";
export const isDark = () => theme() === "dark" || (theme() === "auto" && darkMedia.matches);
export const onTheme = (redraw) => redraws.add(redraw);
const recolour = () => redraws.forEach((redraw) => redraw());

const setTheme = (chosen) => {
  if (chosen === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  try { chosen === "auto" ? localStorage.removeItem("vitfit-theme") : localStorage.setItem("vitfit-theme", chosen); } catch { /* not remembered */ }
  $("theme-button").textContent = `Theme: ${chosen}`;
  recolour();
};

// What happened, and what helps.
export const problemBox = (error) => {
  const problem = error instanceof Problem ? error : new Problem({ title: "This page failed", detail: String(error?.message ?? error) });
  const refused = problem.status === 401;
  return h("div", { class: "box error", role: "alert" },
    h("h2", {}, refused ? "This service wants an API key" : problem.title),
    h("p", {}, name(problem.detail)),
    problem.field ? h("p", {}, "Field: ", h("code", {}, problem.field)) : null,
    problem.hint ? h("p", {}, problem.hint) : null,
    refused ? h("button", { type: "button", onclick: askForKey }, key.get() ? "Give another key" : "Give a key") : null,
    problem.status === 0 || problem.status >= 500 ? h("button", { type: "button", onclick: () => location.reload() }, "Ask again") : null);
};

export const emptyBox = (title, ...what) => h("div", { class: "box empty" }, h("h2", {}, title), what.map((one) => (typeof one === "string" ? h("p", {}, one) : one)));

export const notice = (...nodes) => $("notices").replaceChildren(...nodes);
export const fail = (error) => { if (!(error instanceof Problem)) console.warn(error); notice(problemBox(error)); };

// Runs work and shows its failure instead of losing it.
export const guarded = (work) => async (...given) => {
  try { return await work(...given); } catch (error) { if (error?.name !== "AbortError") fail(error); return undefined; }
};

// Guarded work of which the call that came last counts: `work(signal, ...given)` is begun anew, and what an earlier call still
// waits for is given up, so that a late answer to an old question never stands where the new one was asked.
export const latest = (work) => {
  let running = null;
  return async (...given) => {
    running?.abort();
    const { signal } = (running = new AbortController());
    try { return await work(signal, ...given); } catch (error) { if (!signal.aborted) fail(error); return undefined; }
  };
};

export const copy = async (text, button) => {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not copied: this browser forbids it here";
  }
  setTimeout(() => { button.textContent = before; }, 1_500);
};

export const parameters = () => new URLSearchParams(location.search);

export const remember = (values) => {
  const now = parameters();
  for (const [field, value] of Object.entries(values)) value === null || value === undefined || value === "" ? now.delete(field) : now.set(field, value);
  const text = now.toString();
  history.replaceState(null, "", `${location.pathname}${text ? `?${text}` : ""}${location.hash}`);
};

function askForKey() {
  $("key-input").value = "";
  $("key-dialog").showModal();
}

export const page = (main) => {
  $("theme-button").textContent = `Theme: ${theme()}`;
  $("theme-button").addEventListener("click", () => setTheme(THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length]));
  darkMedia.addEventListener("change", recolour);
  $("key-button").addEventListener("click", askForKey);
  $("key-dialog").addEventListener("close", () => {
    if ($("key-dialog").returnValue !== "save") return;
    key.set($("key-input").value.trim());
    location.reload();
  });
  guarded(main)().finally(() => { document.body.dataset.ready = "yes"; });
};
