// The page Sessions: the unfinished ones with how far they are, and one with its counts and its failed tasks. It only reads.
"use strict";

const API = "api/v1/persistence/sessions";
const FINISHED = ["completed", "failed", "cancelled"];
const DONE = ["completed", "skipped", "cancelled"]; // of tasks
const QUIET_S = 600; // without news for so long, a session is marked
const AGAIN_MS = 30_000;

let sessionsFor = null; // the hash that is shown
let sessionsTimer = 0;

const isSessionsView = () => location.hash.startsWith("#sessions");

// Reads anew where the hash has changed, and every half minute.
function showSessions(shown) {
  get("sessions").hidden = !shown;
  if (!shown || sessionsFor === location.hash) {
    if (!shown) leaveSessions();
    return;
  }
  leaveSessions();
  sessionsFor = location.hash;
  setText(get("sessions-said"), t("sessions.reading"));
  readSessions();
}

function leaveSessions() {
  sessionsFor = null;
  clearTimeout(sessionsTimer);
}

async function readSessions() {
  clearTimeout(sessionsTimer);
  const hash = sessionsFor;
  try {
    const id = decodeURIComponent(hash.slice("#sessions/".length));
    setText(get("sessions-title"), id ? t("sessions.one", { id }) : t("sessions.title"));
    const elements = id ? await oneSession(id) : await unfinished();
    if (hash !== sessionsFor) return; // somebody has gone on
    if (elements) get("sessions-shown").replaceChildren(...elements);
  } catch (error) {
    if (hash !== sessionsFor) return;
    get("sessions-shown").replaceChildren();
    setText(get("sessions-said"), error.name === "Unread" ? error.message
      : t("sessions.failed", { detail: error.name === "TimeoutError" ? t("lost.timeout") : `${error}` }));
  }
  sessionsTimer = setTimeout(readSessions, AGAIN_MS);
}

// The answer's document; null where the token is asked for. Raises what fetch() raises, and "Unread".
async function read(path) {
  const answer = await ask(API + path);
  if (refused(answer)) return null;
  const { status, said } = answer;
  if (status === 200) return said;
  const missing = status === 404 && said?.error_code !== "READ_DISABLED";
  const text = missing ? t("sessions.missing") : t("sessions.failed", { detail: said?.detail ?? status });
  throw Object.assign(new Error(text), { name: "Unread", missing });
}

async function unfinished(cursor = "") {
  const statuses = seen.session_statuses.filter((status) => !FINISHED.includes(status));
  const filter = cursor ? `cursor=${encodeURIComponent(cursor)}` : `limit=20&status=${statuses.map(encodeURIComponent).join(",")}`;
  const page = await read(`?${filter}`);
  if (!page) return null;
  const body = make("tbody");
  // Counted from the tasks, which are newer than the session's own row.
  for (const { session_id: id } of page.sessions) {
    const session = await read(`/${encodeURIComponent(id)}`).catch((error) => {
      if (!error.missing) throw error; // it was purged just now
    });
    if (session) body.append(sessionRow(session));
  }
  const pending = page.pending_records ? ` ${t("sessions.pending", { records: records(page.pending_records) })}` : "";
  const count = page.sessions.length;
  setText(get("sessions-said"), (count ? t("sessions.count", { count }) : t("sessions.none")) + pending);
  if (!count) return [];
  const table = make("table", "", head("file", "status", "progress", "news"), body);
  return [table, ...more(page.next, async (next, button) => {
    const [others, ...rest] = await unfinished(next);
    body.append(...others.tBodies[0].rows);
    button.replaceWith(...rest);
  })];
}

function sessionRow(session) {
  const link = make("a", "", session.filename || session.session_id);
  link.href = `#sessions/${encodeURIComponent(session.session_id)}`;
  const file = make("th", "", link, make("small", "muted", session.session_id));
  file.scope = "row";
  return make("tr", "", file, make("td", "", session.status), make("td", "", progress(session)), make("td", "", news(session)));
}

async function oneSession(id) {
  const path = `/${encodeURIComponent(id)}`;
  const session = await read(path);
  if (!session) return null;
  const failed = session.progress.by_status.failed ? await read(`${path}/tasks?status=failed&limit=50`) : { tasks: [] };
  if (!failed) return null;
  setText(get("sessions-said"), failed.pending_records ? t("sessions.pending", { records: records(failed.pending_records) }) : "");
  const created = time(momentOf(session.created_at));
  const facts = Object.entries({ file: session.filename, status: session.status, news: news(session), created, provider: session.llm_provider })
    .map(([key, value]) => [t(`sessions.${key}`), value || "–"]);
  const counts = Object.entries(session.progress.by_status).map(([status, count]) => [status, number(count)]);
  const list = make("dl", "facts", ...[...facts, ...counts].map(([key, value]) => make("div", "", make("dt", "", key), make("dd", "", value))));
  const back = make("a", "", t("sessions.back"));
  back.href = "#sessions";
  const shown = [make("p", "", back), progress(session), list, make("h3", "", t("sessions.failedTasks"))];
  if (!failed.tasks.length) return [...shown, make("p", "muted", t("sessions.noFailed"))];
  const body = make("tbody", "", ...failed.tasks.map(taskRow));
  return [...shown, make("table", "", head("task", "place", "message", "at"), body), ...more(failed.next, async (next, button) => {
    const page = await read(`${path}/tasks?cursor=${encodeURIComponent(next)}&limit=50`);
    body.append(...page.tasks.map(taskRow));
    button.remove();
  })];
}

function taskRow(task) {
  const id = make("th", "", task.task_id);
  id.scope = "row";
  const place = [task.sheet_name, task.row_index].filter((part) => part !== "").join(", ");
  return make("tr", "", id, make("td", "", place), make("td", "", task.error_message || "–"), make("td", "", time(momentOf(task.updated_at))));
}

function head(...keys) {
  const cells = keys.map((key) => Object.assign(make("th", "", t(`sessions.${key}`)), { scope: "col" }));
  return make("thead", "", make("tr", "", ...cells));
}

function more(next, act) {
  if (!next) return [];
  const button = make("button", "quiet", t("sessions.more"));
  button.type = "button";
  button.addEventListener("click", () => {
    button.disabled = true;
    clearTimeout(sessionsTimer); // else the first page would come again
    act(next, button);
  });
  return [button];
}

// A bar: done, failed, the rest.
function progress({ progress: { total, by_status: counts } }) {
  if (!total) return make("span", "muted", t("sessions.noTasks"));
  const done = DONE.reduce((sum, status) => sum + (counts[status] ?? 0), 0);
  const failed = counts.failed ?? 0;
  const bar = make("div", "strip", ...[["up", done], ["down", failed], ["rest", total - done - failed]].map(([name, count]) => {
    const part = make("span", name);
    part.style.flexGrow = count;
    return part;
  }));
  bar.setAttribute("aria-hidden", "true");
  return make("div", "progress", bar, make("small", "muted", t("sessions.done", { done: number(done), total: number(total), failed: number(failed) })));
}

// How old the last news of a session is: the session's own, or that of its tasks.
function news({ status, updated_at: updated, progress: { last_task_at: task } }) {
  const at = Math.max(momentOf(updated), task ? momentOf(task) : 0);
  const old_s = Math.max(0, seen.now - at);
  const quiet = old_s > QUIET_S && !FINISHED.includes(status);
  const element = make("span", quiet ? "quiet-run" : "", t(quiet ? "sessions.quiet" : "sessions.ago", { age: age(Math.round(old_s)) }));
  element.title = utc(at);
  return element;
}

get("find").addEventListener("submit", (event) => {
  event.preventDefault();
  location.hash = `#sessions/${encodeURIComponent(get("session-id").value)}`;
});
get("refresh").addEventListener("click", readSessions);
