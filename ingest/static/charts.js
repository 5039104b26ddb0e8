// The charts. `seen` is everywhere what the service said last: points, oldest first, its clock `now`, the seconds of the
// window and of the interval between two points.
"use strict";

const COLOURS = ["one", "two", "three"];

// Series: a name, and the value that a point has for it (null, undefined: none). `axis` where its labels are shorter than
// the values, `top` a fixed end of the scale, `least` the lowest that a scale may end at. Scales are linear; with `decades`
// logarithmic; with `bend` linear up to it and logarithmic above, so that what is caught up after an outage does not press
// everyday flat.
const KINDS = [
  { title: "Records per second", show: short, least: 10, bend: 100, area: true, series: [
    ["accepted", (p) => p.flow?.accepted], ["written", (p) => p.flow?.committed], ["rows", (p) => p.flow?.rows]] },
  { title: "Backlog", show: (value) => plural(value, "record"), axis: short, least: 10, area: true, series: [
    ["waiting", (p) => p.waiting?.records]] },
  { title: "At-risk age", show: age, axis: roundAge, least: 5, area: true,
    steps: [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400], series: [
    ["oldest record not in the database", (p) => p.waiting?.oldest_s]] },
  { title: "Latency of batches", show: duration, decades: true, series: [
    ["p50", (p) => p.latency?.p50_ms], ["p95", (p) => p.latency?.p95_ms], ["p99", (p) => p.latency?.p99_ms]] },
  { title: "Flush duration", show: duration, decades: true, series: [["mean", (p) => p.flow?.flush_ms]] },
  { title: "Coalescing", show: percent, top: 100, series: [
    ["records that needed no row", (p) => p.flow?.coalesced_percent]] },
];

// Further apart than this, something was not recorded in between.
const longestStep = (seen) => 3.5 * seen.interval_seconds;

// [state, from, to] that cover the window: up, down, unknown (the flusher was away, or nothing was recorded).
function databaseSpells(seen) {
  const spells = [];
  const add = (state, from, to) => {
    const previous = spells.at(-1);
    if (to <= from) return;
    if (previous?.[0] === state) previous[2] = to;
    else spells.push([state, from, to]);
  };
  let at = seen.now - seen.window_seconds;
  for (const point of seen.points) {
    const from = point.at - at > longestStep(seen) ? point.at - seen.interval_seconds : at;
    add("unknown", at, from);
    add({ healthy: "up", unhealthy: "down" }[point.database] ?? "unknown", from, point.at);
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
      return make("li", "", ...marks, `${name} `, this.values[i]);
    });
    this.box = make("div", "plot");
    this.box.setAttribute("role", "img");
    const caption = make("figcaption", "", make("h3", "", kind.title), make("ul", "", this.time, ...legend));
    parent.append(make("figure", "", caption, this.box));
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
    this.box.setAttribute("aria-label", `${this.kind.title}, last 10 minutes. ${this.inWords(columns)}`);
    this.readOut();
  }

  inWords(columns) {
    return this.kind.series.map(([name], i) => {
      const known = columns[i].filter((value) => value !== null);
      if (!known.length) return `${name}: nothing`;
      return `${name}: ${this.kind.show(known.at(-1))}, at most ${this.kind.show(Math.max(...known))}`;
    }).join("; ");
  }

  resize() {
    this.plot?.setSize({ width: this.box.clientWidth, height: this.box.clientHeight });
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
      scales: { x: { range: () => [this.seen.now - this.seen.window_seconds, this.seen.now] }, 
        y: kind.decades ? { distr: 3, range: decades } : { range: linear, ...(kind.bend && { distr: 4, asinh: kind.bend }) } },
      axes: [
        { ...axis, size: 24, space: 56, incrs: [60, 120, 300, 600],
          values: (u, splits) => splits.map((at) => clock(at).slice(0, 5)) },
        { ...axis, size: 56, space: 30, values: (u, splits) => splits.map((value) => (value == null ? "" : (kind.axis ?? kind.show)(value))),
          ...(kind.steps && { incrs: kind.steps }), ...(kind.bend && { splits: bentSplits, filter: (u, splits) => splits }) },
      ],
      series: [{}, ...kind.series.map((_, i) => ({
        stroke: colour(COLOURS[i]), width: i === 2 ? 1.25 : 2, fill: kind.area && i === 0 ? colour("fill") : undefined,
        points: { size: 5, fill: colour(COLOURS[i]), filter: loneliest } }))],
      hooks: { drawClear: [(u) => this.shade(u)], setCursor: [() => this.readOut()] },
    };
  }

  // When the database was not reached, or nobody knows.
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
    setText(this.time, at == null ? "" : clock(times[at]));
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
