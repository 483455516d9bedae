// The operator's console: this process's metrics as they move, and the top of the log. It needs nothing but its own port.

const EVERY_MS = 2000;
const ANSWER_MS = 5000;
const KEPT = 60;
const by = (id) => document.getElementById(id);

// Metrics: Prometheus text, sums and differences of it.

/** Samples by name: labels and value. */
function parse(text) {
  const samples = new Map();
  for (const [, name, labels = "", value] of text.matchAll(/^([a-z_]+)(?:\{(.*)\})? (\S+)$/gm)) {
    const known = Object.fromEntries([...labels.matchAll(/([a-z_]+)="((?:\\.|[^"\\])*)"/g)].map(([, key, value]) => [key, value]));
    if (!samples.has(name)) samples.set(name, []);
    samples.get(name).push({ labels: known, value: Number(value) });
  }
  return samples;
}

const all = () => true;
const sum = (samples, name, which = all) => (samples.get(name) ?? []).filter(({ labels }) => which(labels)).reduce((total, { value }) => total + value, 0);

/** What a counter gained between two looks, in one second. */
const rate = (name, which) => (now, before, seconds) => before && Math.max(0, sum(now, name, which) - sum(before, name, which)) / seconds;

/** The smallest bound that `share` of what was measured between two looks keeps, in milliseconds. */
const quantile = (name, share, which = all) => (now, before) => {
  if (!before) return undefined;
  const bounds = new Map();
  for (const { labels, value } of now.get(`${name}_bucket`) ?? []) {
    if (which(labels)) bounds.set(labels.le, (bounds.get(labels.le) ?? 0) + value);
  }
  for (const { labels, value } of before.get(`${name}_bucket`) ?? []) {
    if (which(labels) && bounds.has(labels.le)) bounds.set(labels.le, bounds.get(labels.le) - value);
  }
  const sorted = [...bounds].map(([le, count]) => [le === "+Inf" ? Infinity : Number(le), count]).sort(([a], [b]) => a - b);
  const total = sorted.at(-1)?.[1] ?? 0;
  return total > 0 ? sorted.find(([, count]) => count >= total * share)[0] * 1000 : undefined;
};

const isCommand = ({ method, route, status }) => ["POST", "PUT", "DELETE"].includes(method) && /like/.test(route) && Number(status) < 300;
const isRead = ({ method, route, status }) => method === "GET" && /^\/v1\//.test(route) && Number(status) < 400;
const isRefused = ({ route, status }) => /^\/v1\//.test(route) && (status === "503" || status === "429");

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const perSecond = (value) => `${number.format(value)} /s`;
const millis = (value) => (value === Infinity ? "over 10 s" : `≤ ${number.format(value)} ms`);
const percent = (value) => `${number.format(value * 100)} %`;

/** Share of counts that came from this process's memory, or its knowledge of what was never liked. */
function localShare(now, before, seconds) {
  if (!before) return undefined;
  const [hits, never, misses] = ["likewise_local_hits_total", "likewise_never_liked_total", "likewise_cache_misses_total"].map((name) => rate(name)(now, before, seconds));
  const requests = hits + never + misses;
  return requests > 0 ? (hits + never) / requests : undefined;
}

const charts = [
  ["Commands accepted", rate("likewise_http_requests_total", isCommand), perSecond, "requests; a batch is one"],
  ["Events projected", rate("likewise_events_total", ({ outcome }) => outcome === "accepted"), perSecond, "that changed something"],
  ["Until counts show it, p50", quantile("likewise_visible_seconds", 0.5), millis, "oldest event of each publish"],
  ["Until counts show it, p99", quantile("likewise_visible_seconds", 0.99), millis, "oldest event of each publish"],
  ["Lag", (now) => sum(now, "kafka_consumergroup_group_lag"), (value) => `${number.format(value)} events`, "of the partitions of this process"],
  ["Reads", rate("likewise_http_requests_total", isRead), perSecond, "answered"],
  ["Counts without a cache miss", localShare, percent, "from memory, or known as never liked"],
  ["Reads of the records", rate("likewise_record_reads_total"), perSecond, "what the caches did not have"],
  ["Refused", rate("likewise_http_requests_total", isRefused), perSecond, "429 and 503"],
].map(([title, measure, format, note]) => {
  const figure = by("chart").content.cloneNode(true).firstElementChild;
  figure.querySelector("figcaption").textContent = title;
  figure.querySelector(".note").textContent = note;
  figure.querySelector("svg").setAttribute("aria-label", `${title}, the last two minutes`);
  by("charts").append(figure);
  return { figure, measure, format, points: [] };
});

function draw({ figure, format, points }) {
  const last = points.at(-1);
  figure.querySelector(".value").textContent = last === undefined ? "–" : format(last);
  const finite = points.filter(Number.isFinite);
  const top = Math.max(1e-9, ...finite);
  const x = (index) => (120 * (KEPT - points.length + index)) / (KEPT - 1);
  const line = points.flatMap((value, index) => (Number.isFinite(value) ? `${x(index).toFixed(1)},${(31 - (30 * value) / top).toFixed(1)}` : []));
  figure.querySelector("polyline").setAttribute("points", line.join(" "));
}

// Tables

function fill(body, rows) {
  body.replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    for (const cell of cells) {
      const { text, isBad } = typeof cell === "object" ? cell : { text: cell };
      const data = row.appendChild(document.createElement("td"));
      data.textContent = text;
      if (isBad) data.className = "bad";
    }
    return row;
  }));
}

function parts(samples, deadLetters, deadLettersMax) {
  const rows = (samples.get("likewise_breakers_open") ?? []).map(({ labels, value }) => [`Breaker of ${labels.dependency}`, value ? { text: "open", isBad: true } : "closed"]);
  const halted = sum(samples, "likewise_partition_halted");
  rows.push(["Halted partitions", halted ? { text: String(halted), isBad: true } : "none"]);
  const wrong = sum(samples, "likewise_reconciled_wrong_total");
  rows.push(["Cache entries found wrong", wrong ? { text: String(wrong), isBad: true } : `none of ${number.format(sum(samples, "likewise_reconciled_total"))}`]);
  const letters = deadLetters >= deadLettersMax ? `${deadLettersMax} or more` : String(deadLetters);
  rows.push(["Log", deadLetters === undefined ? { text: "cannot be read", isBad: true } : "can be read"]);
  rows.push(["Dead letters", deadLetters === undefined ? "unknown" : deadLetters ? { text: `${letters}: likewise dead-letters list`, isBad: true } : "none"]);
  return rows;
}

function lag(samples) {
  const seconds = new Map((samples.get("kafka_consumergroup_group_lag_seconds") ?? []).map(({ labels, value }) => [labels.partition, value]));
  const rows = (samples.get("kafka_consumergroup_group_lag") ?? []).map(({ labels, value }) => [Number(labels.partition), value, seconds.get(labels.partition) ?? 0]);
  rows.sort(([a], [b]) => a - b);
  return rows.map(([partition, events, age]) => [String(partition), number.format(events), { text: age ? `${number.format(age)} s` : "–", isBad: age > 1 }]);
}

// Looking

let token = null;
let before;
let beforeAt;

async function get(path) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { headers, cache: "no-store", signal: AbortSignal.timeout(ANSWER_MS) });
  if (answer.ok) return answer;
  throw Object.assign(new Error(`${answer.status}`), { status: answer.status });
}

async function look() {
  try {
    const samples = parse(await (await get("/metrics")).text());
    const at = performance.now();
    for (const chart of charts) {
      chart.points.push(chart.measure(samples, before, (at - beforeAt) / 1000));
      chart.points.splice(0, chart.points.length - KEPT);
      draw(chart);
    }
    [before, beforeAt] = [samples, at];
    fill(by("lag"), lag(samples));
    // Without the log the metrics are all the more of interest.
    const state = await get("/console/state").then((answer) => answer.json(), () => ({ events: [], hottest: [] }));
    fill(by("parts"), parts(samples, state.deadLetters, state.deadLettersMax));
    fill(by("hottest"), state.hottest.map(({ content, gained }) => [content, number.format(gained)]));
    fill(by("log"), state.events.map(({ partition, offset, at, user, content, liked }) =>
      [at.replace("T", " ").replace("Z", ""), `${partition} / ${offset}`, user ?? "–", content ?? "–", content ? (liked ? "liked" : "took it back") : { text: "not an event", isBad: true }]));
    say(`Live, every ${EVERY_MS / 1000} s.`);
    by("time").textContent = new Date().toLocaleTimeString("en-GB");
    by("signing").hidden = true;
  } catch (error) {
    by("signing").hidden = error.status !== 401 && error.status !== 403;
    say(error.status === 401 || error.status === 403 ? "This port is for administrators." : error.status ? `The server answers ${error.status}; looking again…` : "The server cannot be reached; looking again…");
  }
}

function say(text) {
  if (by("state").textContent !== text) by("state").textContent = text;
}

by("signing").addEventListener("submit", (event) => {
  event.preventDefault();
  token = by("token").value;
  by("signing").hidden = true;
});

async function watch() {
  if (!document.hidden) await look();
  setTimeout(watch, EVERY_MS);
}
document.addEventListener("visibilitychange", () => { before = undefined; });
watch();
