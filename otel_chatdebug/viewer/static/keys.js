// Single keys, as the dialog behind "Keys" lists them. They can be switched off there: who speaks to the computer, or
// has a cat, is glad of it.

const STORED = "chatdebug-keys";
const help = document.getElementById("help");
let current = null; // the id or the address of the row that is chosen

function rows() {
  return [...document.querySelectorAll("[data-rows] > tbody > tr, ul[data-rows] > li, .step")];
}

function nameOf(row) {
  return row.id || row.querySelector("a")?.href;
}

/** Marks the chosen row again, after the page has changed. */
export function mark() {
  for (const row of rows()) row.classList.toggle("at", current !== null && nameOf(row) === current);
}

function move(by) {
  const all = rows();
  if (!all.length) return;
  const at = all.findIndex((row) => nameOf(row) === current);
  const next = at < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(all.length - 1, Math.max(0, at + by));
  current = nameOf(all[next]);
  mark();
  const focus = all[next].querySelector("a.row-link, :scope > summary");
  focus?.focus({ preventScroll: true });
  all[next].scrollIntoView({ block: "nearest" });
}

function chosen() {
  return rows().find((row) => nameOf(row) === current);
}

const KEYS = {
  j: () => move(1),
  k: () => move(-1),
  o: () => {
    const step = chosen();
    if (step?.tagName === "DETAILS") step.open = !step.open;
    else step?.querySelector("a.row-link")?.click();
  },
  "/": () => document.getElementById("search")?.focus(),
  r: () => follow(".top nav a:nth-child(1)"),
  c: () => follow(".top nav a:nth-child(2)"),
  p: () => follow(".top nav a:nth-child(3)"),
  u: () => follow('[data-key="u"]'),
  e: () => follow('[data-key="e"]'),
  t: () => document.getElementById("theme").click(),
  "?": () => help.showModal(),
};

function follow(selector) {
  document.querySelector(selector)?.click();
}

export function start() {
  const box = document.getElementById("keys-on");
  let on = true;
  try {
    on = localStorage.getItem(STORED) !== "off";
  } catch {
    // storage is off
  }
  box.checked = on;
  box.addEventListener("change", () => {
    on = box.checked;
    try {
      localStorage.setItem(STORED, on ? "on" : "off");
    } catch {
      // storage is off
    }
  });
  const button = document.getElementById("help-button");
  button.hidden = false;
  button.addEventListener("click", () => help.showModal());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const writing = event.target.closest("input:not([type=checkbox]), select, textarea, [contenteditable]");
    if (writing && event.key === "Escape") writing.blur();
    if (!on || writing || help.open || !Object.hasOwn(KEYS, event.key)) return;
    event.preventDefault();
    KEYS[event.key]();
  });
}
