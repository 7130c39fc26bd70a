"use strict";
// Charts of the demo's report.
(() => {
  const { rows, frontier, method } = charts.data;
  const SYMBOLS = ["circle", "diamond", "rect", "triangle"];
  const select = document.getElementById("model");

  // Filled symbols are what a method ends with, hollow ones what it had before it trained.
  const accuracy = () => {
    const { axis, option, colours } = charts.base();
    const groups = [...new Set(rows.map((row) => row.method ?? "uncut"))];
    const series = (group, index, key, label, hollow) => ({ name: group + label, type: "scatter", symbol: SYMBOLS[index % SYMBOLS.length],
      symbolSize: group === method || group === "uncut" ? 16 : 12,
      itemStyle: hollow ? { color: "transparent", borderColor: colours[index], borderWidth: 2 } : { color: colours[index] },
      data: rows.filter((row) => (row.method ?? "uncut") === group && row[key] !== null)
        .map((row) => ({ name: row.name + label, value: [row.measured_ms, 100 * row[key]] })) });
    const all = groups.flatMap((group, index) => group === "uncut" || group === method
      ? [series(group, index, group === method ? "accuracy_untrained" : "accuracy_trained", "", false)]
      : [series(group, index, "accuracy_untrained", ", cut", true), series(group, index, "accuracy_trained", ", fine-tuned", false)]);
    charts.draw("accuracy", { ...option,
      tooltip: { ...option.tooltip, formatter: (p) => `${p.data.name}<br>${p.value[0].toFixed(2)} ms, ${p.value[1].toFixed(1)} %` },
      xAxis: { ...axis, type: "value", name: "measured ms", min: 0 },
      yAxis: { ...axis, type: "value", name: "accuracy, %", scale: true, nameGap: 44 },
      series: all });
  };

  const dimensions = () => {
    const row = rows.find((row) => row.name === select.value);
    charts.sizes("dimensions", rows[0].architecture, row.architecture);
    document.querySelector("#sizes tbody").replaceChildren(...row.architecture.blocks.map((block, index) => {
      const line = document.createElement("tr");
      for (const cell of [index, ...charts.UNITS.map(([key]) => block[key])]) line.insertCell().textContent = cell;
      return line;
    }));
    document.querySelector("#sizes caption").textContent = `Sizes by block of ${row.name}, EMB ${row.architecture.embed_dim}`;
  };

  // What is given up, for what is kept is close to all of it; the uncut model, which gives up nothing, has no place on it.
  const curve = () => {
    const { axis, option } = charts.base();
    charts.draw("frontier", { ...option, legend: { show: false },
      tooltip: { ...option.tooltip, trigger: "axis", formatter: ([p]) => `${p.value[0].toFixed(2)} ms gives up ${p.value[1].toPrecision(3)} %` },
      xAxis: { ...axis, type: "value", name: "estimated ms", min: 0 },
      yAxis: { ...axis, type: "log", name: "saliency given up, %", nameGap: 54 },
      series: [{ type: "line", symbolSize: 4,
        data: frontier.filter(([, kept]) => kept < 1).map(([ms, kept]) => [ms, 100 * (1 - kept)]) }] });
  };

  rows.slice(1).forEach((row) => select.add(new Option(row.name, row.name)));
  select.addEventListener("change", charts.show(() => { accuracy(); dimensions(); curve(); }));
})();
