"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");
  const dark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  function layout(own, height) {
    const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line"), automargin: true };
    const merged = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", height,
      font: { family: "system-ui, sans-serif", size: 12, color: colour("--ink") },
      margin: { l: 56, r: 16, t: 16, b: 48 }, hovermode: "closest",
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
      ...own,
    };
    for (const key of new Set(["xaxis", "yaxis", ...Object.keys(own)])) {
      if (/^[xy]axis\d*$/.test(key)) merged[key] = { ...axis, ...(own[key] || {}) };
    }
    return merged;
  }

  const settings = {
    responsive: true, displaylogo: false, displayModeBar: false,
  };
  const drawn = new Set();
  function draw(place) {
    const told = JSON.parse(document.getElementById(place.dataset.figure).textContent);
    for (const trace of told.data) {
      if (trace.type === "heatmap") trace.textfont = { color: colour("--ink") };  // readable on light cells and dark
    }
    Plotly.react(place, told.data, layout(told.layout, place.clientHeight), settings);
    drawn.add(place);
  }
  const places = [...document.querySelectorAll(".plot[data-figure]")];
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting && !drawn.has(entry.target)) draw(entry.target);
    }
  }, { rootMargin: "600px" });
  for (const place of places) seen.observe(place);
  const redraw = () => drawn.forEach(draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  window.addEventListener("beforeprint", () => places.forEach(draw));

  const button = document.getElementById("theme");
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    redraw();
  });

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const sort = (column) => {
      const head = heads[column];
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[column];
        const data = cell.querySelector("data");
        const text = (data && data.value) || cell.textContent.trim();
        return text !== "" && isFinite(text) ? Number(text) : text;
      };
      const side = down ? -1 : 1;
      const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
      rows.sort(([a], [b]) => {
        if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;  // numbers first, both ways
        return side * (typeof a === "number" ? a - b : a.localeCompare(b));
      });
      table.tBodies[0].append(...rows.map(([, row]) => row));
    };
    heads.forEach((head, column) => {
      head.tabIndex = 0;
      head.addEventListener("click", () => sort(column));
      head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(column); });
    });
  }
})();
