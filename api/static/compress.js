"use strict";
// Charts of a compressed model's report.
(() => {
  const { before, after, refits } = charts.data;

  // Logarithmic, for errors go from thousandths to multiples of the variance; an error of zero has no place on it.
  const errors = () => {
    const { axis, option } = charts.base();
    const width = document.getElementById("refits").clientWidth - 84, room = 16;
    const short = refits.map((refit) => refit.layer.replace(/^blocks\.(\d+)\.(attn|mlp)\./, "$1 "));
    const series = (name, key, symbol) => ({ name, type: "line", symbol, symbolSize: 8, showAllSymbol: true,
      data: refits.map((refit) => refit[key] > 0 ? 100 * refit[key] : null) });
    charts.draw("refits", { ...option,
      grid: { ...option.grid, bottom: 80 },
      tooltip: { ...option.tooltip, trigger: "axis", formatter: (ps) => `${refits[ps[0].dataIndex].layer}<br>` +
        ps.map((p) => `${p.marker}${p.seriesName}: ${p.value == null ? 0 : p.value.toPrecision(3)} %`).join("<br>") },
      xAxis: { ...axis, type: "category", name: "layer, first to last", nameGap: 58, data: short,
        axisLabel: { ...axis.axisLabel, rotate: 60, interval: Math.ceil(room * refits.length / width) - 1 } },
      yAxis: { ...axis, type: "log", name: "error, % of the variance", nameGap: 48 },
      series: [series("as cut", "before", "emptyCircle"), series("refitted", "after", "circle")] });
  };

  charts.show(() => { charts.sizes("sizes", before, after); errors(); });
})();
