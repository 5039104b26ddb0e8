// The dashboard: asks for the points that are new, keeps those of the window, shows them. What comes from the service is
// only ever put into the page as text.
"use strict";

const POLL_MS = 2000;
const TIMEOUT_MS = 5000;
const NOW_S = 10; // rates in the tiles are means of so many seconds
const STALE_S = 10;
const ERRORS_SHOWN = 20;
const TOKEN_KEY = "persistence-token";

const get = (id) => document.getElementById(id);

let seen = null; // what the service said last, and its points of the whole window
let answeredAt = null; // seconds, in our own clock
let token = sessionStorage.getItem(TOKEN_KEY);
let timer = 0;
let colour = newColours();
const charts = KINDS.map((kind) => new Chart(kind, get("charts")));

// --- asking ---

async function poll() {
  clearTimeout(timer);
  const used = token;
  try {
    const after = seen?.points.length && !isStale() ? seen.points.at(-1).at : 0;
    const { status, said } = await ask(after);
    if (used !== token) return; // the poll with the other one goes on
    const wrong = said?.error_code === "TOKEN_WRONG";
    if (status === 401 || wrong) {
      askForToken(wrong);
      return;
    }
    if (status === 200 && Array.isArray(said?.points)) take(said, after);
    else lost(said?.detail ? `The service refuses: ${said.detail}.` : `Something else answers there (${status}).`);
  } catch (error) {
    lost(error.name === "TimeoutError" ? `No answer within ${TIMEOUT_MS / 1000} s.` : "No answer from the service.");
  }
  if (!document.hidden) timer = setTimeout(poll, POLL_MS);
}

async function ask(after) {
  const answer = await fetch(`dashboard/history?after=${after}`, {
    headers: token ? { Authorization: `Bearer ${token}` } : {},
    cache: "no-store",
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
  return { status: answer.status, said: await answer.json().catch(() => null) };
}

function take(said, after) {
  const points = (after ? seen.points : []).concat(said.points);
  seen = { ...said, points: points.filter((point) => point.at > said.now - said.window_seconds) };
  answeredAt = Date.now() / 1000;
  get("ask").hidden = true;
  get("forget").hidden = !token;
  setText(get("version"), `· version ${seen.version}`);
  const newest = seen.points.at(-1);
  if (newest) show(newest);
  if (isStale()) warn(newest
    ? `No new figures since ${clock(newest.at)}: the service answers, but records none. Its log says why.`
    : "No figures yet: the first come some seconds after the start.");
  else fine();
  setText(get("live"), newest ? `As of ${clock(newest.at)}` : "Waiting for the first figures …");
}

const isStale = () => !seen.points.length || seen.now - seen.points.at(-1).at > STALE_S;

function fine() {
  get("lost").hidden = true;
  get("figures").classList.remove("old");
}

function warn(text) {
  setText(get("lost"), text);
  get("lost").hidden = false;
  get("figures").classList.add("old");
}

function lost(why) {
  const since = answeredAt ? ` Nothing has come since ${clock(answeredAt)}: the figures are old.` : "";
  warn(`Connection lost. ${why}${since} Trying again every ${POLL_MS / 1000} s.`);
  setText(get("live"), "Connection lost");
  document.title = "✕ connection lost · Persistence Service";
}

function askForToken(wrong) {
  sessionStorage.removeItem(TOKEN_KEY);
  token = seen = answeredAt = null;
  clearTimeout(timer);
  fine();
  setText(get("asked"), wrong
    ? "That was not the token of this service (service.auth_token)."
    : "This service shows its figures only to those who have its token (service.auth_token).");
  setText(get("live"), "Token needed");
  document.title = "Token needed · Persistence Service";
  get("figures").hidden = get("forget").hidden = true;
  get("ask").hidden = false;
  get("token").focus();
}

// --- showing ---

function show(newest) {
  get("figures").hidden = false;
  showState(newest);
  showTiles(newest);
  showErrors(newest);
  for (const chart of charts) chart.draw(seen, colour);
  document.title = `${{ healthy: "✓", degraded: "!" }[newest.status] ?? "✕"} ${newest.status} · Persistence Service`;
}

function showState(newest) {
  lamp("service", { healthy: "good", degraded: "warn" }[newest.status] ?? "bad", newest.status);
  lamp("database", ...({ healthy: ["good", "up"], unhealthy: ["bad", "down"] }[newest.database] ?? ["warn", "not known"]));
  setText(get("reason"), newest.reason ?? "");
  const spells = databaseSpells(seen);
  get("strip").replaceChildren(...spells.map(([state, from, to]) => {
    const part = make("span", state);
    part.style.width = `${(100 * (to - from)) / seen.window_seconds}%`;
    return part;
  }));
  const spent = { up: 0, down: 0, unknown: 0 };
  for (const [state, from, to] of spells) spent[state] += to - from;
  const words = spent.down ? [`down for ${age(spent.down)}`] : spent.up ? ["never down"] : [];
  if (spent.unknown > longestStep(seen)) words.push(`not known for ${age(spent.unknown)}`);
  setText(get("past"), words.join(", "));
}

function lamp(id, level, word) {
  get(id).className = `lamp ${level}`;
  setText(get(id).querySelector("b"), word);
}

function showTiles(newest) {
  const { waiting } = newest;
  const flow = (name) => mean((point) => point.flow?.[name]);
  const flushed = seen.points.findLast((point) => point.flow?.flush_ms != null);
  const latency = seen.points.findLast((point) => point.latency)?.latency;
  const refused = seen.points.reduce((sum, point) => sum + (point.refused ?? 0), 0);
  const rate = (value) => (value == null ? "–" : `${short(value)} /s`);
  const tiles = [
    ["Accepted", rate(flow("accepted")), `records; ${short(mean((point) => point.latency?.requests ?? 0) ?? 0)} requests/s`],
    ["Written", rate(flow("committed")), `records; ${short(flow("rows") ?? 0)} rows/s`],
    ["Backlog", waiting && `${short(waiting.records)} ${waiting.records === 1 ? "record" : "records"}`,
      waiting && `${percent(waiting.journal_percent)} of the journal`],
    ["At risk", waiting && age(waiting.oldest_s), waiting && `oldest record; ${short(waiting.unsynced)} not synced`],
    ["Latency p50", latency && duration(latency.p50_ms),
      latency ? `p95 ${duration(latency.p95_ms)}, p99 ${duration(latency.p99_ms)}` : "no batches"],
    ["Flush", flushed && duration(flushed.flow.flush_ms),
      (flushed ? `at ${clock(flushed.at)}` : "none") + (waiting ? `; ${plural(waiting.writers, "writer")}` : "")],
    ["Refused", plural(refused, "record"), refused ? "in 10 minutes; Errors say why" : "none in 10 minutes", refused > 0],
    ["Dead letters", waiting && `${short(waiting.dead_letters)}`,
      waiting?.dead_letters ? waiting.last_dead_letter ?? "ctl.sh deadletters list" : "none", waiting?.dead_letters > 0],
  ];
  get("tiles").replaceChildren(...tiles.map(([name, value, more, bad]) => {
    const words = (value || "–").split(" ").map((word) => (/[\d–]/.test(word) ? word : make("small", "", word)));
    const big = make("dd", "value", ...words.flatMap((word) => [word, " "]).slice(0, -1));
    return make("div", bad ? "tile bad" : "tile", make("dt", "", name), big, make("dd", "more", more || ""));
  }));
}

function mean(of) {
  const recent = seen.points.filter((point) => point.at > seen.now - NOW_S).map(of).filter((value) => value != null);
  return recent.length ? recent.reduce((sum, value) => sum + value, 0) / recent.length : null;
}

function showErrors(newest) {
  // A problem that goes on is one line.
  const spells = new Map();
  for (const { at, problems } of seen.points) {
    for (const text of problems) spells.set(text, [spells.get(text)?.[0] ?? at, at]);
  }
  const lines = [...spells].sort(([, a], [, b]) => b[1] - a[1]).slice(0, ERRORS_SHOWN).map(([text, [from, to]]) => {
    const when = to === newest.at ? `since ${clock(from)}` : from === to ? clock(from) : `${clock(from)} – ${clock(to)}`;
    return make("li", "", make("span", "when", when), make("span", "", text));
  });
  get("errors").replaceChildren(...(lines.length ? lines : [make("li", "muted", "None.")]));
}

// --- beginning ---

function newColours() {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue(`--${name}`).trim();
}

setText(get("host"), location.host + location.pathname.replace(/\/dashboard$/, ""));
get("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  token = get("token").value.trim();
  get("token").value = "";
  sessionStorage.setItem(TOKEN_KEY, token);
  poll();
});
get("forget").addEventListener("click", () => askForToken(false));
document.addEventListener("visibilitychange", () => document.hidden || !get("ask").hidden || poll());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  colour = newColours();
  if (seen?.points.length) show(seen.points.at(-1));
});
new ResizeObserver(() => charts.forEach((chart) => chart.resize())).observe(get("charts"));
poll();
