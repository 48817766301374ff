// Draws an explanation: for each of the first candidates, what every field and pair of fields did for its score.

import { h, rows, svg, table } from "./dom.js";
import { NONE, chance, count, figure, tick } from "./words.js";

const MOST_CARDS = 4;
const MOST_PARTS = 10;

// why: as GET /decisions/{id}?explain=true answers it; shown: ids of items that were shown
export function drawn(why, shown = []) {
  if (why.refusal) return [h("p", { class: "problem said" }, `This cannot be told: ${why.refusal.why}.`)];
  const first = why.candidates.slice(0, MOST_CARDS);
  const pairs = largest(first);
  const lines = first.map((one) => linesOf(one, pairs));
  const most = Math.max(...lines.flat().map(({ value }) => Math.abs(value)), 1e-12);
  return [
    h("p", {}, means(why)),
    h("div", { class: "cards small" }, first.map((one, at) => card(one, lines[at], most, why, shown))),
    why.candidates.length > MOST_CARDS ? h("details", {}, h("summary", {}, `All ${count(why.candidates.length)} that were explained`), others(why)) : null,
    why.background.length ? h("details", {}, h("summary", {}, `The ${count(why.background.length)} logged requests`), h("p", { class: "id" }, why.background.join(", "))) : null,
  ].filter(Boolean);
}

function means({ n, scale, width, exact, background }) {
  const unit = scale === "logit" ? "Bars are in logits: 0 is a chance of one half, +1 about 73 %, −1 about 27 %." : "Bars are in units of the reward.";
  const explored = width ? ` To explore, ${tick(width)} times the ± of a score counts in the candidate's favour.` : "";
  const sampled = exact ? "" : ` They are estimates, by comparison with ${count(background.length)} logged requests; the ± of a bar is its standard error.`;
  return `The bars of a candidate add up to its score. ${unit}${sampled}${explored} There were ${count(n)} candidates.`;
}

const same = (one, other) => one.context === other.context && one.item === other.item;
const ofField = (part) => part.context !== null || part.item !== null;

// The fields and pairs that matter most to any of the candidates, in one order for all.
function largest(candidates) {
  const found = [];
  for (const part of candidates.flatMap((one) => one.parts).filter(ofField).sort((one, other) => Math.abs(other.value) - Math.abs(one.value))) {
    if (!found.some((one) => same(one, part))) found.push(part);
    if (found.length === MOST_PARTS) break;
  }
  return found;
}

function linesOf(candidate, pairs) {
  const listed = pairs.map((pair) => candidate.parts.find((part) => same(part, pair)) ?? { ...pair, value: 0, error: null });
  const rest = candidate.parts.filter((part) => !pairs.some((pair) => same(pair, part))).reduce((sum, part) => sum + part.value, 0);
  return [
    { name: "every candidate", value: candidate.bias },
    ...listed.map((part) => ({ name: named(part), of: part.context !== null && part.item !== null ? null : side(part), value: part.value, error: part.error })),
    ...(rest ? [{ name: "smaller ones", value: rest }] : []),
    { name: "the item itself", value: candidate.item, error: candidate.error },
    ...(candidate.user ? [{ name: "the user himself", value: candidate.user, error: candidate.error }] : []),
  ];
}

const named = ({ context, item }) => [context, item].filter((name) => name !== null).join(" × ");
const side = ({ context }) => (context === null ? "item" : "request");

function card(one, lines, most, why, shown) {
  const certain = one.sd === null ? "" : ` ± ${figure(one.sd)}`;
  return h("article", { class: "card" },
    h("h3", {}, h("span", { class: "id" }, one.id), shown.includes(one.id) ? h("span", { class: "badge good" }, "Shown") : null),
    h("p", {}, `Score ${figure(one.score)}${certain}${why.scale === "logit" ? `, a reward of ${figure(one.expected)}` : ""}. Chance of the first place: ${chance(one.propensity)}.`),
    h("ul", { class: "parts" }, lines.map((line) => bar(line, most))),
    one.rules.length ? h("p", {}, `Rules: ${one.rules.join("; ")}`) : null);
}

const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + figure(Math.abs(value));

function bar({ name, of, value, error }, most) {
  const width = 50 * Math.abs(value) / most;
  const picture = svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: value < 0 ? "minus" : "plus", x: value < 0 ? 50 - width : 50, y: 1, width, height: 8 }),
    svg("line", { class: "grid", x1: 50, x2: 50, y1: 0, y2: 10, "vector-effect": "non-scaling-stroke" }));
  return h("li", {}, h("span", { class: "id" }, name, of ? h("small", {}, ` ${of}`) : null), picture,
    h("span", { class: "value" }, signed(value), error ? h("small", {}, ` ± ${figure(error)}`) : null));
}

function others(why) {
  const found = table("Candidates", ["Item", "Chance", "Score", "±", "What matters most"]);
  rows(found.body, why.candidates.map((one) => {
    const first = one.parts.find(ofField);
    return [one.id, chance(one.propensity), figure(one.score), one.sd === null ? NONE : figure(one.sd), first ? `${named(first)} (${signed(first.value)})` : NONE];
  }));
  return found.whole;
}
