// The node's state: what it can do, what is wrong, since when, what to do; figures in tiles; what was refused.
"use strict";

const NOW_S = 10; // rates in the tiles are means of so many seconds
const STILL_S = 5; // a problem seen so lately goes on
const SIGNS = { healthy: "✓", degraded: "!", unhealthy: "✕" };
const LEVELS = { healthy: "good", degraded: "warn", unhealthy: "bad" };

const spanWords = (seen) => age(Math.round(seen.now - seen.from));
const momentOf = (iso) => Date.parse(iso) / 1000;

function showState(seen, newest) {
  lamp("service", LEVELS[newest.status], t(`status.${newest.status}`));
  const state = newest.database ?? "unknown";
  lamp("database", { up: "good", unknown: "warn" }[state] ?? "bad", t(`database.${state}`));
  document.title = `${SIGNS[newest.status]} ${t(`status.${newest.status}`)} · Persistence Service`;
  const spells = databaseSpells(seen);
  get("strip").replaceChildren(...spells.map(([name, from, to]) => {
    const part = make("span", name);
    part.style.flexGrow = to - from;
    return part;
  }));
  const spent = { up: 0, down: 0, unknown: 0 };
  for (const [name, from, to] of spells) spent[name] += to - from;
  const words = spent.down ? [t("span.down", { age: age(spent.down) })] : spent.up ? [t("span.up")] : [];
  if (spent.unknown > longestStep(seen)) words.push(t("span.unknown", { age: age(spent.unknown) }));
  setText(get("span"), t("span.database", { span: spanWords(seen) }));
  setText(get("past"), words.join(", "));
}

function lamp(id, level, word) {
  get(id).className = `lamp ${level}`;
  setText(get(id).querySelector("b"), word);
}

// --- problems: one line a kind, with since when and, where it is over, the latest time ---

function showProblems(seen, newest) {
  const kinds = new Map();
  for (const { at, problems } of seen.points) {
    for (const [kind, text] of Object.entries(problems ?? {})) {
      kinds.set(kind, { since: kinds.get(kind)?.since ?? at, latest: at, text });
    }
  }
  if (newest.cause && kinds.has(newest.cause) && newest.since) kinds.get(newest.cause).since = momentOf(newest.since);
  if (kinds.has("dead_letters") && newest.dead_letter_at) kinds.get("dead_letters").since = momentOf(newest.dead_letter_at);
  const all = [...kinds].sort(([, a], [, b]) => b.latest - a.latest);
  const goesOn = ([, { latest }]) => newest.at - latest <= STILL_S;
  const line = (entry) => problemLine(...entry, goesOn(entry), newest);
  get("problems").replaceChildren(...all.filter(goesOn).map(line));
  const over = all.filter((entry) => !goesOn(entry)).map(line);
  get("over").replaceChildren(...(over.length ? over : [make("li", "muted", t("problems.none"))]));
}

function problemLine(kind, { since, latest, text }, goesOn, newest) {
  const from = time(since);
  const when = kind === "dead_letters" ? [from] : goesOn ? [`${t("when.since")} `, from]
    : since === latest ? [from] : [from, " – ", time(latest)];
  const title = STRINGS[language][`cause.${kind}`] ? t(`cause.${kind}`, { count: newest.dead_letters, text }) : kind;
  const todo = STRINGS[language][`do.${kind}`] ?? "";
  const said = kind === "damage" || !text ? [] : [t("problems.said", { text })];
  const more = todo ? [make("span", "todo", todo)] : [];
  return make("li", goesOn ? "on" : "", make("span", "when", ...when), make("span", "", make("b", "", title), ...said, ...more));
}

function showRefused(seen) {
  const reasons = new Map();
  for (const { at, refused } of seen.points) {
    for (const [reason, count] of Object.entries(refused ?? {})) {
      const before = reasons.get(reason) ?? { since: at, count: 0 };
      reasons.set(reason, { since: before.since, latest: at, count: before.count + count });
    }
  }
  const all = [...reasons].sort(([, a], [, b]) => b.count - a.count);
  const lines = all.map(([reason, { since, latest, count }]) => {
    const when = since === latest ? [time(latest)] : [time(since), " – ", time(latest)];
    return make("li", "", make("span", "when", ...when), make("span", "", make("b", "", reason), ` ${records(count)}`));
  });
  get("refused").replaceChildren(...(lines.length ? lines : [make("li", "muted", t("refused.none"))]));
  return all;
}

// --- figures ---

function showTiles(seen, newest, refusals) {
  const recent = (of) => {
    const values = seen.points.filter((point) => point.at > seen.now - NOW_S).map(of).filter((value) => value != null);
    return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
  };
  const flushed = seen.points.findLast((point) => point.flush_ms != null);
  const latency = seen.points.findLast((point) => point.p50_ms != null);
  const refused = refusals.reduce((sum, [, { count }]) => sum + count, 0);
  const refusedNow = recent((point) => Object.values(point.refused ?? {}).reduce((sum, count) => sum + count, 0));
  const idle_s = seen.now - (flushed?.at ?? seen.from);
  const late = newest.oldest_s != null && newest.oldest_s > 2 * newest.flush_interval_s;
  const known = (value, of) => (value == null ? null : of(value));
  const tiles = [
    ["accepted", perSecond(recent((p) => p.accepted)), t("more.accepted", { value: known(recent((p) => p.requests), short) })],
    ["written", perSecond(recent((p) => p.written)), t("more.written", { value: known(recent((p) => p.rows), short) })],
    ["backlog", known(newest.backlog, records), t("more.backlog", { percent: known(newest.journal_percent, percent) })],
    ["oldest", known(newest.oldest_s, age), t(late ? "more.late" : "more.oldest", { value: known(newest.unsynced, short) }), late],
    ["latency", latency && duration(latency.p50_ms),
      latency ? t("more.latency", { p95: duration(latency.p95_ms), p99: duration(latency.p99_ms) }) : t("more.noBatches")],
    ["flush", !flushed || idle_s > NOW_S ? t("flush.none", { age: age(Math.round(idle_s)) }) : duration(flushed.flush_ms),
      flushed ? t("more.flush", { ms: duration(flushed.flush_ms), time: clock(flushed.at), writers: newest.writers })
        : t("more.noFlush", { writers: newest.writers })],
    ["refused", perSecond(known(refusedNow, (mean) => mean / seen.interval_seconds)), refused
      ? t("more.refused", { span: spanWords(seen), records: records(refused), reasons: refusals.slice(0, 2).map(([reason]) => reason).join(", ") })
      : t("more.noRefused", { span: spanWords(seen) }), refused > 0],
    ["deadLetters", known(newest.dead_letters, short), newest.dead_letters
      ? t("more.deadLetters", { time: known(newest.dead_letter_at, (at) => clock(momentOf(at))) }) : t("more.noDeadLetters"),
      newest.dead_letters > 0],
  ];
  get("tiles").replaceChildren(...tiles.map(([key, value, more, bad]) => {
    const words = (value || "–").split(/([\d.,–]+[kM]?)/); // every second one is a figure
    const big = make("dd", "value", ...words.filter(Boolean).map((word) => (/[\d–]/.test(word) ? word : make("small", "", word))));
    return make("div", bad ? "tile bad" : "tile", make("dt", "", t(key)), big, make("dd", "more", more || ""));
  }));
}
