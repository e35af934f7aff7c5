// What is fetched only when somebody wants to see it: the inside of a step, a body, the rest of a long text.

import { changed, fetchDocument, morph, prepare } from "./page.js";

async function load(box) {
  if (box.dataset.loading !== undefined) return;
  box.dataset.loading = "";
  const url = box.dataset.src;
  try {
    if (box.tagName === "PRE") await loadText(box, url);
    else {
      const fetched = await fetchDocument(url);
      prepare(fetched);
      const part = fetched.getElementById("part");
      const inside = box.querySelector(":scope > .part-root");
      if (inside) morph(inside, named(part));
      else box.replaceChildren(document.adoptNode(named(part)));
    }
    box.dataset.loaded = "";
  } catch (error) {
    const note = document.createElement("p");
    note.className = "trouble";
    note.textContent = error.status === 404 ? "It is not kept any more." : `This could not be read: ${error.message}. `;
    box.replaceChildren(note);
  } finally {
    delete box.dataset.loading;
  }
  changed();
}

function named(part) {
  part.removeAttribute("id");
  part.className = "part-root";
  return part;
}

async function loadText(box, url) {
  const response = await fetch(url);
  if (!response.ok) throw Object.assign(new Error(`the server answered ${response.status}`), { status: response.status });
  box.textContent = await response.text();
}

/** What is open, or becomes so, is fetched. */
function look() {
  for (const box of document.querySelectorAll("[data-src]:not([data-loaded])")) {
    const fold = box.closest("details");
    if (fold === null || fold.open) void load(box);
  }
}

/** More of something, in place of the link that offers it. */
async function more(link) {
  link.setAttribute("aria-busy", "true");
  try {
    if (link.dataset.more === "text") {
      const target = link.closest(".part").querySelector("pre");
      await loadText(target, link.href);
      link.remove();
    } else {
      const fetched = await fetchDocument(link.href);
      prepare(fetched);
      const place = link.closest("li");
      for (const item of [...fetched.querySelectorAll("#part > ol > li")]) place.before(document.adoptNode(item));
      place.remove();
    }
    changed();
  } catch (error) {
    link.textContent = `This could not be read: ${error.message}. Try again`;
    link.removeAttribute("aria-busy");
  }
}

/** Shows a body in its other form. */
function turn(button) {
  const box = document.getElementById(button.getAttribute("aria-controls"));
  for (const other of button.parentElement.children) other.setAttribute("aria-pressed", String(other === button));
  box.dataset.src = button.dataset.form;
  delete box.dataset.loaded;
  void load(box);
}

export function start() {
  document.addEventListener("toggle", look, true);
  document.addEventListener("outdated", (event) => {
    delete event.target.dataset.loaded;
    look();
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-more]");
    if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      void more(link);
    }
    const button = event.target.closest("button[data-form]");
    if (button) turn(button);
  });
  // A link to a step opens it.
  document.addEventListener("click", (event) => {
    const hash = event.target.closest("a[data-opens]")?.hash;
    if (!hash || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    history.replaceState(null, "", hash);
    openAt(hash);
  });
  if (location.hash) openAt(location.hash);
  look();
}

export { look };

function openAt(hash) {
  const target = document.getElementById(decodeURIComponent(hash.slice(1)));
  for (let fold = target?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  target?.scrollIntoView({ block: "nearest" });
}
