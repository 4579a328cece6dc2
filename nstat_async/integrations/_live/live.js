"use strict";
// Everything that came from the machine is put into the page as text, never as markup:
// processes choose their own names.

const MAX_LINES = 200;
const HISTORY = 120;
const REFRESH_MS = 1000;
const byId = (id) => document.getElementById(id);
const history = [];
let paused = false;
let lastSample = null;
let waiting = [];
let lost = 0;

function units(value, suffix) {
  if (value === null || value === undefined) return "–";
  const names = ["B", "kB", "MB", "GB", "TB", "PB"];
  let step = 0;
  while (value >= 999.5 && step < names.length - 1) { value /= 1000; step += 1; }
  const digits = step === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return `${value.toFixed(digits)} ${names[step]}${suffix || ""}`;
}

// Control characters, line breaks and marks that turn the reading direction become visible.
function shown(text) {
  return String(text).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
}

function nameOf(row) {
  if (row.kind === "other") return "all others";
  if (row.kind === "lost") return "lost by overflow";
  if (row.kind === "unknown") return "owner unknown";
  return row.name === null ? "name unknown" : shown(row.name);
}

function cell(text, kind) {
  const td = document.createElement("td");
  td.textContent = text;
  if (kind) td.className = kind;
  return td;
}

function showRows(rows) {
  const wanted = byId("filter").value.trim().toLowerCase();
  const body = document.createDocumentFragment();
  for (const row of rows) {
    const name = nameOf(row);
    if (wanted && !name.toLowerCase().includes(wanted) && String(row.pid) !== wanted) continue;
    const tr = document.createElement("tr");
    if (row.kind !== "process") tr.className = "sum";
    const first = cell(name);
    first.title = name;
    tr.append(first, cell(row.pid === null ? "" : row.pid), cell(row.open_flows),
      cell(units(row.rx_rate, "/s"), "rx"), cell(units(row.tx_rate, "/s"), "tx"),
      cell(units(row.rx_bytes)), cell(units(row.tx_bytes)));
    body.append(tr);
  }
  byId("rows").replaceChildren(body);
}

function showTotals(total, time) {
  byId("total-rx").textContent = units(total.rx_bytes);
  byId("total-tx").textContent = units(total.tx_bytes);
  byId("rate-rx").textContent = units(total.rx_rate, "/s");
  byId("rate-tx").textContent = units(total.tx_rate, "/s");
  byId("total-open").textContent = total.open_flows;
  byId("total-flows").textContent = `${total.flows} seen`;
  if (time === lastSample) return;
  lastSample = time;
  history.push([total.rx_rate || 0, total.tx_rate || 0]);
  if (history.length > HISTORY) history.shift();
  const top = Math.max(1, ...history.flat());
  [["history-rx", 0], ["history-tx", 1]].forEach(([id, which]) => {
    byId(id).setAttribute("points", history.map((pair, i) =>
      `${HISTORY - history.length + i},${(39 - 38 * pair[which] / top).toFixed(2)}`).join(" "));
  });
}

function showState(text, bad) {
  byId("state").textContent = text;
  byId("state").className = bad ? "bad" : "";
}

async function refresh() {
  if (!paused && !document.hidden) {
    try {
      const answer = await fetch(`processes?n=100&by=${byId("sort").value}`, { cache: "no-store" });
      if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
      const seen = await answer.json();
      showRows(seen.processes);
      showTotals(seen.total, seen.time);
      showState(`${seen.state} · ${seen.backend}`, seen.state !== "running");
    } catch (error) {
      showState(`no connection: ${error.message}`, true);
    }
  }
  setTimeout(refresh, REFRESH_MS);
}

function address(end) {
  if (!end) return "*";
  const scope = end.scope === null ? "" : `%${end.scope}`;
  return end.address.includes(":") ? `[${end.address}${scope}]:${end.port}` : `${end.address}:${end.port}`;
}

function line(event) {
  const when = new Date(event.time * 1000).toTimeString().slice(0, 8);
  if (event.event === "events_lost") {
    const count = event.count === null ? "" : ` (${event.count})`;
    return [`${when} ! lost: ${event.cause}${count}`, "lost"];
  }
  const flow = event.flow;
  if (!flow) return null;
  const sign = { flow_added: flow.direction === "listener" ? "@" : "+", flow_removed: "-", flow_updated: "#" }[event.event];
  const process = flow.process ? `pid:${flow.process.pid} (${flow.process.name === null ? "?" : shown(flow.process.name)})` : "pid:?";
  const counts = event.counts ? ` ↓${units(event.counts.rx_bytes)} ↑${units(event.counts.tx_bytes)}` : "";
  const text = `${when} ${sign} ${flow.provider} ${address(flow.local)} → ${address(flow.remote)} ${process}${counts}`;
  return [text, event.event === "flow_removed" ? "removed" : ""];
}

function flush() {
  if (!waiting.length) return;
  const lines = document.createDocumentFragment();
  for (const event of waiting.slice(-MAX_LINES).reverse()) {
    const [text, kind] = line(event) || [];
    if (text === undefined) continue;
    const li = document.createElement("li");
    li.textContent = text;
    if (kind) li.className = kind;
    lines.append(li);
  }
  waiting = [];
  const list = byId("events");
  list.prepend(lines);
  while (list.childElementCount > MAX_LINES) list.lastElementChild.remove();
}

function listen() {
  const source = new EventSource("events");
  const take = (message) => {
    if (paused) return;
    const event = JSON.parse(message.data);
    if (event.event === "events_lost") {
      lost += event.count === null ? 1 : event.count;
      byId("lost").textContent = `${lost} lost`;
    }
    waiting.push(event);
    if (waiting.length > 4 * MAX_LINES) waiting = waiting.slice(-MAX_LINES);
  };
  for (const name of ["flow_added", "flow_updated", "flow_removed", "events_lost"]) source.addEventListener(name, take);
  // At the end of the stream the browser would ask again and again.
  for (const name of ["ended", "failed"]) source.addEventListener(name, () => source.close());
}

byId("pause").addEventListener("click", (click) => {
  paused = !paused;
  click.target.setAttribute("aria-pressed", String(paused));
  click.target.textContent = paused ? "Go on" : "Pause";
});
setInterval(flush, 250);
listen();
refresh();
