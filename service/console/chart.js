// Draws time series: lines with bands, or bars, in SVG. Every chart has a table and a file of the same figures.

import { h, rows, show, svg, table } from "./dom.js";
import { NONE, csv, figure, tick, when } from "./words.js";

const HEIGHT = 240;
const LEFT = 52;
const RIGHT = 12;
const TOP = 10;
const BOTTOM = 26;

// Ticks at 1, 2 or 5 times a power of ten: about `most` of them.
function ticks(low, high, most) {
  const rough = (high - low) / most || 1;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = size * [1, 2, 5, 10].find((factor) => factor * size >= rough);
  const found = [];
  for (let y = Math.ceil(low / step) * step; y <= high + step * 1e-9; y += step) found.push(y);
  return found;
}

// Round times of the reader's clock: at most so many, and none so near to an end that its text would not fit.
function hours(from, to, most) {
  const step = [10, 30, 60, 300, 600, 1800, 3600, 10800, 21600, 43200, 86400, 7 * 86400, 30 * 86400, 91 * 86400].find((size) => (to - from) / size <= most) ?? 365 * 86400;
  const shift = -60 * new Date(to * 1000).getTimezoneOffset();
  const found = [];
  for (let x = Math.ceil((from + shift) / step) * step - shift; x <= to; x += step) {
    if (x - from > 0.03 * (to - from) && to - x > 0.03 * (to - from)) found.push(x);
  }
  return found;
}

// Cuts points into pieces without a long gap, each of one style.
function pieces(points, step) {
  const found = [];
  let last = null;
  for (const point of points) {
    const joined = last && point.x - last.x <= 3 * step;
    if (joined && point.dashed === last.dashed) found.at(-1).push(point);
    else found.push(joined ? [last, point] : [point]);
    last = point;
  }
  return found;
}

export class Chart {
  // series: [{name, style, bare, points: [{x, y, low, high, dashed}]}], each point at the middle of its bin; bare: no band
  constructor(title, unit, { bars = false } = {}) {
    this.title = title;
    this.bars = bars;
    this.unit = unit;
    this.cursor = null;
    this.shown = null;
    this.picture = svg("svg", { class: "picture", height: HEIGHT, role: "img", tabindex: "0",
      onpointermove: (event) => this.#point(event.clientX), onpointerleave: () => this.#move(null),
      onkeydown: (event) => this.#key(event) });
    this.legend = h("ul", { class: "legend" });
    const heads = table(`${title}, as a table`, ["Time"]);
    this.table = heads;
    this.head = heads.whole.querySelector("thead tr");
    const file = h("button", { type: "button", class: "quiet", onclick: () => this.#download() }, "Download as CSV");
    this.details = h("details", { ontoggle: () => this.#tabulate() }, h("summary", {}, "Table"), file, heads.whole);
    this.element = h("section", { class: "chart" }, h("h2", {}, title, h("small", {}, ` ${unit}`)), this.legend, this.picture, this.details);
    new ResizeObserver(() => this.#draw()).observe(this.picture);
  }

  update(shown) {
    this.shown = shown;
    this.#draw();
    this.#tabulate();
  }

  #width() {
    return Math.max(this.picture.clientWidth || 320, 200);
  }

  #x(x) {
    const { from, to } = this.shown;
    return LEFT + ((x - from) / (to - from)) * (this.#width() - LEFT - RIGHT);
  }

  #range() {
    const { series, least } = this.shown;
    const ys = series.flatMap((one) => one.points.map((point) => point.y));
    const low = Math.min(least, ...ys);
    const high = Math.max(...ys, -Infinity);
    return [low, high > low ? high + 0.15 * (high - low) : low + 1];
  }

  #draw() {
    if (!this.shown) return;
    const { from, to, step, series, marks } = this.shown;
    const width = this.#width();
    const [low, high] = this.#range();
    const y = (value) => TOP + (1 - (Math.min(Math.max(value, low), high) - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    const grid = ticks(low, high, 4).map((value) =>
      svg("g", {}, svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
        svg("text", { class: "tick", x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, tick(value))));
    const most = Math.max(2, Math.floor((width - LEFT) / 100));
    const times = hours(from, to, most).map((x) =>
      svg("text", { class: "tick", x: this.#x(x), y: HEIGHT - 8, "text-anchor": "middle" }, when(x, to - from)));
    const noted = marks.map((mark) =>
      svg("line", { class: `mark ${["note", "change", "encoder"].includes(mark.kind) ? mark.kind : "alarm"}`, x1: this.#x(mark.at), x2: this.#x(mark.at), y1: TOP, y2: HEIGHT - BOTTOM },
        svg("title", {}, `${when(mark.at, to - from)} ${mark.text}`)));
    const drawn = this.bars ? this.#bars(y) : series.flatMap((one) => this.#line(one, step, y));
    const empty = series.some((one) => one.points.length) ? [] :
      [svg("text", { class: "empty", x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "No decisions in this time")];
    const cursor = this.cursor === null ? [] :
      [svg("line", { class: "cursor", x1: this.#x(this.cursor), x2: this.#x(this.cursor), y1: TOP, y2: HEIGHT - BOTTOM })];
    this.picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.picture.setAttribute("aria-label", `${this.title}, ${when(from, to - from)} to ${when(to, to - from)}. Arrow keys read the figures; the table below holds them all.`);
    show(this.picture, grid, times, drawn, noted, cursor, empty);
    this.#say();
  }

  #line({ style, points, bare }, step, y) {
    const drawn = [];
    for (const piece of pieces(points, step)) {
      const band = piece.filter((point) => point.low !== undefined && !point.dashed);
      if (!bare && band.length > 1) {
        const ends = [...band.map((point) => [point.x, point.high]), ...band.reverse().map((point) => [point.x, point.low])];
        drawn.push(svg("polygon", { class: `band ${style}`, points: ends.map(([x, end]) => `${this.#x(x)},${y(end)}`).join(" ") }));
      }
    }
    for (const piece of pieces(points, step)) {
      const path = piece.map((point, at) => `${at ? "L" : "M"}${this.#x(point.x).toFixed(1)} ${y(point.y).toFixed(1)}`).join("");
      if (piece.length > 1) drawn.push(svg("path", { class: `line ${style}${piece.at(-1).dashed ? " dashed" : ""}`, d: path }));
      else drawn.push(svg("circle", { class: `dot ${style}`, cx: this.#x(piece[0].x), cy: y(piece[0].y), r: 2.5 }));
    }
    return drawn;
  }

  #bars(y) {
    const { step, series } = this.shown;
    const wide = Math.max(1, this.#x(this.shown.from + step) - this.#x(this.shown.from) - 1);
    const foot = y(this.shown.least);
    return series.flatMap(({ style, points }) => points.filter((point) => point.y > 0).map((point) =>
      svg("rect", { class: `bar ${style}`, x: this.#x(point.x) - wide / 2, width: wide, y: y(point.y), height: Math.max(foot - y(point.y), 1) })));
  }

  #times() {
    return [...new Set(this.shown.series.flatMap((one) => one.points.map((point) => point.x)))].sort((a, b) => a - b);
  }

  #point(clientX) {
    if (!this.shown) return;
    const { from, to } = this.shown;
    const share = (clientX - this.picture.getBoundingClientRect().left - LEFT) / (this.#width() - LEFT - RIGHT);
    const wanted = from + share * (to - from);
    const times = this.#times();
    this.#move(times.length ? times.reduce((best, x) => (Math.abs(x - wanted) < Math.abs(best - wanted) ? x : best)) : null);
  }

  #key(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const times = this.shown ? this.#times() : [];
    if (!by || !times.length) return;
    event.preventDefault();
    const now = this.cursor === null ? times.length - (by < 0 ? 0 : 1) : times.indexOf(this.cursor);
    this.#move(times[Math.min(Math.max(now + by, 0), times.length - 1)]);
  }

  #move(x) {
    if (x === this.cursor) return;
    this.cursor = x;
    this.#draw();
  }

  // The legend tells the figures at the cursor; without one, the newest that are final.
  #say() {
    const { series, from, to, step } = this.shown;
    const times = this.#times();
    const x = this.cursor ?? series[0].points.findLast((point) => !point.dashed)?.x ?? times.at(-1);
    const said = series.map((one) => {
      const point = one.points.find((found) => found.x === x);
      const value = !point ? NONE : point.low === undefined ? figure(point.y) : `${figure(point.y)} (${figure(point.low)} to ${figure(point.high)})`;
      return h("li", {}, h("span", { class: `swatch ${one.style}`, "aria-hidden": "true" }), `${one.name} `, h("b", {}, point?.dashed ? `${value} so far` : value));
    });
    show(this.legend, said, h("li", { class: "time" }, x === undefined ? NONE : when(x - step / 2, to - from)));
  }

  #lines() {
    const { series } = this.shown;
    return this.#times().map((x) => {
      const points = series.map((one) => one.points.find((point) => point.x === x));
      return [x - this.shown.step / 2, ...points];
    });
  }

  #tabulate() {
    if (!this.details.open || !this.shown) return;
    show(this.head, ["Time", ...this.shown.series.map((one) => one.name)].map((name) => h("th", { scope: "col" }, name)));
    const span = this.shown.to - this.shown.from;
    rows(this.table.body, this.#lines().reverse().map(([start, ...points]) =>
      [when(start, span), ...points.map((point) => (point ? `${figure(point.y)}${point.dashed ? " so far" : ""}` : NONE))]));
  }

  #download() {
    if (!this.shown) return;
    const names = this.shown.series.map((one) => one.name);
    const heads = ["utc", ...names.flatMap((name) => [name, `${name} low`, `${name} high`, `${name} provisional`])];
    const lines = this.#lines().map(([start, ...points]) =>
      [new Date(start * 1000).toISOString(), ...points.flatMap((point) => [point?.y, point?.low, point?.high, point?.dashed ? 1 : 0])]);
    const url = URL.createObjectURL(new Blob([csv([heads, ...lines])], { type: "text/csv" }));
    h("a", { href: url, download: `${this.title}.csv` }).click();
    URL.revokeObjectURL(url);
  }
}
