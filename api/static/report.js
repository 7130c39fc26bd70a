"use strict";
// Charts of the report. Colours follow the page, light or dark; every number is also in a table.
(() => {
  const { rows, frontier, method } = JSON.parse(document.getElementById("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const UNITS = [["num_heads", "heads"], ["qk_dim", "QK"], ["v_dim", "V"], ["mlp_dim", "MLP"]];
  const COLOURS = { light: ["#0b5cad", "#b35900", "#1a7f4b", "#8250df", "#57606a"],
                    dark: ["#6cb2ff", "#ffb066", "#5fd39a", "#c4a5ff", "#a0a8b2"] };
  const SYMBOLS = ["circle", "diamond", "rect", "triangle", "roundRect"];
  const percent = (share) => (100 * share).toFixed(1) + " %";
  let charts = [];

  const base = (colours) => {
    const css = getComputedStyle(document.documentElement);
    const text = css.getPropertyValue("--text").trim(), line = css.getPropertyValue("--line").trim();
    const axis = { axisLabel: { color: text }, nameTextStyle: { color: text }, splitLine: { lineStyle: { color: line } },
                   axisLine: { lineStyle: { color: line } }, nameLocation: "middle", nameGap: 34 };
    return { axis, option: { color: colours, backgroundColor: "transparent", textStyle: { color: text }, animation: false,
      grid: { left: 64, right: 20, top: 56, bottom: 56 }, legend: { textStyle: { color: text }, type: "scroll", top: 8 },
      tooltip: { confine: true } } };
  };

  const draw = (id, option) => {
    const chart = echarts.init(document.getElementById(id), null, { renderer: "svg" });
    chart.setOption(option);
    charts.push(chart);
  };

  const accuracy = (colours) => {
    const { axis, option } = base(colours);
    const groups = [...new Set(rows.map((row) => row.criterion ?? "uncut"))];
    draw("accuracy", { ...option,
      tooltip: { ...option.tooltip, formatter: (p) => `${p.data.name}<br>${p.value[0].toFixed(2)} ms, ${p.value[1].toFixed(1)} %` },
      xAxis: { ...axis, type: "value", name: "measured ms", min: 0 },
      yAxis: { ...axis, type: "value", name: "accuracy after fine-tune, %", scale: true, nameGap: 44 },
      series: groups.map((group, index) => ({ name: group, type: "scatter", symbolSize: group === method || group === "uncut" ? 16 : 11,
        symbol: SYMBOLS[index % SYMBOLS.length],
        data: rows.filter((row) => (row.criterion ?? "uncut") === group)
          .map((row) => ({ name: row.name, value: [row.measured_ms, 100 * row.accuracy] })) })) });
  };

  const dimensions = (colours, row) => {
    const { axis, option } = base(colours);
    const dense = rows[0].architecture.blocks, blocks = row.architecture.blocks;
    draw("dimensions", { ...option, tooltip: { ...option.tooltip, trigger: "axis",
        formatter: (ps) => `block ${ps[0].dataIndex + 1}<br>` + ps.map((p) => {
          const key = UNITS[p.seriesIndex][0];
          return `${p.marker}${p.seriesName}: ${blocks[p.dataIndex][key]} of ${dense[p.dataIndex][key]}`; }).join("<br>") },
      title: { text: `EMB ${row.architecture.embed_dim} of ${rows[0].architecture.embed_dim}`, left: "center", top: 34,
        textStyle: { fontSize: 13, fontWeight: "normal", color: option.textStyle.color } },
      grid: { ...option.grid, top: 72 },
      xAxis: { ...axis, type: "category", name: "block", data: blocks.map((_, index) => index + 1) },
      yAxis: { ...axis, type: "value", name: "% of the uncut model", min: 0, max: 100, nameGap: 44 },
      series: UNITS.map(([key, name]) => ({ name, type: "bar", data: blocks.map((b, i) => 100 * b[key] / dense[i][key]) })) });
    document.querySelector("#sizes tbody").replaceChildren(...blocks.map((block, index) => {
      const line = document.createElement("tr");
      for (const cell of [index + 1, ...UNITS.map(([key]) => block[key])]) line.insertCell().textContent = cell;
      return line;
    }));
    document.querySelector("#sizes caption").textContent = `Sizes by block of ${row.name}, EMB ${row.architecture.embed_dim}`;
  };

  const curve = (colours) => {
    const { axis, option } = base(colours);
    draw("frontier", { ...option, legend: { show: false },
      tooltip: { ...option.tooltip, trigger: "axis", formatter: ([p]) => `${p.value[0].toFixed(2)} ms keeps ${percent(p.value[1] / 100)}` },
      xAxis: { ...axis, type: "value", name: "estimated ms", min: 0 },
      yAxis: { ...axis, type: "value", name: "saliency kept, %", max: 100, nameGap: 44 },
      series: [{ type: "line", symbolSize: 4, data: frontier.map(([ms, kept]) => [ms, 100 * kept]) }] });
  };

  const select = document.getElementById("model");
  rows.slice(1).forEach((row) => select.add(new Option(row.name, row.name)));
  const render = () => {
    charts.forEach((chart) => chart.dispose());
    charts = [];
    const colours = COLOURS[dark.matches ? "dark" : "light"];
    accuracy(colours);
    dimensions(colours, rows.find((row) => row.name === select.value) ?? rows[0]);
    curve(colours);
  };
  select.addEventListener("change", render);
  dark.addEventListener("change", render);
  addEventListener("resize", () => charts.forEach((chart) => chart.resize()));
  render();
})();
