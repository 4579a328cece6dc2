"use strict";
// Everything that came from the machine is put into the page as text, never as markup:
// processes choose their own names.
//
// The page asks, once a second, for all that it shows. So it needs no connection that stays: any number of
// tabs works, and whatever happens to the server, the next question is a new beginning.

const MAX_LINES = 200;
const MAX_ROWS = 100;
const ALL_ROWS = 1000;
const HISTORY_SECONDS = 300;
const REFRESH_MS = 1000;
const SLOWEST_REFRESH_MS = 5000;
const ANSWER_MS = 10000;
const TICKS = [1, 2, 5, 10, 15, 30, 60, 120, 300]; // seconds: no two marks have the same text
const UNKNOWN = "?";
const COLUMNS = [
  { key: "name", title: "Name", cells: (row) => nameOf(row) },
  { key: "pid", title: "PID", wide: true, kind: "pid", cells: (row) => (row.pid === null ? "" : String(row.pid)) },
  { key: "open_flows", title: "Open", wide: true, number: true, cells: (row) => String(row.open_flows) },
  { key: "rx_rate", title: "Received/s", number: true, kind: "rx", cells: (row) => units(row.rx_rate, "/s") },
  { key: "tx_rate", title: "Sent/s", number: true, kind: "tx", cells: (row) => units(row.tx_rate, "/s") },
  { key: "rx_bytes", title: "Received", wide: true, number: true, cells: (row) => units(row.rx_bytes) },
  { key: "tx_bytes", title: "Sent", wide: true, number: true, cells: (row) => units(row.tx_bytes) },
];

const byId = (id) => document.getElementById(id);
const isSum = (row) => row.kind === "other" || row.kind === "lost";
const shownRows = new Map(); // serial -> { tr, cells, detail }
let view = { group: "process", filter: "", by: "rx_rate", up: false };
let paused = false;
let seen = 0; // events of the server that this page knows
let run = null; // which start of the server they are of
let expanded = null; // serial of the row whose flows are shown
let failedSince = null;
let failure = ""; // of the monitor: a server whose monitor failed goes away
let wait = REFRESH_MS;
let asking = null;
let timer = 0;

// -- text ----------------------------------------------------------------------------------

function units(value, suffix) {
  if (value === null || value === undefined) return UNKNOWN;
  const names = ["B", "kB", "MB", "GB", "TB", "PB"];
  let step = 0;
  while (value >= 999.5 && step < names.length - 1) { value /= 1000; step += 1; }
  return `${value.toFixed(step === 0 || value >= 99.95 ? 0 : 1)} ${names[step]}${suffix || ""}`;
}

// Control characters, line breaks and marks that turn the reading direction become visible.
function shown(text) {
  return String(text).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
}

function nameOf(row) {
  if (row.kind === "other") return "all others";
  if (row.kind === "lost") return "lost by overflow";
  if (row.kind === "unknown") return view.group === "process" ? "owner unknown" : "unknown";
  return (row.name === null ? UNKNOWN : shown(row.name)) + machine(row.source);
}

// In a fleet: the machine.
function machine(name) {
  return name === null || name === undefined ? "" : ` @${shown(name)}`;
}

function clock(seconds) {
  return new Date(seconds * 1000).toTimeString().slice(0, 8);
}

function span(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 129600 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

function address(end) {
  if (!end) return "*";
  const scope = end.scope === null ? "" : `%${end.scope}`;
  return end.address.includes(":") ? `[${end.address}${scope}]:${end.port}` : `${end.address}:${end.port}`;
}

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

// By which media, where the kernel says so; those with most bytes first.
function mediaText(media) {
  const parts = Object.entries(media || {}).filter(([name, of]) => name !== "total" && of.rx_bytes + of.tx_bytes);
  parts.sort(([, a], [, b]) => b.rx_bytes + b.tx_bytes - a.rx_bytes - a.tx_bytes);
  return parts.map(([name, of]) => `${name} ↓ ${units(of.rx_bytes)} ↑ ${units(of.tx_bytes)}`).join(" · ");
}

// -- the table -----------------------------------------------------------------------------

function kinds(column) {
  return [column.kind, column.wide && "wide"].filter(Boolean).join(" ");
}

function makeHeadings() {
  for (const column of COLUMNS) {
    const th = element("th", undefined, kinds(column));
    th.scope = "col";
    const button = element("button", column.title);
    button.type = "button";
    button.addEventListener("click", () => {
      const same = view.by === column.key;
      view.up = same ? !view.up : !column.number;
      view.by = column.key;
      changed();
    });
    th.append(button);
    column.th = th;
    byId("headings").append(th);
  }
}

function showSorting() {
  byId("table").classList.toggle("processes", /^(effective )?process$/.test(view.group));
  setText(COLUMNS[0].th.firstChild, view.group[0].toUpperCase() + view.group.slice(1));
  for (const column of COLUMNS) {
    if (column.key === view.by) column.th.setAttribute("aria-sort", view.up ? "ascending" : "descending");
    else column.th.removeAttribute("aria-sort");
  }
}

// The server sorts by numbers, largest first; any other order is made of all that it has.
function serverSorts() {
  return !view.up && COLUMNS.some((column) => column.key === view.by && column.number);
}

function sorted(rows) {
  if (serverSorts()) return rows;
  const value = (row) => (view.by === "name" ? nameOf(row).toLowerCase() : row[view.by]);
  const order = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === y) return 0;
    if (x === null) return 1;
    if (y === null) return -1;
    return (x < y ? -1 : 1) * (view.up ? 1 : -1);
  };
  return [...rows.filter((row) => !isSum(row)).sort(order).slice(0, MAX_ROWS), ...rows.filter(isSum)];
}

function makeRow(row) {
  const tr = element("tr", undefined, isSum(row) ? "sum" : "row");
  const made = { tr, cells: COLUMNS.map((column) => element("td", undefined, kinds(column))), detail: null };
  tr.append(...made.cells);
  if (!isSum(row)) {
    made.button = element("button");
    made.button.type = "button";
    made.button.setAttribute("aria-expanded", "false");
    made.cells[0].append(made.button);
    tr.addEventListener("click", () => { if (!String(getSelection())) expand(row.serial); });
  }
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function showRows(rows) {
  const keep = new Set();
  let before = null;
  const body = byId("rows");
  for (const row of rows) {
    const key = isSum(row) ? row.kind : row.serial;
    keep.add(key);
    let made = shownRows.get(key);
    if (!made) shownRows.set(key, (made = makeRow(row)));
    COLUMNS.forEach((column, at) => setText(at === 0 && made.button ? made.button : made.cells[at], column.cells(row)));
    made.cells[0].title = nameOf(row);
    // Only what is at the wrong place is moved: a focus or a selection stays.
    const next = before ? before.nextSibling : body.firstChild;
    if (next !== made.tr) body.insertBefore(made.tr, next);
    before = made.tr;
    if (made.detail) {
      if (before.nextSibling !== made.detail) body.insertBefore(made.detail, before.nextSibling);
      before = made.detail;
    }
  }
  for (const [key, made] of shownRows) {
    if (keep.has(key)) continue;
    made.tr.remove();
    if (made.detail) made.detail.remove();
    if (key === expanded) expanded = null;
    shownRows.delete(key);
  }
  byId("empty").hidden = rows.length > 0;
  byId("empty").textContent = view.filter ? "No flow passes the filter." : "No flow was seen yet.";
}

function expand(serial) {
  const old = shownRows.get(expanded);
  if (old && old.detail) {
    old.detail.remove();
    old.detail = null;
    old.button.setAttribute("aria-expanded", "false");
  }
  expanded = expanded === serial ? null : serial;
  const made = shownRows.get(expanded);
  if (made) {
    made.button.setAttribute("aria-expanded", "true");
    made.detail = element("tr");
    const td = element("td", "…", "flows");
    td.colSpan = visibleColumns();
    made.detail.append(td);
    made.tr.after(made.detail);
  }
  askSoon();
}

const narrow = matchMedia("(max-width: 780px)");

function visibleColumns() {
  const hidden = (column) => (narrow.matches && column.wide) || (column.key === "pid" && !byId("table").matches(".processes"));
  return COLUMNS.filter((column) => !hidden(column)).length;
}

narrow.addEventListener("change", () => {
  for (const made of shownRows.values()) if (made.detail) made.detail.firstChild.colSpan = visibleColumns();
});

function flowText(line) {
  const flow = line.flow;
  const parts = [`${flow.provider} ${address(flow.local)} → ${address(flow.remote)}`];
  if (flow.state) parts.push(flow.state);
  if (flow.direction) parts.push(flow.direction);
  if (flow.peer) parts.push(`to ${flow.peer.process && flow.peer.process.name !== null ? shown(flow.peer.process.name) : UNKNOWN}${machine(flow.peer.host)}`);
  if (flow.interface && flow.interface.name) parts.push(shown(flow.interface.name));
  if (flow.started !== null) parts.push(span(line.time - flow.started));
  const counts = line.counts;
  if (counts && counts.rx_bytes !== null) parts.push(`↓ ${units(counts.rx_bytes)} ↑ ${units(counts.tx_bytes)}`);
  if (counts && counts.media) parts.push(mediaText(counts.media));
  if (counts && counts.avg_rtt_us) parts.push(`${(counts.avg_rtt_us / 1000).toFixed(1)} ms`);
  if (counts && counts.tx_retransmitted_bytes) parts.push(`${units(counts.tx_retransmitted_bytes)} sent again`);
  return parts.join(" · ");
}

function showFlows(rows, flows) {
  const made = shownRows.get(expanded);
  const row = rows.find((each) => each.serial === expanded);
  if (!made || !made.detail || !row) return;
  const td = made.detail.firstChild;
  const head = element("p", `${row.pid === null ? "" : `pid ${row.pid} · `}${row.open_flows} open of ${row.flows} flows · received ${units(row.rx_bytes)} · sent ${units(row.tx_bytes)}`, "dim");
  head.style.margin = "0";
  if (row.media) head.append(element("br"), mediaText(row.media));
  const list = element("ul");
  list.append(...flows.map((flow) => element("li", flowText(flow))));
  if (row.open_flows > flows.length) list.append(element("li", `and ${row.open_flows - flows.length} more`, "dim"));
  const top = td.querySelector("ul") ? td.querySelector("ul").scrollTop : 0;
  td.replaceChildren(head, list);
  list.scrollTop = top;
}

// -- totals and curve ----------------------------------------------------------------------

const samples = [[], [], []];
let plot = null;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function makePlot() {
  const series = (label, name) => ({ label, stroke: () => colour(name), width: 1.5, spanGaps: false, points: { show: false }, value: (_, v) => (v === null ? "–" : units(v, "/s")) });
  const axis = { stroke: () => colour("--dim"), grid: { stroke: () => colour("--line"), width: 1 }, ticks: { show: false } };
  const frame = byId("chart");
  plot = new uPlot({
    width: Math.max(200, frame.clientWidth), height: 170,
    cursor: { drag: { x: false, y: false } },
    scales: { y: { range: (_, low, high) => [0, Math.max(1000, high * 1.05)] } },
    axes: [{ ...axis, size: 28, space: 80, incrs: TICKS, values: (_, ticks) => ticks.map((tick) => clock(tick)) }, { ...axis, size: 72, values: (_, ticks) => ticks.map((tick) => units(tick, "/s")) }],
    series: [{ value: (_, v) => (v === null ? "–" : clock(v)) }, series("received", "--rx"), series("sent", "--tx")],
  }, samples, frame);
  new ResizeObserver(() => plot.setSize({ width: Math.max(200, frame.clientWidth), height: 170 })).observe(frame);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot.redraw(false, true));
}

function addSample(time, rx, tx) {
  const times = samples[0];
  if (time === null || (times.length && time === times[times.length - 1])) return;
  // The clock was set back: what was drawn as later than now goes, or nothing could be drawn until then.
  while (times.length && times[times.length - 1] >= time) samples.forEach((each) => each.pop());
  // Where nothing was heard for a while the curve is broken, not straight.
  if (times.length && time - times[times.length - 1] > 10) { times.push(time - 1); samples[1].push(null); samples[2].push(null); }
  times.push(time); samples[1].push(rx); samples[2].push(tx);
  while (time - times[0] > HISTORY_SECONDS) samples.forEach((each) => each.shift());
  plot.setData(samples);
}

function showTotals(answer) {
  const total = answer.total;
  setText(byId("total-rx"), units(total.rx_bytes));
  setText(byId("total-tx"), units(total.tx_bytes));
  setText(byId("rate-rx"), units(total.rx_rate, "/s"));
  setText(byId("rate-tx"), units(total.tx_rate, "/s"));
  setText(byId("total-open"), String(total.open_flows));
  setText(byId("total-flows"), `${total.flows} seen`);
  setText(byId("since"), answer.since === null ? "" : `counted since ${clock(answer.since)}`);
  const share = (part) => (part === null ? UNKNOWN : `${Math.round(100 * part)} %`);
  const shares = answer.shares;
  setText(byId("coverage"), shares && (shares[0] !== null || shares[1] !== null) ? `Payload of flows is ${share(shares[0])} of what the interfaces received, ${share(shares[1])} of what they sent.` : "");
  setText(byId("media"), mediaText(total.media));
  addSample(answer.time, total.rx_rate, total.tx_rate);
}

// -- events --------------------------------------------------------------------------------

function line(event) {
  const when = clock(event.time);
  if (event.event === "events_lost") return [`${when} ! lost: ${event.cause}${event.count === null ? "" : ` (${event.count})`}`, "lost"];
  const flow = event.flow;
  const sign = { flow_added: flow.direction === "listener" ? "@" : "+", flow_removed: "-", flow_updated: "#" }[event.event];
  const process = flow.process ? `pid:${flow.process.pid} (${flow.process.name === null ? UNKNOWN : shown(flow.process.name)})` : `pid:${UNKNOWN}`;
  const counts = event.counts ? ` ↓${units(event.counts.rx_bytes)} ↑${units(event.counts.tx_bytes)}` : "";
  const moved = !event.delta || Object.values(event.delta).some(Boolean); // else it is something else that changed
  const state = moved || !flow.state ? "" : ` ${flow.state}`;
  return [`${when} ${sign} ${flow.provider} ${address(flow.local)} → ${address(flow.remote)} ${process}${counts}${state}`, event.event === "flow_removed" ? "removed" : ""];
}

function addLines(events) {
  const list = byId("events");
  const above = list.scrollTop;
  const height = list.scrollHeight;
  list.prepend(...events.reverse().map((event) => element("li", ...line(event))));
  while (list.childElementCount > MAX_LINES) list.lastElementChild.remove();
  if (above > 0) list.scrollTop = above + list.scrollHeight - height; // what is being read stays where it is
}

function showLosses(losses) {
  const count = losses.reduce((sum, loss) => sum + (loss.count || loss.events), 0);
  setText(byId("lost"), count ? `${count} lost: ${losses.map((loss) => loss.cause).join(", ")}` : "");
}

// -- asking --------------------------------------------------------------------------------

function question() {
  const query = new URLSearchParams({ n: serverSorts() ? MAX_ROWS : ALL_ROWS, by: serverSorts() ? view.by : "bytes", group: view.group, since: seen });
  if (expanded !== null) query.set("expanded", expanded);
  for (const [key, value] of conditions(view.filter)) query.append(key, value);
  return `live?${query}`;
}

// "port=443 & ~loopback", the language of --filter; a bare word is a process, a bare number a pid.
function conditions(text) {
  const decoded = (part) => { try { return decodeURIComponent(part.trim()); } catch { return part.trim(); } };
  const parts = text.split("&").map((part) => part.trim()).filter(Boolean);
  return parts.map((part) => {
    const not = part.startsWith("~") ? "~" : "";
    const rest = part.slice(not.length).trim();
    const at = rest.indexOf("=");
    if (at >= 0) return [not + decoded(rest.slice(0, at)), decoded(rest.slice(at + 1))];
    if (rest === "loopback") return [not + rest, ""];
    const word = decoded(rest);
    return [not + (/^\d+$/.test(word) ? "pid" : "process"), word];
  });
}

function showGroups(names) {
  if (byId("group").length !== names.length) byId("group").replaceChildren(...names.map((name) => new Option(name, name)));
  if (document.activeElement !== byId("group")) byId("group").value = view.group;
}

function showState(text, bad) {
  setText(byId("state"), text);
  byId("state").className = bad ? "bad" : "";
}

function silent(machines) {
  if (!machines || !machines.silent) return "";
  const more = machines.silent > machines.names.length ? ", …" : "";
  return ` · ${machines.silent} of ${machines.known} machines ${machines.silent === 1 ? "is" : "are"} silent: ${machines.names.map(shown).join(", ")}${more}`;
}

function refused(kinds) {
  return Object.entries(kinds || {}).map(([kind, why]) => ` · no ${kind} flows: ${shown(why) || "refused"}`).join("");
}

function disconnected(why) {
  if (failedSince === null) failedSince = Date.now() / 1000;
  document.body.classList.add("stale");
  showState(`${failure && `${failure} · `}disconnected since ${clock(failedSince)}: ${why}. Trying again…`, true);
  wait = Math.min(SLOWEST_REFRESH_MS, wait * 1.5);
}

function connected(answer) {
  if (run !== null && answer.run !== run) {
    run = null;
    forget();
    byId("events").prepend(element("li", "— the server was started again: totals begin anew —", "lost"));
    wait = 0;
    return;
  }
  run = answer.run;
  seen = answer.seen;
  failedSince = null;
  wait = REFRESH_MS;
  document.body.classList.remove("stale");
  failure = answer.state.startsWith("failed") ? answer.state : "";
  const lacks = silent(answer.machines) + refused(answer.refused);
  showState(`${answer.state} · ${answer.backend}${lacks}`, answer.state !== "running" || lacks);
  showGroups(answer.groups);
  const rows = sorted(answer.rows);
  showRows(rows);
  showFlows(rows, answer.flows);
  showTotals(answer);
  showLosses(answer.losses);
  addLines(answer.events);
}

async function refresh() {
  clearTimeout(timer);
  if (asking || paused || document.hidden) return;
  const mine = (asking = new AbortController());
  const limit = setTimeout(() => mine.abort(), ANSWER_MS);
  try {
    const answer = await fetch(question(), { cache: "no-store", signal: mine.signal });
    if (answer.status === 400 || answer.status === 503) {
      const text = (await answer.text()).trim();
      if (asking !== mine) return;
      if (answer.status === 503) throw new Error(text || "503");
      setText(byId("filter-error"), text);
    } else if (answer.status === 401) {
      disconnected("the token is not known here; open the address with ?token=… again");
    } else if (!answer.ok) {
      disconnected(`the server answered ${answer.status}`);
    } else {
      const found = await answer.json();
      if (asking !== mine) return;
      setText(byId("filter-error"), "");
      connected(found);
    }
  } catch (error) {
    if (asking !== mine) return;
    disconnected(error.name === "AbortError" ? "no answer" : error.name === "TypeError" ? "no connection" : error.message);
  } finally {
    clearTimeout(limit);
    if (asking === mine) {
      asking = null;
      timer = setTimeout(refresh, wait);
    }
  }
}

function askSoon() {
  if (asking) { const old = asking; asking = null; old.abort(); }
  wait = REFRESH_MS;
  refresh();
}

// -- what a person does --------------------------------------------------------------------

function remember() {
  const parts = new URLSearchParams();
  for (const [key, usual] of [["group", "process"], ["filter", ""], ["by", "rx_rate"]]) if (view[key] !== usual) parts.set(key, view[key]);
  if (view.up) parts.set("up", "1");
  window.history.replaceState(null, "", `#${parts}`);
}

function recall() {
  const parts = new URLSearchParams(location.hash.slice(1));
  view = { group: parts.get("group") || "process", filter: parts.get("filter") || "", by: parts.get("by") || "rx_rate", up: parts.get("up") === "1" };
  if (!COLUMNS.some((column) => column.key === view.by)) view.by = "rx_rate";
  byId("filter").value = view.filter;
}

function changed() {
  remember();
  showSorting();
  askSoon();
}

function forget() {
  expanded = null;
  samples.forEach((each) => { each.length = 0; });
  plot.setData(samples);
  for (const made of shownRows.values()) { made.tr.remove(); if (made.detail) made.detail.remove(); }
  shownRows.clear();
  seen = 0;
}

function otherTable() {
  forget();
  byId("events").replaceChildren();
  changed();
}

function applyFilter() {
  const text = byId("filter").value.trim();
  if (text === view.filter) return;
  view.filter = text;
  otherTable();
}

function togglePause() {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  setText(byId("pause"), paused ? "Go on" : "Pause");
  if (paused) showState("paused", false);
  else askSoon();
}

byId("group").addEventListener("change", () => { view.group = byId("group").value; otherTable(); });
byId("filter").addEventListener("change", applyFilter);
byId("filter").addEventListener("search", applyFilter);
byId("pause").addEventListener("click", togglePause);
document.addEventListener("visibilitychange", () => { if (!document.hidden) askSoon(); });
window.addEventListener("online", askSoon);
document.addEventListener("keydown", (press) => {
  if (press.ctrlKey || press.metaKey || press.altKey || /^(INPUT|SELECT)$/.test(press.target.tagName)) return;
  if (press.key === "/") { byId("filter").focus(); press.preventDefault(); }
  if (press.key === "p") togglePause();
});
makeHeadings();
recall();
showSorting();
makePlot();
refresh();
