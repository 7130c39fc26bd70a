// Sizes by block as shares of another model's: the less-more-less of a pruned model is a picture.
import { UNITS } from "./arch.js";
import { Chart, axis } from "./chart.js";
import { percent } from "./format.js";

const share = (arch, whole, index, field) => 100 * arch.blocks[index][field] / whole.blocks[index][field];

// `pair()` gives [architecture, whole]; `update()` follows it.
export const blockChart = (pair, { low = false, of = "the uncut model", label = `Heads, QK, V and MLP by block, as shares of ${of}` } = {}) => {
  const series = () => {
    const [arch, whole] = pair();
    return UNITS.map(([field, , short]) => ({ name: short, type: "bar", data: arch.blocks.map((_, index) => share(arch, whole, index, field)) }));
  };
  const chart = new Chart({ label, low,
    make: () => ({
      tooltip: { trigger: "axis", axisPointer: { type: "shadow" }, formatter: (items) => {
        const [arch, whole] = pair(), index = items[0].dataIndex;
        return [`block ${index}`, ...items.map((item) => {
          const field = UNITS[item.seriesIndex][0];
          return `${item.seriesName}: ${arch.blocks[index][field]} of ${whole.blocks[index][field]}`;
        })].join("\n");
      } },
      xAxis: axis("block", { type: "category", data: pair()[0].blocks.map((_, index) => index) }),
      yAxis: axis(`% of ${of}`, { type: "value", min: 0, max: (range) => Math.max(100, Math.ceil(range.max / 10) * 10), nameGap: 40 }),
      series: series() }),
    numbers: () => {
      const [arch, whole] = pair();
      return [[{ label: "block", of: (_, index) => index }, ...UNITS.map(([field, long]) => ({ label: long,
        of: (block, index) => `${block[field]} of ${whole.blocks[index][field]} (${percent(block[field] / whole.blocks[index][field], 0)})` }))], arch.blocks];
    } });
  chart.follow = () => { chart.update({ series: series() }); chart.fill(); };
  return chart;
};
