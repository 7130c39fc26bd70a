"use strict";
// What all pages' charts share. Colours follow the page, light or dark; every number is also in a table.
const charts = (() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const UNITS = [["num_heads", "heads"], ["qk_dim", "QK"], ["v_dim", "V"], ["mlp_dim", "MLP"]];
  const COLOURS = { light: ["#0b5cad", "#b35900", "#1a7f4b", "#8250df", "#57606a"],
                    dark: ["#6cb2ff", "#ffb066", "#5fd39a", "#c4a5ff", "#a0a8b2"] };
  let drawn = [];

  // What every chart starts from: { axis, option, colours }.
  const base = () => {
    const css = getComputedStyle(document.documentElement), colours = COLOURS[dark.matches ? "dark" : "light"];
    const text = css.getPropertyValue("--text").trim(), line = css.getPropertyValue("--line").trim();
    const axis = { axisLabel: { color: text }, nameTextStyle: { color: text }, splitLine: { lineStyle: { color: line } },
                   axisLine: { lineStyle: { color: line } }, nameLocation: "middle", nameGap: 34 };
    return { axis, colours, option: { color: colours, backgroundColor: "transparent", textStyle: { color: text }, animation: false,
      grid: { left: 64, right: 20, top: 56, bottom: 56 }, legend: { textStyle: { color: text }, type: "scroll", top: 8 },
      tooltip: { confine: true } } };
  };

  const draw = (id, option) => {
    const chart = echarts.init(document.getElementById(id), null, { renderer: "svg" });
    chart.setOption(option);
    drawn.push(chart);
  };

  // Sizes by block of one architecture as a share of another's.
  const sizes = (id, before, after) => {
    const { axis, option } = base();
    const all = before.blocks, blocks = after.blocks;
    draw(id, { ...option, tooltip: { ...option.tooltip, trigger: "axis",
        formatter: (ps) => `block ${ps[0].dataIndex}<br>` + ps.map((p) => {
          const key = UNITS[p.seriesIndex][0];
          return `${p.marker}${p.seriesName}: ${blocks[p.dataIndex][key]} of ${all[p.dataIndex][key]}`; }).join("<br>") },
      title: { text: `EMB ${after.embed_dim} of ${before.embed_dim}`, left: "center", top: 34,
        textStyle: { fontSize: 13, fontWeight: "normal", color: option.textStyle.color } },
      grid: { ...option.grid, top: 72 },
      xAxis: { ...axis, type: "category", name: "block", data: blocks.map((_, index) => index) },
      yAxis: { ...axis, type: "value", name: "% of the uncut model", min: 0, max: 100, nameGap: 44 },
      series: UNITS.map(([key, name]) => ({ name, type: "bar", data: blocks.map((b, i) => 100 * b[key] / all[i][key]) })) });
  };

  // Draws now, and again whenever the colours change; gives the function that does it.
  const show = (render) => {
    const again = () => {
      drawn.forEach((chart) => chart.dispose());
      drawn = [];
      render();
    };
    dark.addEventListener("change", again);
    addEventListener("resize", () => drawn.forEach((chart) => chart.resize()));
    again();
    return again;
  };

  return { data: JSON.parse(document.getElementById("charts").textContent), UNITS, base, draw, sizes, show };
})();
