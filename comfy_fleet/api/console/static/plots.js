// What waits and runs, and what has ended a minute, since the page was opened: nothing of it is stored anywhere.
"use strict";

(() => {
  const MOST = 600; // seconds that are shown
  const BIN_S = 10;

  function start() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const now = () => Math.floor(Date.now() / 1000);
    const began = now();
    const state = [[], [], []];
    const ended = [[began], [0], [0]];
    const bins = { at: began, succeeded: 0, failed: 0 };

    function options(box, first, second) {
      const axis = { stroke: colour("--faint"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
      const line = (name) => ({ stroke: colour(name), width: 2, points: { show: false } });
      return {
        width: box.clientWidth,
        height: 180,
        legend: { show: false },
        cursor: { show: false },
        scales: { y: { range: (_plot, _least, most) => [0, Math.max(4, most * 1.15)] } },
        axes: [axis, { ...axis, size: 40, values: (_plot, ticks) => ticks.map((one) => (Number.isInteger(one) ? one : "")) }],
        series: [{}, line(first), line(second)],
      };
    }

    const boxes = [document.getElementById("plot-now"), document.getElementById("plot-ended")];
    const plots = [
      new uPlot(options(boxes[0], "--drained", "--working"), state, boxes[0]),
      new uPlot(options(boxes[1], "--idle", "--down"), ended, boxes[1]),
    ];

    function add(data, ...values) {
      values.forEach((value, at) => data[at].push(value));
      while (data[0].length > 2 && data[0][0] < now() - MOST) data.forEach((column) => column.shift());
    }

    function sample() {
      const figures = document.getElementById("figures");
      if (figures === null || document.hidden) return;
      add(state, now(), Number(figures.dataset.queued), Number(figures.dataset.running));
      plots[0].setData(state);
      if (now() - bins.at >= BIN_S) {
        const each = 60 / (now() - bins.at);
        add(ended, now(), bins.succeeded * each, bins.failed * each);
        bins.at = now();
        bins.succeeded = bins.failed = 0;
        plots[1].setData(ended);
      }
    }

    document.addEventListener("fleet:news", (event) => {
      bins.succeeded += event.detail.jobs.succeeded ?? 0;
      bins.failed += (event.detail.jobs.failed ?? 0) + (event.detail.jobs.expired ?? 0);
    });
    new ResizeObserver(() => {
      plots.forEach((plot, at) => plot.setSize({ width: boxes[at].clientWidth, height: 180 }));
    }).observe(boxes[0]);
    sample();
    setInterval(sample, 1000);
  }

  if (document.readyState === "complete") start();
  else window.addEventListener("load", start);
})();
