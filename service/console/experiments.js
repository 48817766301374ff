// The experiments of a loop, and one of them drawn: each arm's lift over the control with its interval, and whether to believe it.

import { adopted, ask } from "./ask.js";
import { h, rows, show, svg, table, terms } from "./dom.js";
import { get, route } from "./http.js";
import { address, head } from "./tabs.js";
import { NONE, chance, count, figure, moment, percent } from "./words.js";

const MISMATCH = 0.01; // p-value below which the split is not what was asked for
const CODES = { mismatch: ["bad", "do not trust it"], broken: ["bad", "a guard rail is broken"], settled: ["good", "settled"], open: ["idle", "open"] };
const STYLES = { better: "good", worse: "bad", ok: "good", broken: "bad" };
const METRICS = { reward: "reward of an item shown", reported: "share of items shown with feedback", shown: "items of a unit" };

export function experimentsPage(loop, parameters) {
  const [wanted, doing] = ["name", "do"].map((key) => parameters.get(key));
  const badge = h("span", { class: "badge" });
  const title = h("span");
  const says = h("p");
  const facts = h("dl");
  const plot = new Intervals();
  const arms = table("Arms", ["Arm", "Policy", "Share", "Units", "Items", "Mean", "Lift", "Says", "Noise explained"]);
  const rails = table("Guard rails", ["Arm", "Metric", "May drop by", "Lift", "Verdict"]);
  const guards = h("div", {}, h("h3", {}, "Guard rails"), rails.whole);
  const split = h("p");
  const end = h("a", { href: "" }, "End it");
  const list = table("Experiments", ["Experiment", "Status", "Since", "What it says"]);
  const one = h("section", {}, h("h2", {}, title, " ", badge), says, h("p", {}, end), plot.element, arms.whole, guards, h("h3", {}, "The split"), split, h("h3", {}, "What was asked"), facts);
  const empty = h("p", { class: "hint" }, "There is no experiment. PUT /experiments/{name} makes one of two policies with their shares.");
  const gone = h("p", { class: "hint" }, `There is no experiment ${wanted} in ${loop}.`);
  const others = h("section", { class: "sayings" }, h("h2", {}, "All experiments"), list.whole);
  const body = h("div");
  const element = h("div", {}, head(loop, "/experiments"), body);
  let form = null;
  let listed = null;

  async function refresh() {
    const { experiments } = await get(route(loop, "experiments"));
    const newest = experiments.toReversed();
    const found = wanted === null ? newest[0] : newest.find(({ name }) => name === wanted);
    if (doing === "end" && found) {
      form ??= ending(found);
      if (!form.element.isConnected) show(body, form.element);
      return Date.now() / 1000;
    }
    if (found) draw(found);
    const lines = newest.map(({ name, status, starts, says: said }) => [name, status, moment(starts), said]);
    if (JSON.stringify(lines) !== listed) {
      listed = JSON.stringify(lines);
      rows(list.body, lines.map(([name, ...rest]) => [name === found?.name ? name : h("a", { href: address(loop, "/experiments", { name }) }, name), ...rest]));
    }
    gone.hidden = wanted === null || Boolean(found);
    one.hidden = !found;
    others.hidden = !lines.length;
    empty.hidden = lines.length > 0;
    if (!body.children.length) show(body, gone, one, others, empty);
    return Date.now() / 1000;
  }

  function draw(found) {
    title.textContent = found.name;
    const [level, means] = CODES[found.code];
    badge.className = `badge ${level}`;
    badge.textContent = `${found.status}: ${means}`;
    says.textContent = found.says;
    end.href = address(loop, "/experiments", { name: found.name, do: "end" });
    end.hidden = found.status === "ended";
    plot.update(found);
    rows(arms.body, found.arms.map((arm) => [arm.arm || "left out", arm.policy ?? "the loop's traffic", percent(arm.share), count(arm.units), count(arm.shown),
      arm.mean === null ? NONE : `${figure(arm.mean)}${arm.error === null ? "" : ` ± ${figure(arm.error)}`}`, lift(arm.lift), arm.code ?? NONE, arm.reduced === null ? NONE : percent(arm.reduced)]));
    const watched = found.arms.flatMap((arm) => arm.guardrails.map((rail) => [arm.arm, rail]));
    guards.hidden = !watched.length;
    rows(rails.body, watched.map(([arm, { metric, drop, lift: change, verdict }]) =>
      [arm, metric, percent(drop), lift(change), h("span", { class: STYLES[verdict] }, verdict)]));
    split.className = found.mismatch < MISMATCH ? "bad" : "";
    split.textContent = found.mismatch < MISMATCH ?
      `Too many units of one arm are missing for chance (p = ${figure(found.mismatch)}). Do not trust the figures; look for what loses units.` :
      `The units fell as was asked for, as far as can be told (p = ${figure(found.mismatch)}).`;
    terms(facts, [["Metric", METRICS[found.metric]], ["A unit is", `a ${found.unit}`], ["Smallest lift that matters", percent(found.minimum_effect)], ["Confidence", percent(found.confidence)],
      ["Left to the traffic", percent(found.holdout)], ["Begins", moment(found.starts)], ["Ends", found.ends === null ? "when it is ended" : moment(found.ends)], ["Events counted", count(found.events)], ["Newest event", found.last === null ? NONE : moment(found.last)],
      ...(found.left_out ? [["Events not counted", `${count(found.left_out)}: there were too many units`]] : []), ...(found.status === "ended" ? [["Rewards", found.whole ? "all are counted" : "some are still to come"]] : [])]);
  }

  function ending({ name, holdout, arms: compared, says: said }) {
    return ask({
      title: `End ${name}`, verb: "End it", done: adopted, leave: address(loop, "/experiments", { name }),
      plan: () => ({
        says: [`It ends now. ${chance(1 - holdout)} of the units go back from its ${compared.filter(({ arm }) => arm).length} arms to the loop's traffic, whichever arm did better. Its results stay; rewards that still wait are counted.`, `So far: ${said}`],
        back: ["There is none: it does not go on. A new experiment begins with no results."],
        call: { method: "POST", path: route(loop, "experiments", name, "end") },
      }),
    });
  }

  return { title: `Experiments of ${loop}`, element, refresh };
}

const lift = (found) => (found ? [percent(found.estimate), h("small", {}, `${percent(found.low)} to ${percent(found.high)}`)] : NONE);

const ROW = 46;
const SIDE = 12;
const FOOT = 24;

// Lifts as bars from low to high with a dot between; grey is what is too small to matter.
class Intervals {
  constructor() {
    this.picture = svg("svg", { class: "picture intervals", role: "img" });
    this.element = h("figure", {}, this.picture, h("figcaption", { class: "hint" }, "Lift over the control. The grey band is what is too small to matter. An interval beside it, or within it, settles the question."));
    this.found = null;
    new ResizeObserver(() => this.#draw()).observe(this.picture);
  }

  update(found) {
    this.found = found;
    this.#draw();
  }

  #draw() {
    const shown = this.found?.arms.filter((arm) => arm.lift) ?? [];
    this.element.hidden = !shown.length;
    if (!shown.length) return;
    const width = Math.max(this.picture.clientWidth || 320, 200);
    const height = shown.length * ROW + FOOT;
    const { minimum_effect: least } = this.found;
    const low = Math.min(-2 * least, ...shown.map((arm) => arm.lift.low));
    const high = Math.max(2 * least, ...shown.map((arm) => arm.lift.high));
    const x = (value) => SIDE + ((value - low) / (high - low)) * (width - 2 * SIDE);
    const foot = shown.length * ROW;
    const scale = [[low, "start"], [0, "middle"], [high, "end"]].filter(([value]) => value === 0 || Math.abs(x(value) - x(0)) > 60).map(([value, anchor]) =>
      svg("text", { class: "tick", x: x(value), y: foot + 17, "text-anchor": anchor }, percent(value)));
    const names = shown.map(({ arm, lift: { estimate, low: from, high: to } }) => `${arm}: ${percent(estimate)} (${percent(from)} to ${percent(to)})`);
    const drawn = shown.map(({ code, lift: found }, at) => {
      const y = at * ROW + 32;
      return svg("g", { class: STYLES[code] ?? "all" }, svg("text", { class: "name", x: SIDE, y: y - 14 }, names[at]),
        svg("line", { class: "whisker", x1: x(found.low), x2: x(found.high), y1: y, y2: y }), svg("circle", { class: "dot", cx: x(found.estimate), cy: y, r: 5 }));
    });
    this.picture.setAttribute("height", height);
    this.picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.picture.setAttribute("aria-label", `Lift over the control. ${names.join("; ")}`);
    show(this.picture, svg("rect", { class: "negligible", x: x(-least), width: x(least) - x(-least), y: 0, height: foot }),
      svg("line", { class: "zero", x1: x(0), x2: x(0), y1: 0, y2: foot }), drawn, scale);
  }
}
