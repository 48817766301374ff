// One loop: reward and traffic over time, what happened, its data and its policies.

import { Chart } from "./chart.js";
import { h, rows, show, spread, table, terms } from "./dom.js";
import { ofLoop, ofService, state } from "./health.js";
import { get, post } from "./http.js";
import { address, head } from "./tabs.js";
import { NONE, bytes, count, interval, lasting, percent, when } from "./words.js";

const SPANS = [[600, "10 minutes"], [3600, "1 hour"], [21600, "6 hours"], [86400, "1 day"], [604800, "7 days"], [2592000, "30 days"], [31536000, "1 year"]];

export function loopPage(name, parameters) {
  const span = SPANS.map(([seconds]) => seconds).find((seconds) => String(seconds) === parameters.get("last")) ?? 3600;
  const path = `loops/${encodeURIComponent(name)}`;
  const badge = h("span", { class: "badge" });
  const todo = h("ul", { class: "todo" });
  const figures = h("dl", { class: "figures" });
  const reward = new Chart("Reward", "mean of an item shown");
  const traffic = new Chart("Traffic", "decisions a second", { bars: true });
  const policies = table("Policies", ["Policy", "Serves", "Reward", "Over a random choice", "Version", "Published", "Events", "Behind", "Alarms", "Size"]);
  const marks = h("ul", { class: "marks" });
  const note = h("input", { id: "note", maxlength: "200", required: true });
  const said = h("p", { role: "status" });
  const ranges = h("nav", { class: "ranges", "aria-label": "Time range" }, SPANS.map(([seconds, text]) =>
    h("a", { href: address(name, "", { last: seconds }), "aria-current": seconds === span ? "true" : false }, text)));
  const element = h("div", {},
    head(name, "", badge), todo, ranges, figures,
    reward.element, traffic.element,
    h("section", {}, h("h2", {}, "Policies"), policies.whole),
    h("section", {}, h("h2", {}, "What happened"), marks,
      h("form", { class: "noting", onsubmit: noted },
        h("label", { for: "note" }, "Note what happens now"), note, h("button", {}, "Note"), said)));

  async function noted(event) {
    event.preventDefault();
    try {
      await post(`${path}/marks`, { text: note.value });
      note.value = "";
      said.textContent = "Noted.";
    } catch (problem) {
      said.textContent = `Not noted: ${problem.message}`;
    }
  }

  async function refresh() {
    const from = Date.now() / 1000 - span;
    const [status, history, loop] = await Promise.all([get("status"), get(`${path}/history?from=${from.toFixed(0)}`), get(path)]);
    const found = status.loops[name];
    const { level, text } = state(found);
    badge.className = `badge ${level}`;
    badge.textContent = text;
    show(todo, [...ofService(status), ...ofLoop(found)].map((one) => h("li", { class: one.level }, one.text)));
    draw(history);
    tell(history);
    rows(policies.body, Object.entries(found.policies).map(([policy, one]) => {
      const got = history.policies[policy];
      return [policy, loop.traffic[policy] ? percent(loop.traffic[policy]) : "shadow", interval(got?.reward), over(got, interval),
        one.version, one.snapshot_age_s === null ? NONE : `${lasting(one.snapshot_age_s)} ago`, count(one.events), count(one.lag), count(one.alarms), bytes(one.bytes)];
    }));
    const happened = history.marks.slice(-50).reverse();
    show(marks, happened.length ? happened.map((mark) => h("li", {}, h("time", {}, when(mark.at, span)), ` ${mark.text}`)) : h("li", {}, "Nothing in this time."));
    return Math.min(history.known_to, history.now);
  }

  function draw(history) {
    const { from, to, step, bins, now } = history;
    const middle = (bin) => bin.from + step / 2;
    const point = (bin, found) => ({ x: middle(bin), y: found.estimate, low: found.low, high: found.high, dashed: false });
    const all = bins.flatMap((bin) => {
      if (bin.reward) return [point(bin, bin.reward)];
      return bin.so_far === null ? [] : [{ x: middle(bin), y: bin.so_far, dashed: true }];
    });
    const names = [...new Set(bins.flatMap((bin) => Object.keys(bin.policies)))].sort();
    const each = names.length < 2 ? [] : names.map((policy, at) => ({ name: policy, style: `c${at % 8}`,
      points: bins.filter((bin) => bin.policies[policy]?.reward).map((bin) => point(bin, bin.policies[policy].reward)) }));
    const shared = { from, to, step, marks: history.marks };
    reward.update({ ...shared, least: history.reward_range[0], series: [{ name: names.length === 1 ? names[0] : "All", style: "all", bare: each.length > 0, points: all }, ...each] });
    const flow = (name, style, value) => ({ name, style, points: bins.map((bin) => ({ x: middle(bin), y: value(bin) / Math.min(step, Math.max(now - bin.from, 1)) })) });
    traffic.update({ ...shared, least: 0, series: [
      flow("Decisions", "waiting", (bin) => bin.decisions), flow("of them settled", "settled", (bin) => bin.settled)] });
  }

  function tell({ bins, total, step, now, known_to }) {
    const decisions = bins.reduce((sum, bin) => sum + bin.decisions, 0);
    const settled = bins.reduce((sum, bin) => sum + bin.settled, 0);
    terms(figures, [
      ["Decisions", count(decisions)],
      ["Settled", decisions ? percent(settled / decisions) : NONE],
      ["Reward", spread(total.reward)],
      ["Of a random choice", spread(total.uniform)],
      ["Over a random choice", over(total, spread)],
      ["Counted", now - known_to > 5 ? `up to ${lasting(now - known_to)} ago` : "up to now"],
    ]);
  }

  return { title: name, element, refresh };
}

export function over(found, say) {
  if (!found) return NONE;
  if (found.lift) return say(found.lift);
  return found.more_decisions === null ? "cannot be told: nothing is explored" : `about ${count(found.more_decisions)} decisions more`;
}
