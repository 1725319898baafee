"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("chart-specs").textContent);
  const names = JSON.parse(document.getElementById("direction-names").textContent);
  const panels = JSON.parse(document.getElementById("panels").textContent);
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

  // A phone has no room for directions in each chart: the bar above is their legend, and a tap on a mark picks too.
  function withoutLegend(part) {
    const copy = { ...part };
    if (part.layer) copy.layer = part.layer.map(withoutLegend);
    if (part.params) copy.params = part.params.map(({ bind, ...param }) => param);
    if (part.encoding) {
      copy.encoding = { ...part.encoding };
      for (const channel of ["color", "strokeDash", "shape"]) {
        const shown = part.encoding[channel];
        if (shown?.field === "direction") copy.encoding[channel] = { ...shown, legend: null };
      }
    }
    return copy;
  }

  async function draw(id, full) {
    const spec = narrow.matches ? withoutLegend(full) : { ...full };
    const place = document.getElementById(id);
    const panel = spec.params?.some(({ name }) => name === "step") ? place.closest("[data-panel]") : null;
    if (panel) spec.params = spec.params.map((p) => p.name === "step" ? { ...p, value: stepOf(panel).step } : p);
    // A chart with a row for each of many things has the height that these need.
    const height = Math.max(narrow.matches ? 280 : 360, spec.height > 330 ? spec.height : 0);
    // No subtitle on a phone: a title is one line, and what does not fit would be cut off.
    const title = narrow.matches ? shortTitle(spec.title) : spec.title;
    const config = themed(spec.config || {});
    const result = await vegaEmbed(place, { ...spec, title, height, config }, {
      renderer: "svg",
      actions: { export: true, source: false, compiled: false, editor: false },
      downloadFileName: id,
      tooltip: { formatTooltip: told },
    }).catch((error) => {
      place.classList.add("failed");
      place.textContent = "This chart could not be drawn: " + error.message;
      return null;
    });
    if (result) {
      charts.push({ ...result, panel });
      place.querySelector("summary").setAttribute("aria-label", "Save the chart");
      if (picks(result)) follow(result.view);
    }
  }

  // A tooltip without the numbers that weren't measured.
  function told(value, escaped) {
    const known = Object.entries(value).filter(([, text]) => text !== "NaN");
    const rows = known.map(([name, text]) => `<tr><td class="key">${escaped(name)}</td><td>${escaped(text)}</td></tr>`);
    return `<table><tbody>${rows.join("")}</tbody></table>`;
  }

  function stepOf(panel) {
    return panels[panel.dataset.panel].steps[panel.querySelector("input").value];
  }

  function showStep(panel) {
    const { step, label, headers, rows, marks, note } = stepOf(panel);
    panel.querySelector("output").textContent = label;
    panel.querySelector("input").setAttribute("aria-valuetext", label);
    panel.querySelector(".note").textContent = note;
    panel.querySelectorAll("thead button").forEach((button, place) => { button.textContent = headers[place]; });
    for (const row of panel.querySelectorAll("tbody tr")) {
      const cells = rows[row.dataset.index];
      row.hidden = !cells;
      [...row.cells].slice(1).forEach((cell, place) => {
        cell.textContent = cells ? cells[place] : "";
        cell.className = marks[`${row.dataset.index},${place}`] || "";
      });
    }
    sort(panel);
    for (const chart of charts) if (chart.panel === panel) chart.view.signal("step", step).runAsync();
  }

  // A number as the page writes it; NaN for words.
  function valueOf(text) {
    const [, number, raised = ""] = text.match(/^(−?[\d.]+)(?:×10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?/) || [];
    const power = [...raised].map((digit) => digit === "⁻" ? "-" : "⁰¹²³⁴⁵⁶⁷⁸⁹".indexOf(digit)).join("");
    return number === undefined ? NaN : Number(`${number.replace("−", "-")}e${power || 0}`);
  }

  // By the column whose header says so, else as measured; words come last.
  function sort(panel) {
    const header = panel.querySelector("thead [aria-sort]");
    const sign = header?.getAttribute("aria-sort") === "descending" ? -1 : 1;
    const text = (row) => header ? row.cells[header.cellIndex].textContent : "";
    const compared = (a, b) => {
      if (header?.cellIndex === 0) return sign * text(a).localeCompare(text(b));
      const [left, right] = [valueOf(text(a)), valueOf(text(b))];
      return isNaN(left) || isNaN(right) ? isNaN(left) - isNaN(right) : sign * (left - right);
    };
    const body = panel.querySelector("tbody");
    body.append(...[...body.rows].sort((a, b) => compared(a, b) || a.dataset.index - b.dataset.index));
  }

  // Ascending, descending, as measured.
  function sortBy(panel, header) {
    const next = { ascending: "descending", descending: null }[header.getAttribute("aria-sort")];
    for (const other of panel.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
    if (next !== null) header.setAttribute("aria-sort", next || "ascending");
    sort(panel);
  }

  // The table of the chosen step, its rows in the order in which they are shown.
  function textOf(panel, format) {
    const { headers, rows, latex } = stepOf(panel);
    const shown = [...panel.querySelectorAll("tbody tr:not([hidden])")];
    if (format === "csv") {
      const lines = [headers, ...shown.map((row) => [...row.cells].map((cell) => cell.textContent.trim()))];
      return lines.map((cells) => cells.map((cell) => `"${cell.replaceAll('"', '""')}"`).join(",") + "\r\n").join("");
    }
    const lines = latex.split("\n"), first = lines.indexOf("\\midrule") + 1;
    const placed = rows.map((cells, index) => cells ? index : -1).filter((index) => index >= 0);
    const body = shown.map((row) => lines[first + placed.indexOf(Number(row.dataset.index))]);
    return [...lines.slice(0, first), ...body, ...lines.slice(first + body.length)].join("\n");
  }

  async function copy(panel, button) {
    const text = textOf(panel, button.dataset.copy), place = panel.querySelector("textarea");
    place.value = text;
    const copied = await navigator.clipboard?.writeText(text).then(() => true, () => false);
    panel.querySelector("[role=status]").textContent = copied ? "Copied." : "Copy it from here:";
    place.hidden = Boolean(copied);
    if (!copied) place.select();
  }

  function shortTitle(title) {
    const text = typeof title === "string" ? title : title.text;
    const lines = text.split(/: (.*)/s).flatMap((part) => part.match(/\S.{0,39}(?=\s|$)|\S{40}/g) || []);
    return { text: lines.slice(0, 4) };
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
  for (const panel of document.querySelectorAll("[data-panel]")) {
    panel.querySelector("input").addEventListener("input", () => showStep(panel));
    panel.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button?.dataset.copy) copy(panel, button);
      else if (button) sortBy(panel, button.closest("th"));
    });
    showStep(panel);
  }
  dark.addEventListener("change", drawAll);
  narrow.addEventListener("change", drawAll);
  drawAll();
})();
