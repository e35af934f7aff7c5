// Before the first paint, so that a chosen theme does not flash: the system's, unless somebody has chosen.
try {
  const chosen = localStorage.getItem("chatdebug-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // storage is off: as the system
}
