"use strict";

/* The theme that was chosen here, before the first paint. */

try {
  const chosen = localStorage.getItem("embatch-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // Storage is closed to this page: the system's theme stands.
}
