"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("chart-specs").textContent);
  const names = JSON.parse(document.getElementById("direction-names").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 700px)");
  const bar = document.querySelector(".directions");
  const buttons = bar ? [...bar.querySelectorAll("[data-direction]")] : [];  // no bar without directions
  const rows = [...document.querySelectorAll("[data-row]")];
  const picked = new Set();
  let charts = [];
  let drawing = Promise.resolve();

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // The page's colors over a chart's own, which are for white paper.
  function themed(config) {
    const merged = { ...config };
    for (const [key, value] of Object.entries(look())) {
      merged[key] = typeof value === "object" ? { ...config[key], ...value } : value;
    }
    return merged;
  }

  function look() {
    const ink = color("--ink"), soft = color("--soft"), line = color("--line"), grid = color("--grid");
    return {
      background: color("--card"),
      font: getComputedStyle(document.body).fontFamily,
      title: { color: ink, subtitleColor: soft, fontSize: narrow.matches ? 13 : 15 },
      axis: { gridColor: grid, domainColor: line, tickColor: line, labelColor: soft, titleColor: soft },
      legend: { labelColor: ink, titleColor: soft },
    };
  }

  function showPicked() {
    if (!bar) return;
    bar.classList.toggle("picking", picked.size > 0);
    bar.querySelector("[data-all]").hidden = picked.size === 0;
    for (const button of buttons) {
      button.setAttribute("aria-pressed", String(picked.has(names[button.dataset.direction])));
    }
    for (const row of rows) row.classList.toggle("faded", picked.size > 0 && !picked.has(row.dataset.row));
    const fields = [{ type: "E", field: "direction" }];
    for (const { view } of charts.filter(picks)) {
      const tuples = [...picked].map((name) => ({ unit: "", fields, values: [name] }));
      view.data("pick_store", tuples).runAsync();
    }
  }

  // Not every chart shows directions.
  function picks({ view }) {
    return "pick_store" in view.getState({ data: (name) => name === "pick_store" }).data;
  }

  // A click on a chart's own legend changes that chart's store; the other charts and the bar follow it.
  function follow(view) {
    view.addDataListener("pick_store", (_, tuples) => {
      const chosen = tuples.map((tuple) => tuple.values[0]);
      if (chosen.length === picked.size && chosen.every((name) => picked.has(name))) return;
      picked.clear();
      for (const name of chosen) picked.add(name);
      setTimeout(showPicked);
    });
  }

  // A phone has no room for a legend in each chart: the bar above is the legend, and a tap on a mark picks too.
  function withoutLegend(part) {
    const copy = { ...part };
    if (part.layer) copy.layer = part.layer.map(withoutLegend);
    if (part.params) copy.params = part.params.map(({ bind, ...param }) => param);
    if (part.encoding) {
      copy.encoding = { ...part.encoding };
      for (const channel of ["color", "strokeDash", "shape"]) {
        if (part.encoding[channel]) copy.encoding[channel] = { ...part.encoding[channel], legend: null };
      }
    }
    return copy;
  }

  async function draw(id, full) {
    const spec = narrow.matches ? withoutLegend(full) : full;
    const place = document.getElementById(id);
    const height = narrow.matches ? 280 : 360;
    // No subtitle on a phone: a title is one line, and what does not fit would be cut off.
    const title = narrow.matches ? shortTitle(spec.title) : spec.title;
    const config = themed(spec.config || {});
    const result = await vegaEmbed(place, { ...spec, title, height, config }, {
      renderer: "svg",
      actions: { export: true, source: false, compiled: false, editor: false },
      downloadFileName: id,
    }).catch((error) => {
      place.classList.add("failed");
      place.textContent = "This chart could not be drawn: " + error.message;
      return null;
    });
    if (result) {
      charts.push(result);
      if (picks(result)) follow(result.view);
    }
  }

  function shortTitle(title) {
    const text = typeof title === "string" ? title : title.text;
    return { text: text.split(/: (.*)/s).filter((part) => part) };
  }

  function drawAll() {
    drawing = drawing.then(async () => {
      for (const chart of charts) chart.finalize();
      charts = [];
      await Promise.all(Object.entries(specs).map(([id, spec]) => draw(id, spec)));
      showPicked();
      document.documentElement.dataset.charts = String(charts.length);
    });
  }

  bar?.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if ("all" in button.dataset) picked.clear();
    else {
      const name = names[button.dataset.direction];
      if (!picked.delete(name)) picked.add(name);
    }
    showPicked();
  });
  dark.addEventListener("change", drawAll);
  narrow.addEventListener("change", drawAll);
  drawAll();
})();
