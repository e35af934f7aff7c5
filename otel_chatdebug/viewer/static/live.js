// Keeps a page current: server-sent events tell that something changed, and the page is fetched again. Where they do not
// come through (a proxy refuses or holds them), it asks from time to time.

import { fetchDocument, show } from "./page.js";

const QUIET = 300; // milliseconds after a change, for what changes together
const SHORTEST = 1000; // between two fetches of a page
const HELLO = 6000; // for the first event; a proxy that holds them back is found out by it
const POLL = 2500;
const AGAIN = 30000; // after which events are tried again

const sign = document.getElementById("live");
let source = null;
let polling = null;
let cursor = null;
let fetching = false;
let wanted = false;
let timer = null;
let last = 0;

function say(state, text) {
  sign.hidden = false;
  sign.dataset.state = state;
  if (sign.textContent !== text) sign.textContent = text;
}

function address(what) {
  const { prefix, liveChat, liveRun } = document.body.dataset;
  const url = new URL(`${prefix}/${what}`, location.href);
  if (liveChat !== undefined) url.searchParams.set("chat", liveChat);
  if (liveRun !== undefined) url.searchParams.set("run", liveRun);
  return url;
}

/** Fetches the page again, soon; many wishes at once are one fetch. */
export function refresh(delay = QUIET) {
  wanted = true;
  if (timer !== null || fetching) return;
  const wait = Math.max(delay, last + SHORTEST - Date.now());
  timer = setTimeout(() => {
    timer = null;
    void go();
  }, wait);
}

async function go() {
  if (document.hidden) return; // it is fetched when it is looked at again
  // Whoever has selected text is about to copy it.
  if (!getSelection().isCollapsed && document.getElementById("main").contains(getSelection().anchorNode)) {
    return refresh(SHORTEST);
  }
  fetching = true;
  wanted = false;
  const asked = location.href;
  try {
    const fetched = await fetchDocument(asked);
    if (asked === location.href) show(fetched);
  } catch (error) {
    if (error.status === 404) say("lost", "deleted");
    else if (error.status === 401) say("lost", "a new token is needed: reload");
    else say("lost", "no connection, trying again");
    if (error.status !== 404 && error.status !== 401) wanted = true;
  } finally {
    fetching = false;
    last = Date.now();
    if (wanted) refresh();
  }
}

function listen() {
  stop();
  say("polling", "connecting");
  source = new EventSource(address("live"));
  const late = setTimeout(poll, HELLO);
  source.addEventListener("hello", () => {
    clearTimeout(late);
    say("live", "live");
    refresh(0); // what happened before it listened
  });
  source.addEventListener("change", () => {
    say("live", "live");
    refresh();
  });
  source.onerror = () => {
    clearTimeout(late);
    // It connects again by itself, unless it was refused.
    if (source.readyState === EventSource.CLOSED) poll();
    else say("lost", "no connection, trying again");
  };
}

function poll() {
  stop();
  say("polling", "polling");
  const begun = Date.now();
  const ask = async () => {
    if (Date.now() - begun > AGAIN) return listen();
    try {
      const url = address("changes");
      if (cursor !== null) url.searchParams.set("cursor", cursor);
      const response = await fetch(url, { headers: { accept: "application/json" } });
      if (!response.ok) throw new Error();
      const news = await response.json();
      say("polling", "polling");
      if (cursor === null || news.changed) refresh(0);
      cursor = news.cursor;
    } catch {
      say("lost", "no connection, trying again");
    }
    if (polling !== null) polling = setTimeout(ask, POLL);
  };
  polling = setTimeout(ask, 0);
}

function stop() {
  source?.close();
  source = null;
  clearTimeout(polling);
  polling = null;
}

/** Begins, on a page that wants it. */
export function start() {
  if (document.body.dataset.live === undefined) return;
  listen();
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) stop();
    else listen();
  });
  // What waits changes while nothing happens: since when, and whether its process still lives.
  setInterval(() => {
    const every = Number(document.body.dataset.refresh);
    if (every && Date.now() - last > every * 1000) refresh(0);
  }, 1000);
}

/** Listens anew, after the page has become another one. */
export function restart() {
  if (document.body.dataset.live !== undefined) listen();
}
