// Times in the reader's own zone, and durations that go on counting, by the server's clock.

let skew = 0;

/** Sets the clock by what the server says; its answer has just come. */
export function setClock(now) {
  const then = Date.parse(now);
  if (!Number.isNaN(then)) skew = then - Date.now();
}

const two = (number) => String(number).padStart(2, "0");

/** Makes all times below `root` local: today's as a time, others with their date. The title has it all. */
export function localise(root) {
  const today = day(new Date(Date.now() + skew));
  for (const element of root.querySelectorAll("time[datetime]")) {
    const moment = new Date(element.dateTime);
    if (Number.isNaN(moment.getTime())) continue;
    const time = `${two(moment.getHours())}:${two(moment.getMinutes())}:${two(moment.getSeconds())}`;
    element.textContent = day(moment) === today ? time : `${day(moment)} ${time}`;
    element.title = `${element.dateTime.replace("T", " ").replace("Z", "")} UTC`;
  }
  count(root);
}

function day(moment) {
  return `${moment.getFullYear()}-${two(moment.getMonth() + 1)}-${two(moment.getDate())}`;
}

/** As `words.duration` in Python. */
export function duration(seconds) {
  if (seconds < 0.9995) return `${Math.max(0, seconds * 1000).toFixed(0)} ms`;
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(Math.round(seconds) / 60);
  if (minutes < 60) return `${minutes} min ${two(Math.round(seconds) % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${two(minutes % 60)} min`;
}

function count(root) {
  for (const element of root.querySelectorAll("[data-since]")) {
    const seconds = (Date.now() + skew - Date.parse(element.dataset.since)) / 1000;
    const text = duration(seconds) + (element.hasAttribute("data-plain") ? "" : " so far");
    if (element.textContent !== text) element.textContent = text;
  }
}

/** Starts the clock of the page. */
export function start() {
  setClock(document.body.dataset.now);
  setInterval(() => {
    if (!document.hidden) count(document);
  }, 1000);
}
