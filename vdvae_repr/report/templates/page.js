"use strict";
// Read-outs of charts, sorting, filtering, the table as CSV, dark and light. The page can be read without.
(() => {
  const root = document.documentElement;
  root.classList.add("scripts");

  const theme = document.getElementById("theme");
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
  const showTheme = () => {
    theme.textContent = isDark() ? "Light" : "Dark";
    theme.setAttribute("aria-pressed", String(isDark()));
    theme.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colors`);
  };
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
  });
  systemDark.addEventListener("change", showTheme);
  showTheme();

  // What is wider than the screen says so, and fades where it goes on.
  for (const box of document.querySelectorAll(".scroll, .links")) {
    const hint = document.createElement("p");
    hint.className = "hint";
    hint.textContent = "Goes on to the right: scroll sideways \u2192";
    if (box.classList.contains("scroll")) box.before(hint);
    const look = () => {
      const over = box.scrollWidth - box.clientWidth;
      hint.classList.toggle("on", over > 1);
      box.classList.toggle("more", over - box.scrollLeft > 1);
    };
    box.addEventListener("scroll", look, { passive: true });
    new ResizeObserver(look).observe(box);
  }

  // Read-outs: of the point nearest to the pointer, or, by arrow keys, of one after the other.
  const tip = document.getElementById("tip");
  let shown = null;
  const hide = () => {
    if (shown) shown.classList.remove("on");
    shown = null;
    tip.hidden = true;
  };
  const show = (point) => {
    if (point === shown) return;
    hide();
    shown = point;
    point.classList.add("on");
    tip.textContent = point.dataset.tip;
    tip.hidden = false;
    place();
  };
  const place = () => {
    if (!shown) return;
    const box = shown.getBoundingClientRect();
    const left = box.left + box.width / 2 - tip.offsetWidth / 2;
    const above = box.top - tip.offsetHeight - 8;
    tip.style.left = `${Math.max(4, Math.min(left, innerWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${above < 4 ? box.bottom + 8 : above}px`;
  };
  for (const chart of document.querySelectorAll("svg.chart")) {
    for (const title of chart.querySelectorAll("title")) title.remove(); // in whose place the read-out is
    const points = [...chart.querySelectorAll(".point")].map((element) => ({
      element, x: Number(element.dataset.x), y: Number(element.dataset.y),
    }));
    if (!points.length) continue;
    const inOrder = [...points].sort((a, b) => a.x - b.x || a.y - b.y);
    chart.setAttribute("tabindex", "0");
    chart.addEventListener("pointermove", (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
      const far = (p) => Math.hypot(p.x - at.x, p.y - at.y);
      const nearest = points.reduce((best, p) => (far(p) < far(best) ? p : best));
      if (far(nearest) < 30) show(nearest.element);
      else hide();
    });
    chart.addEventListener("pointerleave", hide);
    chart.addEventListener("blur", hide);
    chart.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") hide();
      if (!step) return;
      event.preventDefault();
      const now = inOrder.findIndex((p) => p.element === shown);
      const next = now < 0 ? (step > 0 ? 0 : inOrder.length - 1) : now + step;
      show(inOrder[(next + inOrder.length) % inOrder.length].element);
    });
  }
  addEventListener("scroll", place, { passive: true, capture: true });
  addEventListener("beforeprint", () => {
    hide();
    for (const details of document.querySelectorAll("details")) details.open = true;
  });

  // The table.
  const table = document.getElementById("table");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headers = [...table.tHead.rows[0].cells];
  const names = headers.map((header) => header.dataset.name);
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value ?? cell.textContent;
  };
  headers.forEach((header, column) => {
    const numbers = header.classList.contains("number") || header.dataset.name === "chosen";
    header.querySelector("button").addEventListener("click", () => {
      const first = numbers ? "descending" : "ascending";
      const other = numbers ? "ascending" : "descending";
      const order = header.getAttribute("aria-sort") === first ? other : first;
      for (const each of headers) each.setAttribute("aria-sort", "none");
      header.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const keyed = rows.map((row, place) => ({ row, place, key: value(row, column) }));
      keyed.sort((a, b) => {
        if (a.key === "" || b.key === "") return (a.key === "") - (b.key === "") || a.place - b.place;
        const by = numbers ? Number(a.key) - Number(b.key) : a.key.localeCompare(b.key, "en", { numeric: true });
        return sign * by || a.place - b.place;
      });
      body.append(...keyed.map((each) => each.row));
    });
    if (numbers && header.dataset.name !== "chosen") for (const row of rows) row.cells[column].classList.add("number");
  });

  const filter = document.getElementById("filter");
  const picked = document.getElementById("picked");
  const count = document.getElementById("count");
  const words = (row) => [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
  const texts = new Map(rows.map((row) => [row, words(row)]));
  const choices = [];
  for (const name of ["head", "model", "selection", "feature", "pool", "metric", "at"]) {
    const column = names.indexOf(name);
    const known = column < 0 ? [] : [...new Set(rows.map((row) => row.cells[column].textContent))].filter(Boolean);
    if (known.length < 2 || known.length > 40) continue;
    const label = document.createElement("label");
    const select = document.createElement("select");
    select.append(new Option("all", ""), ...known.map((text) => new Option(text, text)));
    select.dataset.name = name;
    label.append(`${name} `, select);
    document.getElementById("choices").append(label);
    choices.push({ column, select });
    select.addEventListener("change", apply);
  }
  function apply() {
    const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = names.indexOf("chosen");
    let left = 0;
    for (const row of rows) {
      row.hidden = !(
        wanted.every((word) => texts.get(row).includes(word)) &&
        (!picked.checked || value(row, chosen) === "1") &&
        choices.every(({ column, select }) => !select.value || row.cells[column].textContent === select.value)
      );
      left += !row.hidden;
    }
    count.textContent = left === rows.length ? `${left} rows` : `${left} of ${rows.length} rows`;
  }
  filter.addEventListener("input", apply);
  picked.addEventListener("change", apply);
  document.getElementById("download").addEventListener("click", () => {
    const lines = document.getElementById("csv").textContent.split("\n");
    const kept = [...body.rows].filter((row) => !row.hidden).map((row) => lines[Number(row.dataset.row)]);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([[lines[0], ...kept].join("\n") + "\n"], { type: "text/csv" }));
    link.download = "results.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  });
})();
