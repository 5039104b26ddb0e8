// The dashboard: asks for the points that are new, keeps those of the window, shows them, and asks for the token. What
// comes from the service is only ever put into the page as text.
"use strict";

const POLL_MS = 2000;
const TIMEOUT_MS = 5000;
const STALE_S = 10;
const TOKEN_KEY = "persistence-token";
const RELOADED_KEY = "persistence-reloaded";

let seen = null; // what the service said last, and its points of the whole window
let answeredAt = null; // seconds, in our own clock
let token = sessionStorage.getItem(TOKEN_KEY);
let timer = 0;
let colour = newColours();
translate();
const charts = KINDS.map((kind) => new Chart(kind, get("charts")));

// --- asking ---

async function poll() {
  clearTimeout(timer);
  const used = token;
  const after = seen?.points.length && !isStale() ? seen.points.at(-1).at : 0;
  let answer = null;
  try {
    answer = await ask(`dashboard/history?after=${after}`);
  } catch (error) {
    lost(t(error.name === "TimeoutError" ? "lost.timeout" : "lost.silent"));
  }
  if (used !== token) return; // the poll with the other one goes on
  if (answer && !refused(answer)) {
    const { status, said } = answer;
    if (status !== 200 || !Array.isArray(said?.points)) {
      lost(said?.detail ? t("lost.refuses", { detail: said.detail }) : t("lost.other", { status }));
    } else if (!isOutdated(said)) {
      take(said, after);
    }
  }
  if (!document.hidden && get("ask").hidden) timer = setTimeout(poll, POLL_MS);
}

// Raises what fetch() raises.
async function ask(path) {
  const answer = await fetch(path, {
    headers: token ? { Authorization: `Bearer ${token}` } : {},
    cache: "no-store",
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
  return { status: answer.status, said: await answer.json().catch(() => null) };
}

// Whether the answer is that a token is needed; it is asked for then.
function refused({ status, said }) {
  const wrong = said?.error_code === "TOKEN_WRONG";
  if (status !== 401 && !wrong) return false;
  askForToken(wrong);
  return true;
}

// Reloads the page of another version of the service, once.
function isOutdated({ build }) {
  if (!build || build === document.documentElement.dataset.build || sessionStorage.getItem(RELOADED_KEY) === build) return false;
  sessionStorage.setItem(RELOADED_KEY, build);
  location.reload();
  return true;
}

function take(said, after) {
  const points = (after ? seen.points : []).concat(said.points).filter((point) => point.at > said.now - said.window_seconds);
  seen = { ...said, points, from: (points[0]?.at ?? said.now) - said.interval_seconds };
  answeredAt = Date.now() / 1000;
  get("ask").hidden = true;
  get("forget").hidden = !token;
  const newest = points.at(-1);
  try {
    setText(get("version"), `· ${seen.version}`);
    if (newest) show(newest);
  } catch (error) {
    warn(t("lost.fault", { error }));
    setText(get("live"), t("live.fault"));
    throw error;
  }
  if (isStale()) warn(newest ? t("lost.stale", { time: clock(newest.at) }) : t("lost.none"));
  else fine();
  setText(get("live"), newest ? t("live.asOf", { time: clock(newest.at) }) : t("live.waiting"));
  showView();
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
  const since = answeredAt ? t("lost.since", { time: clock(answeredAt) }) : "";
  warn(t("lost.lost", { why, since }));
  setText(get("live"), t("live.lost"));
  document.title = `✕ ${t("live.lost")} · Persistence Service`;
}

function askForToken(wrong) {
  sessionStorage.removeItem(TOKEN_KEY);
  token = seen = answeredAt = null;
  clearTimeout(timer);
  leaveSessions();
  fine();
  setText(get("asked"), t(wrong ? "token.wrong" : "token.asked"));
  setText(get("live"), t("live.token"));
  document.title = `${t("live.token")} · Persistence Service`;
  get("figures").hidden = get("sessions").hidden = get("forget").hidden = true;
  get("ask").hidden = false;
  get("token").focus();
}

// --- showing ---

function show(newest) {
  get("figures").hidden = isSessionsView();
  showState(seen, newest);
  showProblems(seen, newest);
  showTiles(seen, newest, showRefused(seen));
  if (!isSessionsView()) for (const chart of charts) chart.draw(seen, colour);
}

// The node's figures, or its sessions.
function showView() {
  const sessions = isSessionsView();
  for (const link of get("views").children) {
    if (sessions === (link.getAttribute("href") === "#sessions")) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!get("ask").hidden || !seen) return;
  get("figures").hidden = sessions || !seen.points.length;
  showSessions(sessions);
}

function newColours() {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue(`--${name}`).trim();
}

// --- beginning ---

setText(get("host"), location.host + location.pathname.replace(/\/dashboard$/, ""));
setText(get("live"), t("live.connecting"));
setText(get("zone"), t("zone", { zone: zone() }));
get("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  token = get("token").value.trim();
  get("token").value = "";
  sessionStorage.setItem(TOKEN_KEY, token);
  poll();
});
get("forget").addEventListener("click", () => askForToken(false));
get("language").addEventListener("click", () => {
  localStorage.setItem(LANGUAGE_KEY, language === "zh" ? "en" : "zh");
  location.reload();
});
document.addEventListener("visibilitychange", () => document.hidden || !get("ask").hidden || poll());
window.addEventListener("hashchange", () => { showView(); if (seen?.points.length) show(seen.points.at(-1)); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  colour = newColours();
  if (seen?.points.length) show(seen.points.at(-1));
});
new ResizeObserver(() => charts.forEach((chart) => chart.resize())).observe(get("charts"));
showView();
poll();
