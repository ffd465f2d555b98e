// Draws what was used day by day; the table below says the same in figures.
"use strict";

(() => {
  const HEIGHT = 180;
  const DAY_S = 86400;
  let plot = null;
  let drawn = "";

  function draw() {
    const box = document.getElementById("plot-days");
    if (box === null || (box.dataset.plot === drawn && box.firstChild !== null)) return;
    if (plot !== null) plot.destroy();
    box.replaceChildren();
    drawn = box.dataset.plot;
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = { stroke: colour("--faint"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
    const data = JSON.parse(drawn);
    const [days] = data;
    plot = new uPlot(
      {
        width: box.clientWidth,
        height: HEIGHT,
        legend: { show: false },
        cursor: { show: false },
        tzDate: (at) => uPlot.tzDate(new Date(at * 1000), "Etc/UTC"),
        scales: {
          x: { range: () => [days[0] - DAY_S * 0.6, days[days.length - 1] + DAY_S * 0.6] },
          y: { range: (_plot, _least, most) => [0, Math.max(1, most * 1.1)] },
        },
        axes: [{ ...axis, size: 30, space: 70, incrs: [1, 2, 7, 14, 28, 56].map((one) => one * DAY_S), values: (_plot, ticks) => ticks.map((at) => new Date(at * 1000).toISOString().slice(5, 10)) }, { ...axis, size: 60 }],
        series: [
          {},
          { fill: colour("--own"), stroke: colour("--own"), width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.7, 60] }) },
        ],
      },
      data,
      box
    );
  }

  window.addEventListener("load", () => {
    draw();
    new ResizeObserver(() => {
      const box = document.getElementById("plot-days");
      if (plot !== null && box !== null) plot.setSize({ width: box.clientWidth, height: HEIGHT });
    }).observe(document.getElementById("live"));
  });
  document.addEventListener("htmx:afterSettle", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    drawn = "";
    draw();
  });
})();
