// All loops: what needs a person first, then whether each learns, and what it gets.

import { h, show, spread, terms } from "./dom.js";
import { ofLoop, ofService, state } from "./health.js";
import { get } from "./http.js";
import { over } from "./loop.js";
import { address } from "./tabs.js";
import { count, figure } from "./words.js";

const MOST_LOOPS = 30; // whose history is asked for
const HISTORY_MS = 10000;

const RANK = { bad: 0, warn: 1, good: 2, idle: 3 };

export function overview() {
  const todo = h("ul", { class: "todo" });
  const cards = h("ul", { class: "cards" });
  const element = h("div", {}, h("h1", {}, "Overview"), todo, cards);
  const histories = new Map();
  const counters = []; // [seconds, status] of the last half minute, for decisions a second
  let asked = -Infinity;

  async function refresh() {
    const status = await get("status");
    const now = Date.now() / 1000;
    counters.push([now, status]);
    while (now - counters[0][0] > 30) counters.shift();
    const names = Object.keys(status.loops).sort((a, b) =>
      RANK[state(status.loops[a]).level] - RANK[state(status.loops[b]).level] || a.localeCompare(b));
    if (performance.now() - asked > HISTORY_MS) {
      asked = performance.now();
      await Promise.all(names.slice(0, MOST_LOOPS).filter((name) => status.loops[name].decisions).map(async (name) => {
        histories.set(name, await get(`loops/${encodeURIComponent(name)}/history`).catch(() => undefined));
      }));
    }
    const wrong = [...ofService(status), ...names.flatMap((name) =>
      ofLoop(status.loops[name]).filter(({ level }) => level === "bad" || level === "warn").map((one) => ({ ...one, name })))];
    show(todo, wrong.length ? wrong.slice(0, 12).map(({ level, text, name }) =>
      h("li", { class: level }, name ? h("a", { href: address(name, "") }, name) : null, name ? " " : null, text)) : h("li", { class: "good" }, "Nothing needs a person."));
    show(cards, names.map((name) => card(name, status.loops[name])),
      names.length ? null : h("li", {}, "There is no loop yet. PUT /loops/{loop} makes one."));
    return now;
  }

  function rate(name) {
    const [then, before] = counters[0];
    const [now, status] = counters.at(-1);
    const old = before.loops[name];
    return old && now - then >= 1 ? Math.max(status.loops[name].decisions - old.decisions, 0) / (now - then) : null;
  }

  function card(name, loop) {
    const said = state(loop);
    const found = histories.get(name)?.total;
    const lag = Math.max(0, ...Object.values(loop.policies).map((policy) => policy.lag));
    const figures = h("dl");
    terms(figures, [
      ["Reward, last hour", spread(found?.reward)],
      ["Over a random choice", over(found, spread)],
      ["Decisions a second", figure(rate(name))],
      ["Decisions", count(loop.decisions)],
      ["Events behind", count(lag)],
      ["Wait for a reward", count(loop.pending)],
    ]);
    return h("li", { class: "card" },
      h("h2", {}, h("a", { href: address(name, "") }, name), h("span", { class: `badge ${said.level}` }, said.text)),
      figures);
  }

  return { title: "Overview", element, refresh };
}
