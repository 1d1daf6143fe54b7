"use strict";

/* What a page answers to besides links and forms: the theme, copying, and the grid of batches. */

(() => {
  /* Theme: as the system has it, light, dark. */

  const themes = ["", "light", "dark"];
  const button = document.getElementById("theme");
  const root = document.documentElement;

  function nameTheme() {
    const chosen = root.dataset.theme || "";
    button.setAttribute("aria-label", `Theme: ${chosen || "as the system has it"}`);
    button.title = button.getAttribute("aria-label");
  }

  button.hidden = false;
  nameTheme();
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme || "") + 1) % themes.length];
    if (next) root.dataset.theme = next;
    else delete root.dataset.theme;
    try {
      if (next) localStorage.setItem("embatch-theme", next);
      else localStorage.removeItem("embatch-theme");
    } catch {
      // Not remembered where storage is closed to this page.
    }
    nameTheme();
  });

  /* Copying. */

  function showCopying() {
    if (!navigator.clipboard) return;
    for (const copy of document.querySelectorAll("[data-copy][hidden]")) copy.hidden = false;
  }

  document.addEventListener("click", async (event) => {
    const copy = event.target.closest("[data-copy]");
    if (!copy) return;
    try {
      await navigator.clipboard.writeText(copy.dataset.copy);
      copy.textContent = "Copied";
    } catch {
      copy.textContent = "Not allowed";
    }
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });

  /* The grid: the arrow keys and the pointer tell a cell, Enter and a click open its batch. */

  const HINT = "Point at a cell, or move with the arrow keys; Enter opens the batch.";
  const SVG = "http://www.w3.org/2000/svg";
  let grid = null;
  let known = "";
  let looks = [];
  let current = -1;

  function readGrid() {
    grid = document.getElementById("grid");
    if (!grid || grid.dataset.looks === known) return;
    known = grid.dataset.looks;
    looks = [];
    for (const span of known.split(" ")) {
      const [look, length] = span.split("*");
      for (let at = 0; at < Number(length); at += 1) looks.push(look);
    }
    tell(current);
  }

  function span(at) {
    const each = Number(grid.dataset.perCell);
    const first = Number(grid.dataset.first) + at * each;
    return [first, first + each - 1];
  }

  function tell(at) {
    current = at;
    const cells = grid.querySelector(".cells");
    let cursor = cells.querySelector(".cursor");
    const line = document.getElementById("grid-told");
    if (at < 0 || !looks[at]) {
      if (cursor) cursor.remove();
      line.textContent = HINT;
      return;
    }
    if (!cursor) {
      cursor = document.createElementNS(SVG, "rect");
      cursor.setAttribute("class", "cursor");
      cursor.setAttribute("width", "1");
      cursor.setAttribute("height", "1");
      cursor.setAttribute("rx", ".14");
      cells.append(cursor);
    }
    const across = Number(grid.dataset.across);
    cursor.setAttribute("x", String(at % across));
    cursor.setAttribute("y", String(Math.floor(at / across) - 0.5));
    const [first, last] = span(at);
    const name = first === last ? `batch ${first}` : `batches ${first} to ${last}`;
    line.textContent = `${name}: ${looks[at] === "held" ? "waits" : looks[at]}`;
  }

  function cellUnder(event) {
    const box = grid.querySelector(".cells").getBoundingClientRect();
    const across = Number(grid.dataset.across);
    const side = box.width / across;
    const x = Math.floor((event.clientX - box.left) / side);
    const y = Math.floor((event.clientY - box.top) / side);
    const at = y * across + x;
    return x >= 0 && x < across && y >= 0 && at < looks.length ? at : -1;
  }

  function open(at) {
    if (at >= 0 && looks[at]) location.href = grid.dataset.href + span(at)[0];
  }

  const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };

  document.addEventListener("keydown", (event) => {
    if (!grid || document.activeElement !== grid || event.ctrlKey || event.metaKey || event.altKey) return;
    const across = Number(grid.dataset.across);
    const by = { ...moves, ArrowUp: -across, ArrowDown: across }[event.key];
    if (by !== undefined) {
      event.preventDefault();
      const next = current < 0 ? 0 : current + by;
      tell(Math.max(0, Math.min(looks.length - 1, next)));
    } else if (event.key === "Enter" && current >= 0) {
      event.preventDefault();
      open(current);
    } else if (event.key === "Escape") {
      tell(-1);
    }
  });

  document.addEventListener("focusin", (event) => {
    if (grid && event.target === grid && current < 0 && grid.matches(":focus-visible")) tell(0);
  });

  document.addEventListener("pointermove", (event) => {
    if (!grid || !event.target.closest || !event.target.closest("#grid")) return;
    const at = cellUnder(event);
    if (at !== current) tell(at);
  });

  document.addEventListener("click", (event) => {
    if (grid && event.target.closest("#grid")) open(cellUnder(event));
  });

  function changed() {
    showCopying();
    readGrid();
  }

  document.addEventListener("page-changed", () => {
    known = "";
    changed();
  });
  changed();
})();
