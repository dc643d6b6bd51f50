"use strict";
// Shows what /events tells. Text reaches the page as text only (textContent), whatever a table is called.

const byId = (id) => document.getElementById(id);
const SPAN_SECONDS = 300;
const SHORTEST_SECONDS = 60;
const SURE_MS = 8000;
const QUIET_MS = 5000; // pictures come every second: later than this, the line is taken for dead
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

const count = (n) => whole.format(n);
const rate = (n) => (n === null || n === undefined ? "–" : n > 0 && n < 10 ? fine.format(n) : whole.format(n));

function bytes(n) {
  if (n === null || n === undefined) return "unknown";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  for (; Math.abs(n) >= 1024 && at < units.length - 1; at++) n /= 1024;
  return `${at && n < 100 ? fine.format(n) : whole.format(n)} ${units[at]}`;
}

function seconds(n) {
  if (n === null || n === undefined) return "–";
  if (n === 0) return "0 s";
  if (n < 1) return `${Number((n * 1000).toPrecision(n < 0.1 ? 2 : 3))} ms`;
  if (n < 60) return `${fine.format(n)} s`;
  if (n < 3600) return `${Math.floor(n / 60)} min ${Math.floor(n % 60)} s`;
  if (n < 172800) return `${Math.floor(n / 3600)} h ${Math.floor((n % 3600) / 60)} min`;
  return `${Math.floor(n / 86400)} days`;
}

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

const GLYPHS = { good: "●", warn: "▲", bad: "■", off: "○" };

function pill(node, tone, word) {
  node.dataset.tone = tone;
  put(node.querySelector(".glyph"), GLYPHS[tone]);
  put(node.querySelector(".word"), word);
}

function makePill() {
  const node = make("span", "pill");
  const glyph = make("span", "glyph");
  glyph.setAttribute("aria-hidden", "true");
  node.append(glyph, make("span", "word"));
  return node;
}

// ---------------------------------------------------------------- charts

class Chart {
  constructor(id, pick, format, tick) {
    this.tick = tick;
    this.svg = byId(id);
    this.read = byId(`${id}-read`);
    this.pick = pick;
    this.format = format;
    this.points = [];
    this.pointer = null;
    this.svg.addEventListener("pointermove", (event) => { this.pointer = event.offsetX; this.draw(); });
    this.svg.addEventListener("pointerleave", () => { this.pointer = null; this.draw(); });
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  show(points) {
    this.points = points.map((point) => [point[0], this.pick(point)]);
    this.draw();
  }

  draw() {
    const width = this.svg.clientWidth, height = this.svg.clientHeight;
    if (!width || !this.points.length) return;
    const left = 50, right = 6, top = 8, bottom = 20;
    const end = this.points[this.points.length - 1][0];
    const span = Math.min(Math.max(end - this.points[0][0], SHORTEST_SECONDS), SPAN_SECONDS);
    const begin = end - span;
    const shown = this.points.filter(([time]) => time >= begin);
    const peak = Math.max(...shown.map(([, value]) => value));
    const step = niceStep(peak || 1), ceiling = Math.max(step * Math.ceil(peak / step), step);
    const x = (time) => left + ((time - begin) / span) * (width - left - right);
    const y = (value) => height - bottom - (value / ceiling) * (height - top - bottom);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const parts = [];
    for (let value = 0; value <= ceiling * 1.001; value += step) {
      parts.push(shape("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
      parts.push(label(left - 7, y(value) + 4, "end", this.tick(value)));
    }
    const every = span > 200 ? (width < 400 ? 120 : 60) : span > 100 ? 30 : 15;
    for (let ago = 0; ago <= span; ago += every) {
      const place = x(end - ago);
      if (ago && place < left + 14) break;
      parts.push(label(place, height - 4, ago ? "middle" : "end", ago ? `−${clock(ago)}` : "now"));
    }
    for (const run of runs(shown)) {
      const path = run.map(([time, value], i) => `${i ? "L" : "M"}${x(time).toFixed(1)} ${y(value).toFixed(1)}`).join("");
      const first = x(run[0][0]).toFixed(1), last = x(run[run.length - 1][0]).toFixed(1);
      parts.push(shape("path", { class: "area", d: `${path}L${last} ${y(0)}L${first} ${y(0)}Z` }));
      parts.push(shape("path", { class: "line", d: path }));
    }
    let text = `now ${this.format(shown[shown.length - 1][1])}, peak ${this.format(peak)}`;
    if (this.pointer !== null) {
      const wanted = begin + ((this.pointer - left) / (width - left - right)) * span;
      const near = shown.reduce((best, one) => (Math.abs(one[0] - wanted) < Math.abs(best[0] - wanted) ? one : best));
      parts.push(shape("line", { class: "cross", x1: x(near[0]), x2: x(near[0]), y1: top, y2: height - bottom }));
      parts.push(shape("circle", { class: "mark", cx: x(near[0]), cy: y(near[1]), r: 3.5 }));
      text = `${new Date(near[0] * 1000).toLocaleTimeString()}: ${this.format(near[1])}`;
    }
    put(this.read, text);
    this.svg.replaceChildren(...parts);
  }
}

function niceStep(peak) {
  const rough = peak / 3, power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((factor) => power * factor >= rough * 0.999);
}

function tick(value) {
  if (value >= 1e6) return `${fine.format(value / 1e6)}M`;
  if (value >= 1e4) return `${whole.format(value / 1e3)}k`;
  return String(Number(value.toPrecision(3)));
}

function clock(seconds) {
  return `${Math.floor(seconds / 60)}:${String(Math.round(seconds % 60)).padStart(2, "0")}`;
}

function runs(points) { // a service that was away leaves a gap, not a line across it
  const found = [];
  points.forEach((point, i) => {
    if (!i || point[0] - points[i - 1][0] > 4) found.push([]);
    found[found.length - 1].push(point);
  });
  return found;
}

function shape(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function label(x, y, anchor, text) {
  const node = shape("text", { x, y, "text-anchor": anchor });
  node.textContent = text;
  return node;
}

const rateChart = new Chart("chart-rate", (point) => point[1], (value) => `${rate(value)}/s`, tick);
const lagChart = new Chart("chart-lag", (point) => point[2], seconds, (value) => (value ? seconds(value) : "0"));
let past = [];

function addPoints(points) {
  const first = points.length ? points[0][0] : 0;
  past = past.filter(([time]) => time < first).concat(points).slice(-SPAN_SECONDS * 2);
  rateChart.show(past);
  lagChart.show(past);
}

// ---------------------------------------------------------------- the picture

const PHASES = { streaming: "good", starting: "warn", standby: "off", reconnecting: "bad", draining: "warn", stopped: "bad" };
const STATES = { active: "good", resuming: "warn", paused: "warn", removed: "bad", unsubscribed: "off" };

function showStatus(status) {
  const tone = PHASES[status.phase] || "warn";
  const isWell = status.ready || tone !== "good";
  pill(byId("phase"), isWell ? tone : "bad", status.ready ? `${status.phase}, ready` : status.phase === "streaming" ? "streaming, not ready" : status.phase);
  showReasons([...status.not_ready, ...status.not_alive.map((why) => `not alive: ${why}`), ...(status.last_error ? [status.last_error] : [])]);
  put(byId("rate"), status.rates ? rate(status.rates.events_per_second) : "–");
  const wire = status.rates ? `, now ${bytes(status.rates.bytes_per_second)}/s` : "";
  put(byId("totals"), `${count(status.events)} in all${wire}`);
  put(byId("lag"), seconds(status.lag_seconds));
  put(byId("lag-bytes"), status.lag_bytes === null ? "server not asked yet" : `${bytes(status.lag_bytes)} of WAL not yet flushed`);
  put(byId("queue"), count(status.queue.events));
  put(byId("queue-limit"), `of ${count(status.queue.limit_events)} events${status.queue.held_back ? "; reading waits for room" : `, ${bytes(status.queue.bytes)} of memory`}`);
  const called = status.callbacks.filter((one) => one.state === "active").length;
  put(byId("called"), `${called} of ${status.callbacks.length}`);
  const failed = status.dead_letters.filter((one) => one.state === "failed").reduce((sum, one) => sum + one.count, 0);
  put(byId("letters"), failed ? `are called; ${count(failed)} dead letters wait` : "are called; no dead letters");
  showSlot(status);
  showCallbacks(status);
  showBusy(status);
  showRecent(status);
  put(byId("uptime"), `up ${seconds(Math.floor(status.uptime_seconds))}`);
  document.title = `${status.ready ? "" : "(!) "}${status.slot ? status.slot.name : "walsignal"}: ${status.ready ? "ready" : status.phase === "streaming" ? "not ready" : status.phase}`;
  byId("main").setAttribute("aria-busy", "false");
}

function showReasons(reasons) {
  const box = byId("reasons"), list = box.querySelector("ul");
  box.hidden = !reasons.length;
  if (list.dataset.shown === reasons.join("\n")) return;
  list.dataset.shown = reasons.join("\n");
  list.replaceChildren(...reasons.map((why) => make("li", "", why)));
}

function showSlot(status) {
  const slot = status.slot, facts = [];
  if (!slot) {
    pill(byId("slot-word"), "off", "not seen yet");
    byId("slot-facts").replaceChildren();
    byId("meter").hidden = true;
    return;
  }
  const isLost = slot.invalidation !== "" || slot.wal_status === "lost";
  const left = slot.seconds_to_invalidation;
  const tone = isLost ? "bad" : slot.wal_status === "unreserved" ? "bad" : left !== null && left < 3600 ? "warn" : "good";
  pill(byId("slot-word"), tone, isLost ? `invalidated: ${slot.invalidation || "WAL lost"}` : `${slot.wal_status || "unknown"}${slot.active_pid === null ? ", nobody connected" : ""}`);
  const safe = slot.safe_wal_bytes, retained = slot.retained_bytes, meter = byId("meter");
  meter.hidden = safe === null || retained === null;
  if (!meter.hidden) {
    const part = Math.min(retained / Math.max(retained + Math.max(safe, 0), 1), 1);
    meter.dataset.tone = part > 0.9 ? "bad" : part > 0.6 ? "warn" : tone;
    meter.firstElementChild.style.width = `${(part * 100).toFixed(1)}%`;
    meter.setAttribute("aria-label", `${Math.round(part * 100)} % of the WAL that the server may keep for the slot`);
  }
  facts.push(["Retained WAL", bytes(retained)]);
  facts.push(["Safe WAL left", safe === null ? "no limit set" : bytes(Math.max(safe, 0))]);
  facts.push(["Invalidation", isLost ? "has happened" : left === null ? "not in sight" : left === 0 ? "at the next checkpoint" : `in about ${seconds(left)}`]);
  facts.push(["Held back by", status.slot_held_by === null ? "nobody" : status.slot_held_by]);
  facts.push(["Checkpoint", status.checkpoint.age_seconds === null ? "none yet" : `${status.checkpoint.lsn}, ${seconds(Math.floor(status.checkpoint.age_seconds))} ago`]);
  facts.push(["Received", status.received_lsn || "–"]);
  facts.push(["Confirmed", slot.confirmed_flush_lsn || "–"]);
  facts.push(["Server", status.server_lsn || "–"]);
  const box = byId("slot-facts");
  if (box.children.length !== facts.length) {
    box.replaceChildren(...facts.map(([name]) => { const item = make("div"); item.append(make("dt", "", name), make("dd")); return item; }));
  }
  facts.forEach(([, value], i) => put(box.children[i].lastElementChild, String(value)));
}

// ---------------------------------------------------------------- callbacks

const rows = new Map();
const COLUMNS = [["name", ""], ["state", ""], ["rate", "Events/s"], ["mean", "Mean"], ["p99", "99 %"], ["ok", "Delivered"], ["failed", "Failed"], ["parked", "Parked"], ["behind", "Behind"], ["error", "Last error"]];

function rowOf(name) {
  if (rows.has(name)) return rows.get(name);
  const row = { line: make("tr"), cells: {}, state: "" };
  COLUMNS.forEach(([key, word], i) => {
    const cell = make("td", i > 1 && i < 9 ? `${key} n` : key);
    if (word) cell.dataset.label = word;
    row.cells[key] = cell;
    row.line.append(cell);
  });
  row.pill = makePill();
  row.why = make("span", "why");
  row.acts = make("div", "acts");
  row.title = make("span", "", name);
  row.cells.name.append(row.title, row.acts);
  row.cells.state.append(row.pill, row.why);
  rows.set(name, row);
  return row;
}

function fill(cell, text, quiet, trouble) {
  put(cell, text);
  cell.classList.toggle("quiet", Boolean(quiet));
  cell.classList.toggle("trouble", Boolean(trouble));
}

function showCallbacks(status) {
  const kept = new Map();
  for (const one of status.dead_letters) kept.set(`${one.callback} ${one.state}`, one.count);
  const body = byId("callbacks"), seen = new Set();
  status.callbacks.forEach((one, i) => {
    const row = rowOf(one.name);
    seen.add(one.name);
    pill(row.pill, one.held ? "bad" : STATES[one.state] || "warn", one.state);
    put(row.why, [one.held ? `waits: ${one.held}` : "", status.slot_held_by === one.name ? "holds the slot" : ""].filter(Boolean).join("; "));
    fill(row.cells.rate, rate(one.events_per_second), !one.events_per_second);
    fill(row.cells.mean, seconds(one.recent_mean_seconds ?? (one.mean_seconds || null)), one.recent_mean_seconds === null);
    fill(row.cells.p99, one.recent_p99_seconds === null ? "–" : `≤ ${seconds(one.recent_p99_seconds)}`, one.recent_p99_seconds === null);
    fill(row.cells.ok, count(one.ok), !one.ok);
    const failed = one.failed + one.timeout;
    fill(row.cells.failed, one.timeout ? `${count(failed)} (${count(one.timeout)} timed out)` : count(failed), !failed, one.consecutive_failures);
    const parked = kept.get(`${one.name} parked`) || 0;
    fill(row.cells.parked, one.missed ? `${count(parked)}, missed ${count(one.missed)}` : count(parked), !parked && !one.missed, one.missed);
    fill(row.cells.behind, one.holdback_seconds || one.holdback_bytes ? `${seconds(one.holdback_seconds)}, ${bytes(one.holdback_bytes)}` : "0 s", !one.holdback_seconds);
    fill(row.cells.error, one.last_error || "none", !one.last_error);
    if (row.state !== `${one.state} ${token !== ""}`) {
      row.state = `${one.state} ${token !== ""}`;
      row.acts.replaceChildren(...actions(one));
    }
    if (body.children[i] !== row.line) body.insertBefore(row.line, body.children[i] || null);
  });
  for (const [name, row] of rows) {
    if (!seen.has(name)) { row.line.remove(); rows.delete(name); }
  }
}

// ---------------------------------------------------------------- changes, with a token that only this page's memory holds

let token = "";
let latest = null;

byId("token").addEventListener("input", (event) => {
  token = event.target.value.trim();
  if (latest) showCallbacks(latest);
});

function actions(one) {
  if (!token || !one.configured) return [];
  const offered = { active: ["pause", "remove"], resuming: ["pause", "remove"], paused: ["resume", "remove"], removed: ["resume"] }[one.state] || [];
  return offered.map((action) => {
    const button = make("button", "", action);
    button.type = "button";
    button.setAttribute("aria-label", `${action} ${one.name}`);
    button.addEventListener("click", () => {
      if (action === "remove" && !button.classList.contains("sure")) {
        button.classList.add("sure");
        button.textContent = "remove: sure?";
        setTimeout(() => { button.classList.remove("sure"); button.textContent = action; }, SURE_MS);
        return;
      }
      ask(one.name, action);
    });
    return button;
  });
}

async function ask(name, action) {
  const told = byId("told");
  put(told, `${action} ${name} …`);
  try {
    const answer = await fetch(`handlers/${encodeURIComponent(name)}/${action}`, {
      method: "POST", body: "{}", credentials: "omit",
      headers: { "Authorization": `Bearer ${token}`, "Content-Type": "application/json" },
    });
    const said = await answer.json();
    put(told, answer.ok ? `${name}: ${said.note}` : `${name}: ${said.error}`);
  } catch {
    put(told, `${name}: the service does not answer`);
  }
  rows.forEach((row) => { row.state = ""; });
}

// ---------------------------------------------------------------- tables

function kind(word) {
  const node = make("span", "kind", word);
  node.dataset.kind = word;
  return node;
}

function cells(...made) {
  const line = make("tr");
  for (const [className, content] of made) {
    const cell = make("td", className);
    cell.append(content);
    line.append(cell);
  }
  return line;
}

function empty(columns, text) {
  const line = cells(["quiet", text]);
  line.firstElementChild.colSpan = columns;
  return line;
}

function showBusy(status) {
  const shown = status.activity.slice(0, 10), more = status.activity_kinds - shown.length;
  put(byId("busy-more"), more > 0 ? `and ${count(more)} more in /metrics` : "");
  byId("busy").replaceChildren(...(shown.length ? shown.map((one) =>
    cells(["", one.table], ["", kind(one.event_type)], ["n", rate(one.events_per_second)], ["n", count(one.events)])) : [empty(4, "no event yet")]));
}

function showRecent(status) {
  const shown = status.recent_events.slice(0, 10);
  byId("recent").replaceChildren(...(shown.length ? shown.map((one) =>
    cells(["mono", new Date(one.time).toLocaleTimeString("en-GB")], ["", kind(one.event_type)], ["", one.table], ["mono wide", one.position], ["n", String(one.tags)])) : [empty(5, "no event yet")]));
}

// ---------------------------------------------------------------- the line to the service

let source = null;
let heard = 0;
let wait = 1000;
let timer = 0;

function say(isLive, word) {
  byId("live").dataset.live = isLive ? "yes" : "no";
  put(byId("live").querySelector(".word"), word);
}

function connect() {
  clearTimeout(timer);
  if (document.hidden) return; // a page that nobody looks at costs the service nothing
  heard = Date.now();
  source = new EventSource("events");
  source.addEventListener("hello", (event) => {
    const hello = JSON.parse(event.data);
    wait = 1000;
    put(byId("slot-name"), hello.slot);
    put(byId("version"), `walsignal ${hello.version}`);
    byId("controls").hidden = !hello.controls;
    addPoints(hello.history);
    take(hello.status);
  });
  source.addEventListener("status", (event) => {
    const told = JSON.parse(event.data);
    addPoints([told.point]);
    take(told.status);
  });
  source.addEventListener("end", () => lost("the service has stopped"));
  source.onerror = () => lost("the service does not answer");
}

function take(status) {
  heard = Date.now();
  latest = status;
  say(true, "live");
  showStatus(status);
}

function lost(why) {
  if (source) source.close();
  source = null;
  if (document.hidden) return;
  say(false, `${why}; trying again`);
  pill(byId("phase"), "off", "unknown");
  clearTimeout(timer);
  timer = setTimeout(connect, wait * (0.75 + Math.random() / 2));
  wait = Math.min(wait * 1.5, 5000);
}

setInterval(() => {
  if (source && Date.now() - heard > QUIET_MS) lost("nothing heard");
}, 1000);

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) { if (!source) connect(); return; }
  if (source) source.close();
  source = null;
  say(false, "asleep");
});

connect();
