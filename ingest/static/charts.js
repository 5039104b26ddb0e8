// The charts. `seen` is everywhere what the service said last: points, oldest first, its clock `now`, `from`, where the
// window begins, and the seconds of the interval between two points.
"use strict";

const COLOURS = ["one", "two", "three"];

// Series: a text's key, and the value that a point has for it (null, undefined: none). `axis` where its labels are shorter
// than the values, `top` a fixed end of the scale, `least` the lowest that a scale may end at. Scales are linear; with
// `decades` logarithmic; with `bend` linear up to it and logarithmic above, so that what is caught up after an outage does
// not press everyday flat.
const KINDS = [
  { title: "rate", show: short, least: 10, bend: 100, area: true, series: [
    ["accepted", (p) => p.accepted], ["written", (p) => p.written], ["rows", (p) => p.rows]] },
  { title: "backlog", show: records, axis: short, least: 10, area: true, series: [["backlog", (p) => p.backlog]] },
  { title: "oldest", show: age, axis: roundAge, least: 5, area: true,
    steps: [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400], series: [
    ["oldest", (p) => p.oldest_s]] },
  { title: "latency", show: duration, decades: true, series: [
    ["p50", (p) => p.p50_ms], ["p95", (p) => p.p95_ms], ["p99", (p) => p.p99_ms]] },
  { title: "flush", show: duration, decades: true, series: [["mean", (p) => p.flush_ms]] },
  { title: "coalescing", show: percent, top: 100, series: [["needless", (p) => p.coalesced_percent]] },
];

const nameOf = (key) => STRINGS[language][key] ?? key;

// Further apart than this, something was not recorded in between.
const longestStep = (seen) => 3.5 * seen.interval_seconds;

// [state, from, to] that cover the window: up, down (it took no writes), unknown (the flusher was away, or nothing was
// recorded).
function databaseSpells(seen) {
  const spells = [];
  const add = (state, from, to) => {
    const previous = spells.at(-1);
    if (to <= from) return;
    if (previous?.[0] === state) previous[2] = to;
    else spells.push([state, from, to]);
  };
  let at = seen.from;
  for (const point of seen.points) {
    const from = point.at - at > longestStep(seen) ? point.at - seen.interval_seconds : at;
    add("unknown", at, from);
    add(point.database == null ? "unknown" : point.database === "up" ? "up" : "down", from, point.at);
    at = point.at;
  }
  const goesOn = seen.now - at <= longestStep(seen) ? spells.at(-1)?.[0] : undefined;
  add(goesOn ?? "unknown", at, seen.now);
  return spells;
}

class Chart {
  constructor(kind, parent) {
    this.kind = kind;
    this.values = kind.series.map(() => make("b"));
    this.time = make("li");
    const legend = kind.series.map(([name], i) => {
      const marks = kind.series.length > 1 ? [make("span", `mark ${COLOURS[i]}`)] : [];
      return make("li", "", ...marks, kind.series.length > 1 || name !== kind.title ? `${nameOf(name)} ` : "", this.values[i]);
    });
    this.list = make("ul", "", this.time, ...legend);
    this.box = make("div", "plot");
    this.box.setAttribute("role", "img");
    this.box.tabIndex = 0;
    this.box.addEventListener("keydown", (event) => this.key(event));
    this.box.addEventListener("focus", () => { this.list.ariaLive = "polite"; });
    this.box.addEventListener("blur", () => { this.list.ariaLive = "off"; this.point(null); });
    const scale = kind.decades ? t("scale.log") : kind.bend ? t("scale.bent", { value: kind.bend }) : "";
    const title = make("h2", "", t(kind.title), " ", make("small", "muted", scale));
    parent.append(make("figure", "", make("figcaption", "", title, this.list), this.box));
  }

  // Also when the colours have changed.
  draw(seen, colour) {
    this.seen = seen;
    // Where nothing was recorded the lines break.
    const shown = [];
    for (const point of seen.points) {
      const previous = shown.at(-1);
      if (previous && point.at - previous.at > longestStep(seen)) shown.push({ at: previous.at + seen.interval_seconds });
      shown.push(point);
    }
    const columns = this.kind.series.map(([, of]) => shown.map((point) => of(point) ?? null));
    if (this.colour !== colour) {
      this.colour = colour;
      this.plot?.destroy();
      this.plot = new uPlot(this.options(), [[]], this.box);
    }
    this.plot.setData([shown.map((point) => point.at), ...columns]);
    const span = age(Math.round(seen.now - seen.from));
    this.box.ariaLabel = t("chart.words", { title: t(this.kind.title), span, series: this.inWords(columns) });
    this.readOut();
  }

  inWords(columns) {
    return this.kind.series.map(([key], i) => {
      const name = nameOf(key);
      const known = columns[i].filter((value) => value !== null);
      if (!known.length) return t("chart.nothing", { name });
      return t("chart.series", { name, last: this.kind.show(known.at(-1)), most: this.kind.show(Math.max(...known)) });
    }).join("; ");
  }

  resize() {
    this.plot?.setSize({ width: this.box.clientWidth, height: this.box.clientHeight });
  }

  // Moves the cursor, from the newest point on.
  key(event) {
    const last = this.plot?.data[0].length - 1;
    const at = this.plot?.cursor.idx ?? last + 1;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - 30, PageDown: at + 30, Home: 0, End: last, Escape: null }[event.key];
    if (to === undefined || !(last >= 0)) return;
    event.preventDefault();
    this.point(to === null ? null : Math.min(Math.max(to, 0), last));
  }

  point(index) {
    if (!this.plot) return;
    const left = index === null ? -10 : this.plot.valToPos(this.plot.data[0][index], "x");
    this.plot.setCursor({ left, top: index === null ? -10 : 0 });
  }

  options() {
    const { kind, colour, box } = this;
    const axis = { stroke: colour("muted"), font: "12px system-ui, sans-serif", ticks: { show: false },
      grid: { stroke: colour("grid"), width: 1 } };
    const linear = (u, low, high) => [0, kind.top ?? 1.1 * Math.max(high ?? 0, kind.least)];
    const decades = (u, low, high) => [10 ** Math.floor(Math.log10(low || 0.1)), 10 ** Math.ceil(Math.log10(high || 10))];
    return {
      width: box.clientWidth, height: box.clientHeight, padding: [8, 20, 0, 0], legend: { show: false },
      cursor: { sync: { key: "time" }, y: false, drag: { x: false, y: false }, points: { size: 7 } },
      scales: { x: { range: () => [this.seen.from, this.seen.now] },
        y: kind.decades ? { distr: 3, range: decades } : { range: linear, ...(kind.bend && { distr: 4, asinh: kind.bend }) } },
      axes: [
        { ...axis, size: 24, space: 64, incrs: [1, 5, 10, 30, 60, 120, 300, 600],
          values: (u, splits, i, space, step) => splits.map((at) => clock(at).slice(0, step < 60 ? 8 : 5)) },
        { ...axis, size: 56, space: 30, values: (u, splits) => splits.map((value) => (value == null ? "" : (kind.axis ?? kind.show)(value))),
          ...(kind.steps && { incrs: kind.steps }), ...(kind.bend && { splits: bentSplits, filter: (u, splits) => splits }) },
      ],
      series: [{}, ...kind.series.map((_, i) => ({
        stroke: colour(COLOURS[i]), width: i === 2 ? 1.25 : 2, fill: kind.area && i === 0 ? colour("fill") : undefined,
        points: { size: 5, fill: colour(COLOURS[i]), filter: loneliest } }))],
      hooks: { drawClear: [(u) => this.shade(u)], setCursor: [() => this.readOut()] },
    };
  }

  // When the database took no writes, or nobody knows.
  shade(u) {
    for (const [state, from, to] of databaseSpells(this.seen)) {
      if (state === "up") continue;
      const left = Math.max(u.valToPos(from, "x", true), u.bbox.left);
      const right = Math.min(u.valToPos(to, "x", true), u.bbox.left + u.bbox.width);
      u.ctx.fillStyle = this.colour(state);
      u.ctx.fillRect(left, u.bbox.top, Math.max(0, right - left), u.bbox.height);
    }
  }

  // The values under the cursor, or the newest.
  readOut() {
    if (!this.plot) return;
    const [times, ...columns] = this.plot.data;
    const at = this.plot.cursor.idx;
    setText(this.time, at == null ? "" : `${clock(times[at])} (${utc(times[at]).slice(11)})`);
    columns.forEach((column, i) => {
      const value = at == null ? column.findLast((known) => known !== null) : column[at];
      setText(this.values[i], value == null ? "–" : this.kind.show(value));
    });
  }
}

// 0, 1, 2, 5, 10 ... as far as they have room.
function bentSplits(u, axis, low, high) {
  const kept = [0];
  for (let decade = 1; decade <= high; decade *= 10) {
    for (const value of [decade, 2 * decade, 5 * decade]) {
      if (value <= high && u.valToPos(kept.at(-1), "y") - u.valToPos(value, "y") >= 26) kept.push(value);
    }
  }
  return kept;
}

// Points between two gaps, which have no line: uPlot draws these as dots.
function loneliest(u, series) {
  const y = u.data[series];
  return y.map((_, i) => i).filter((i) => y[i] != null && y[i - 1] == null && y[i + 1] == null);
}
