// What is common to pages that name targets.
import { h } from "./dom.js";

const EVIDENCE = ["measured", "partly-modelled", "imported", "modelled", "analytic"];

export const badge = (kind) => h("span", { class: `badge ${kind === "measured" ? "good" : kind === "analytic" ? "" : "warn"}` }, kind);

// The best evidence first.
export const sorted = (targets) => targets.toSorted((a, b) => EVIDENCE.indexOf(a.kind) - EVIDENCE.indexOf(b.kind));
