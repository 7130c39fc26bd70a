// Charts on canvas, in the page's colours, each with a name for who does not see it and its numbers as a table.
/* global echarts */
import { h, table } from "./dom.js";
import { isDark, onTheme } from "./frame.js";

const COLOURS = { light: ["#0b5cad", "#b35900", "#1a7f4b", "#8250df", "#57606a", "#b3246b", "#00707a"],
                  dark: ["#6cb2ff", "#ffb066", "#5fd39a", "#c4a5ff", "#a0a8b2", "#ff8fc0", "#5ed3dd"] };
const drawn = new Set();

export const colours = () => COLOURS[isDark() ? "dark" : "light"];

const css = (variable) => getComputedStyle(document.documentElement).getPropertyValue(variable).trim();

export const axis = (name, more = {}) => {
  const text = css("--text"), line = css("--line");
  return { name, nameLocation: "middle", nameGap: 32, nameTextStyle: { color: text, fontSize: 13 }, axisLabel: { color: text, hideOverlap: true, ...more.axisLabel },
    splitLine: { lineStyle: { color: line } }, axisLine: { lineStyle: { color: css("--edge") } }, axisTick: { lineStyle: { color: css("--edge") } },
    ...Object.fromEntries(Object.entries(more).filter(([field]) => field !== "axisLabel")) };
};

const base = (narrow) => ({ color: colours(), backgroundColor: "transparent", animation: false, textStyle: { color: css("--text"), fontFamily: "system-ui, sans-serif" },
  grid: { left: 62, right: 24, top: 44, bottom: 50 }, legend: { type: "scroll", top: 4, textStyle: { color: css("--text"), fontSize: narrow ? 11 : 12 }, inactiveColor: css("--quiet"), ...(narrow && { itemWidth: 14, itemGap: 6 }),
    pageTextStyle: { color: css("--text") }, pageIconColor: css("--accent") },
  // Drawn on the canvas: a tooltip of markup would need styles that the content security policy forbids.
  tooltip: { renderMode: "richText", confine: true, backgroundColor: css("--raised"), borderColor: css("--edge"), textStyle: { color: css("--text"), fontSize: 13 } } });

// A figure with a chart, its description, and its numbers behind a summary. `make` gives ECharts' option; `numbers` gives
// [columns, rows], and is asked when somebody opens the table.
export class Chart {
  constructor({ label, make, numbers = null, low = false, height = null }) {
    this.make = make;
    this.canvas = h("div", { class: `chart${low ? " low" : ""}`, role: "img", "aria-label": label });
    if (height) this.canvas.style.height = height;
    this.numbers = numbers;
    this.table = numbers && h("details", { ontoggle: () => this.fill() }, h("summary", {}, "Numbers as a table", h("span", { class: "sr" }, `: ${label}`)));
    // What lies over the picture, such as a slider, is beside it: an image has no parts that can be used.
    this.plot = h("div", { class: "plot" }, this.canvas);
    this.figure = h("figure", {}, this.plot, this.table);
    this.chart = null;
    this.label = label;
  }

  // Into the page, and drawn.
  into(parent) {
    parent.replaceChildren(this.figure);
    this.draw();
    return this;
  }

  draw() {
    if (!this.chart) {
      this.chart = echarts.init(this.canvas, null, { renderer: "canvas" });
      drawn.add(this);
      new ResizeObserver(() => { this.chart.resize(); if (this.isNarrow() !== this.narrow) this.draw(); else this.onResize?.(); }).observe(this.canvas);
    }
    this.narrow = this.isNarrow();
    const { tooltip, legend, grid, ...rest } = this.make(this), start = base(this.narrow);
    this.chart.setOption({ ...start, ...rest, tooltip: { ...start.tooltip, ...tooltip }, legend: { ...start.legend, ...legend },
      grid: Array.isArray(grid) ? grid : { ...start.grid, ...grid } }, { notMerge: true });
    this.fill();
    this.onDrawn?.();
  }

  // What it is drawn for: a phone has no room for long labels.
  isNarrow() { return this.canvas.clientWidth < 500; }

  // A part of the picture anew, cheaply.
  update(option) { this.chart.setOption(option, { lazyUpdate: false, silent: true }); }

  describe(label) { this.canvas.setAttribute("aria-label", label); }

  fill() {
    if (!this.table?.open) return;
    const [columns, rows] = this.numbers();
    this.table.replaceChildren(this.table.firstElementChild, table(this.label, columns, rows));
  }
}

onTheme(() => drawn.forEach((chart) => { if (chart.canvas.isConnected) chart.draw(); else { chart.chart.dispose(); drawn.delete(chart); } }));
