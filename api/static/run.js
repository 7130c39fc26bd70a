"use strict";
// Charts of the report of a run or a checkpoint.
(() => {
  const { before, after, rows, unit } = charts.data;

  const rounds = () => {
    const { axis, option } = charts.base();
    charts.draw("way", { ...option, tooltip: { ...option.tooltip, trigger: "axis" },
      xAxis: { ...axis, type: "category", name: "round", data: rows.map((row) => row.round + 1) },
      yAxis: { ...axis, type: "value", name: unit, min: 0, nameGap: 44 },
      series: [{ name: "latency", type: "line", data: rows.map((row) => row.latency_ms) },
        { name: "budget", type: "line", step: "middle", lineStyle: { type: "dashed" }, data: rows.map((row) => row.budget_ms) }] });
  };

  const phases = () => {
    const { axis, option } = charts.base();
    charts.draw("way", { ...option, tooltip: { ...option.tooltip, trigger: "axis" },
      xAxis: { ...axis, type: "category", name: "phase", data: rows.map((row) => row.phase + 1) },
      yAxis: { ...axis, type: "value", name: "% removed", min: 0, max: 100, nameGap: 44 },
      series: [{ name: "removed", type: "line", step: "middle", data: rows.map((row) => 100 * row.sparsity) }] });
  };

  charts.show(() => {
    if (rows.length) "round" in rows[0] ? rounds() : phases();
    charts.sizes("sizes", before, after);
  });
})();
