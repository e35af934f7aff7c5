// Fetches pages as the server makes them and puts them in place of what is shown, without a reload.
//
// A page comes as a parsed document (XMLHttpRequest can give one), so that no text is ever turned into HTML by a script;
// the Content-Security-Policy forbids it, too.

import { localise, setClock } from "./times.js";

/** A document from the server. Throws `Error` with `status` where it is not to be had. */
export function fetchDocument(url) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("GET", url);
    request.responseType = "document";
    request.setRequestHeader("Accept", "text/html");
    request.onload = () => {
      if (request.status === 200 && request.response) return resolve(request.response);
      reject(Object.assign(new Error(`the server answered ${request.status}`), { status: request.status }));
    };
    request.onerror = () => reject(Object.assign(new Error("the server cannot be reached"), { status: 0 }));
    request.send();
  });
}

/** What only a script makes useful, or understandable, in new content. */
export function prepare(root) {
  localise(root);
  for (const button of root.querySelectorAll("[data-copy], [data-copy-from], [data-script]")) button.hidden = false;
}

const listeners = [];

/** Calls `action` after each change of the page. */
export function onChange(action) {
  listeners.push(action);
}

/** The document takes the place of the page, as far as it differs: focus, scroll, and what is open stay. */
export function show(fetched) {
  setClock(fetched.body.dataset.now);
  prepare(fetched);
  for (const name of Object.keys(document.body.dataset)) delete document.body.dataset[name];
  Object.assign(document.body.dataset, fetched.body.dataset);
  document.title = fetched.title;
  morph(document.getElementById("main"), fetched.getElementById("main"));
  const nav = document.querySelector(".top nav"), fetchedNav = fetched.querySelector(".top nav");
  if (nav && fetchedNav) morph(nav, fetchedNav);
  changed();
}

export function changed() {
  for (const action of listeners) action();
}

/** Makes `from` equal to `to`, touching only what differs. What a person has opened or filled in stays. */
export function morph(from, to) {
  if (from.isEqualNode(to)) return;
  const isLazy = from.hasAttribute("data-src");
  const outdated = isLazy && from.dataset.version !== to.dataset.version;
  for (const { name } of [...from.attributes]) {
    if (!to.hasAttribute(name) && !keptAttribute(from, name)) from.removeAttribute(name);
  }
  for (const { name, value } of [...to.attributes]) {
    if (from.getAttribute(name) !== value && !keptAttribute(from, name)) from.setAttribute(name, value);
  }
  if (isLazy && !to.hasAttribute("data-loaded")) {
    if (outdated) from.dispatchEvent(new CustomEvent("outdated", { bubbles: true }));
    return;
  }
  let place = from.firstChild;
  for (const wanted of [...to.childNodes]) {
    const match = found(from, wanted, place);
    if (!match) {
      from.insertBefore(document.adoptNode(wanted), place);
      continue;
    }
    if (match === place) place = place.nextSibling;
    else from.insertBefore(match, place);
    if (match.nodeType === Node.ELEMENT_NODE) morph(match, wanted);
    else if (match.data !== wanted.data) match.data = wanted.data;
  }
  while (place) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

function keptAttribute(element, name) {
  return (name === "open" && element.tagName === "DETAILS") || name === "data-loaded";
}

function found(parent, wanted, place) {
  if (wanted.id) {
    const same = document.getElementById(wanted.id);
    return same && same.parentNode === parent && same.nodeName === wanted.nodeName ? same : null;
  }
  return place && place.nodeType === wanted.nodeType && place.nodeName === wanted.nodeName && !place.id ? place : null;
}
