// Elements without markup: whatever a file, model or person is called, it is set as text.

export const $ = (id) => document.getElementById(id);

// h("a", { href: "/", class: "x", onclick: f }, "text", child, [children])
export const h = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
};

// A name that may run from right to left, and must not turn what stands around it.
// Marks that turn the direction of text are shown as what they are, not obeyed.
export const name = (text) => h("bdi", {}, String(text ?? "").replace(/[\u202a-\u202e\u2066-\u2069\u200e\u200f]/g, "\ufffd"));

// columns: [{ label, text: true for words, of: row => cell }]
export const table = (caption, columns, rows, { rowAttributes = () => ({}) } = {}) =>
  h("div", { class: "scroll tall", tabindex: 0, role: "region", "aria-label": caption },
    h("table", {}, h("caption", {}, caption),
      h("thead", {}, h("tr", {}, columns.map((column) => h("th", { scope: "col", class: column.text ? "text" : null }, column.label)))),
      h("tbody", {}, rows.map((row, index) => h("tr", rowAttributes(row, index),
        columns.map((column) => h("td", { class: column.text ? "text" : null }, column.of(row, index) ?? "")))))));

export const definitions = (pairs) => h("dl", {}, pairs.filter(([, value]) => value !== null && value !== undefined && value !== "")
  .map(([term, value]) => [h("dt", {}, term), h("dd", {}, value instanceof Node ? value : name(value))]));

// A number and its unit stay on one line.
const unbroken = (text) => text.replace(/(\d) (?=(%|ms|s|[kMGT])( MACs)?(?!\w))/g, "$1\u00a0");

export const tiles = (items) => h("ul", { class: "tiles" }, items.filter(Boolean)
  .map(([label, value, more]) => h("li", {}, h("span", {}, label), h("strong", {}, value), more ? h("span", {}, unbroken(more)) : null)));

export const options = (select, entries, chosen) => {
  select.replaceChildren(...entries.map(([value, label]) => h("option", { value }, label)));
  const values = entries.map(([value]) => value);
  select.value = values.includes(chosen) ? chosen : values[0] ?? "";
  return select.value;
};

// One call a frame, with the last arguments.
export const perFrame = (work) => {
  let waiting = null;
  return (...arguments_) => {
    if (waiting === null) requestAnimationFrame(() => { const given = waiting; waiting = null; work(...given); });
    waiting = arguments_;
  };
};
