// Makes a page live. All of it is readable without.

import * as content from "./content.js";
import * as keys from "./keys.js";
import * as live from "./live.js";
import { fetchDocument, onChange, prepare, show } from "./page.js";
import * as times from "./times.js";

times.start();
prepare(document);
onChange(keys.mark);
onChange(content.look);
keys.start();
content.start();
live.start();

// The theme: as the system, or the one that was chosen
const root = document.documentElement;
const button = document.getElementById("theme");
const NEXT = { system: "light", light: "dark", dark: "system" };

function nameTheme() {
  button.textContent = `Theme: ${root.dataset.theme ?? "system"}`;
}

button.hidden = false;
nameTheme();
button.addEventListener("click", () => {
  const next = NEXT[root.dataset.theme ?? "system"];
  if (next === "system") delete root.dataset.theme;
  else root.dataset.theme = next;
  try {
    localStorage.setItem("chatdebug-theme", next);
  } catch {
    // storage is off: it holds for this page
  }
  nameTheme();
});

// Copying
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Only secure origins have a clipboard: over plain HTTP from another machine this old way is left.
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  toast("Copied");
}

function toast(text) {
  document.querySelector(".toast")?.remove();
  const note = document.createElement("div");
  note.className = "toast";
  note.setAttribute("role", "status");
  note.textContent = text;
  document.body.append(note);
  setTimeout(() => note.remove(), 2000);
}

document.addEventListener("click", async (event) => {
  const copier = event.target.closest("button[data-copy], button[data-copy-from]");
  if (!copier) return;
  if (copier.dataset.copy !== undefined) return copy(copier.dataset.copy);
  const response = await fetch(copier.dataset.copyFrom);
  if (response.ok) await copy(await response.text());
  else toast("It is not kept any more");
});

// Filters take effect as they are set
const form = document.querySelector("form.filters");
let typing = null;

async function filter(url, push) {
  history[push ? "pushState" : "replaceState"](null, "", url);
  try {
    const fetched = await fetchDocument(url);
    if (location.href !== new URL(url, document.baseURI).href) return; // somebody has gone on meanwhile
    show(fetched);
    live.restart();
  } catch {
    location.assign(url);
  }
}

function chosen() {
  const url = new URL(form.action);
  for (const [name, value] of new FormData(form)) {
    if (value !== "" || name === "chat") url.searchParams.append(name, value);
  }
  return url.href;
}

/** Whether somebody has made something else of a field than the page came with. */
function isSet(field) {
  if (field.type === "search") return field.value !== field.defaultValue;
  if (field.type === "select-one") return field.value !== (field.querySelector("option[selected]") ?? field.options[0]).value;
  return false;
}

if (form) {
  form.addEventListener("input", (event) => {
    clearTimeout(typing);
    if (event.target.type === "search") typing = setTimeout(() => filter(chosen(), false), 250);
  });
  form.addEventListener("change", (event) => {
    if (event.target.type !== "search") void filter(chosen(), true);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(typing);
    void filter(chosen(), true);
  });
  addEventListener("popstate", async () => {
    await filter(location.href, false);
    form.reset();
  });
  if ([...form.elements].some(isSet)) void filter(chosen(), false); // before this script was there
}
