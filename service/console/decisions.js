// Why did this user see that? A decision by its id: what was asked, drawn, reported and counted. Or all that is kept of a user.

import { h, rows, show, table, terms } from "./dom.js";
import { Problem, get, route } from "./http.js";
import { address, head } from "./tabs.js";
import { drawn as drawnWhy } from "./why.js";
import { NONE, chance, count, figure, moment, text } from "./words.js";

const MOST_CANDIDATES = 100; // of a decision's own, that are listed

const STATES = {
  undisplayed: ["idle", "Not displayed yet", "It was deferred, and teaches nothing until it is displayed."],
  pending: ["idle", "Waits for a reward", "Nothing was reported yet."],
  rewarded: ["good", "Rewarded", "A reward came in time."],
  defaulted: ["idle", "No reward came", "The wait is over."],
  late: ["warn", "Too late", "What was reported came when the wait was over, and does not count."],
};

export function decisionsPage(loop, parameters) {
  const [id, user, after] = ["id", "user", "after"].map((name) => parameters.get(name));
  const found = h("div", {}, id || user ? hint("Looking …") : null);
  const element = h("div", {}, head(loop, "/decisions"),
    h("div", { class: "finders" }, finder(loop, "id", "Decision id", id), finder(loop, "user", "User id", user)), found);
  let drawn = null;
  const why = h("section", {}); // asked for once: it takes the service long
  let explained = false;
  let asked = null; // a user is asked for once: his pages are made by reading the log

  async function refresh() {
    if (asked !== null) return asked;
    const body = await (id ? decision() : user ? ofUser() : [hint("Enter the id that POST /recommend answered, or a user's.")]);
    if (body) show(found, body);
    return Date.now() / 1000;
  }

  // Draws only what differs from before, so that what the reader has opened stays open.
  function changed(reply) {
    const seen = JSON.stringify(reply);
    if (seen === drawn) return false;
    drawn = seen;
    return true;
  }

  async function decision() {
    try {
      const [ledger, { settings }] = await Promise.all([get(route(loop, "decisions", id)), get(`loops/${encodeURIComponent(loop)}`)]);
      if (!explained) explain(ledger.decision.items.map((item) => item.id));
      return changed([ledger, settings]) ? ofLedger(loop, ledger, settings, why) : null;
    } catch (problem) {
      return missing(problem, "A decision can be read until the loop's `ledger_time` after it is settled. What was learned from it stays in the log: look for it under its user.");
    }
  }

  async function explain(shown) {
    explained = true;
    const title = h("h2", {}, "Why");
    const change = h("p", {}, h("a", { href: address(loop, "/try", { decision: id }) }, "Change a field and see what it would show"));
    show(why, title, hint("Looking …"));
    try {
      const { explanation } = await get(`${route(loop, "decisions", id)}&explain=true`);
      show(why, title, drawnWhy(explanation, shown), change);
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      explained = problem.status !== 503; // asked again at the next look
      show(why, title, hint(problem.message), change);
    }
  }

  async function ofUser() {
    const page = await get(route(loop, "users", user) + (after ? `&after=${encodeURIComponent(after)}` : ""));
    asked = Date.now() / 1000;
    return ofPage(loop, page, after);
  }

  return { title: `Decisions of ${loop}`, element, refresh };
}

const hint = (said) => h("p", { class: "hint" }, said);

function missing(problem, said) {
  if (!(problem instanceof Problem) || problem.status !== 404) throw problem;
  return [h("section", { class: "problem" }, h("h2", {}, problem.title), h("p", {}, problem.message), hint(said))];
}

function finder(loop, name, label, value) {
  const field = h("input", { id: `find-${name}`, value: value ?? "", maxlength: "128", required: true, autocomplete: "off", spellcheck: "false" });
  return h("form", { class: "noting", onsubmit: (event) => {
    event.preventDefault();
    location.hash = address(loop, "/decisions", { [name]: field.value });
  } }, h("label", { for: field.id }, label), field, h("button", {}, "Find"));
}

function time(seconds) {
  const utc = new Date(seconds * 1000).toISOString();
  return h("time", { datetime: utc, title: utc }, moment(seconds));
}

function facts(pairs) {
  const list = h("dl");
  terms(list, pairs.filter(([, value]) => value !== null));
  return list;
}

function filled(caption, heads, lines, empty) {
  if (!lines.length) return hint(empty);
  const made = table(caption, heads);
  rows(made.body, lines);
  return made.whole;
}

const section = (title, ...children) => h("section", {}, h("h2", {}, title), children);

const raw = (reply) => h("details", {}, h("summary", {}, "Raw JSON"), h("pre", { tabindex: "0" }, JSON.stringify(reply, null, 2)));

function ofLedger(loop, ledger, settings, why) {
  const { decision, status, deadline, feedback } = ledger;
  const [level, badge, means] = STATES[status];
  const made = Date.parse(decision.at) / 1000;
  const user = decision.user_id === null ? "nobody in particular" :
    h("a", { href: address(loop, "/decisions", { user: decision.user_id }) }, decision.user_id);
  return [
    h("section", {},
      h("h2", { class: "id" }, `Decision ${decision.decision_id} `, h("span", { class: `badge ${level}` }, badge)),
      h("p", {}, "For ", user, ", on ", time(made), `, ${decision.policy} (version ${decision.version}) chose ${count(decision.items.length)} of ${count(decision.n)} items. ${means}`)),
    section("What was shown", slate(decision),
      hint("The propensity is the exact chance that the item had at its place, given the places before it.")),
    why,
    section("What was reported", filled("Reports", ["When", "Item", "Reward", "Counts", "Report"], feedback.map((one) =>
      [time(one.at), one.item_id, figure(one.reward), counts(one, settings), one.feedback_id ?? NONE]), "No report came."),
      waiting(ledger, settings)),
    section("What was asked", context(decision.context),
      facts([["Candidates", candidates(decision)], ["Excluded", decision.exclude.length ? decision.exclude.join(", ") : null],
        ["Removed by limits", decision.removed && Object.entries(decision.removed).map(([why, items]) => `${items.join(", ")} (${LIMITS[why]})`).join("; ")],
        ["Found by the funnel", decision.retrieved && `${count(decision.retrieved.rows.length)} items, by version ${decision.retrieved.version} of its counts`]]),
      own(decision.candidates)),
    decision.rules ? section("Rules that held", h("ul", { class: "plain" }, rules(decision.rules).map((said) => h("li", {}, said)))) : null,
    decision.experiment ? section("Experiment", arm(loop, decision.experiment)) : null,
    section("To make it again", facts([["Policy", `${decision.policy}, version ${decision.version}`], ["Encoder", decision.encoder], ["Catalogue", `version ${decision.catalogue}`],
      ["Exploration floor", figure(decision.exploration_floor)], ["Seed", decision.seed]]),
      hint("`rebound audit` makes decisions again from their records, and says whether they are equal bit for bit."), raw(ledger)),
  ];
}

function slate({ items, n, left }) {
  return filled("What was shown", ["Place", "Item", "Propensity", "Drawn from", "Score"], items.map((item, at) => {
    const from = left ? left[at] : n - at;
    return [at + 1, item.id, [chance(item.propensity), item.propensity < 0.999 / from ? h("small", {}, "explored: less likely than by chance") : null].filter(Boolean), `${count(from)} items`, figure(item.score)];
  }), "Nothing was shown.");
}

function counts(report, { aggregation }) {
  if (report.status === "late") return "no: it came too late";
  if (report.status === "replaced") return "no: a correction replaced it";
  return report.replaces ? `yes (${aggregation}), in place of ${report.replaces}` : `yes (${aggregation})`;
}

function waiting({ decision, status, deadline, feedback }, { default_reward }) {
  const silent = decision.items.filter(({ id }) => !feedback.some((one) => one.item_id === id && one.status !== "late")).length;
  if (!silent) return null;
  if (status === "undisplayed") return h("p", {}, "Until it is displayed, by ", time(deadline), " at the latest, nothing is waited for.");
  return h("p", {}, `${count(silent)} of ${count(decision.items.length)} items without a report in time: ${silent === 1 ? "it counts" : "each counts"} ${figure(default_reward)} (the loop's default reward) from `, time(deadline), " on.");
}

function context(fields) {
  const names = Object.keys(fields);
  return names.length ? facts(names.map((name) => [name, text(fields[name])])) : hint("The request had no context.");
}

function candidates({ candidates: listed, n, catalogue }) {
  return listed ? `${count(listed.length)} of the request, ${count(n)} of them eligible` : `version ${catalogue} of the catalogue, ${count(n)} eligible`;
}

function own(listed) {
  if (!listed) return null;
  return h("details", {}, h("summary", {}, listed.length > MOST_CANDIDATES ? `The first ${MOST_CANDIDATES} candidates` : "The candidates"),
    filled("Candidates", ["Item", "Features of the request"], listed.slice(0, MOST_CANDIDATES).map(([id, features]) => [id, features ? text(features) : "the catalogue's"]), "None."));
}

function condition({ field, in: among, not_in: without, min, max }) {
  const said = [among && `is one of ${text(among)}`, without && `is none of ${text(without)}`, min !== undefined && min !== null && `is at least ${figure(min)}`, max !== undefined && max !== null && `is at most ${figure(max)}`];
  return `${field} ${said.filter(Boolean).join(" and ")}`;
}

const LIMITS = { taken: "the user took them", shown: "shown to the user as often as may be", spent: "no budget left" };

const rules = ({ filter = [], boost = [], pin = [], at_most = [] }) => [
  ...filter.map((one) => `Only items whose ${condition(one)}.`),
  ...boost.map((one) => `The odds of items whose ${condition(one)} are multiplied by ${figure(one.times)}.`),
  ...pin.map(({ item, place }) => `${item} stands at place ${place}, if it is a candidate.`),
  ...at_most.map(({ field, items }) => `At most ${items} with the same ${field}.`)];

function arm(loop, { experiment, arm: name, share, version }) {
  const link = h("a", { href: address(loop, "/experiments", { name: experiment }) }, experiment);
  return h("p", {}, "In ", link, ` (version ${version}), ${name ? `arm ${name}` : "left out, served by the loop's traffic"}: ${chance(share)} of all units fall there.`);
}

function ofPage(loop, page, after) {
  const { user_id: user, decisions, activity, events, activity_log: logged, next } = page;
  const link = (id, said) => h("a", { href: address(loop, "/decisions", { id }) }, said);
  const turn = [after ? h("a", { href: address(loop, "/decisions", { user }) }, "First page") : null,
    next ? h("a", { href: address(loop, "/decisions", { user, after: next }) }, "Next page") : null].filter(Boolean);
  const nothing = !decisions.length && !events.length && !activity.length && !logged.length && !after && !next;
  if (nothing) return [section(`User ${user}`, hint(`Nothing is kept of this user in ${loop}. Is the id written as in user_id of POST /recommend? An erased user leaves nothing, too.`))];
  const newest = [...decisions].sort((a, b) => b.decision.at.localeCompare(a.decision.at));
  return [
    section(`User ${user}`, filled("Decisions", ["Decision", "Policy", "Shown", "Reports", "State"], newest.map(({ decision, status, feedback }) =>
      [link(decision.decision_id, time(Date.parse(decision.at) / 1000)), `${decision.policy}, version ${decision.version}`, decision.items.map(({ id }) => id).join(", "),
        count(feedback.length), STATES[status][1]]), "The ledger holds no decision on this page.")),
    events.length ? section("What was learned", filled("Events", ["When", "Item", "Reward", "From", "Decision"], events.map((event) =>
      [time(event.at), event.item_id, figure(event.reward), event.source, event.source === "import" ? NONE : link(event.decision_id, event.decision_id)]), "")) : null,
    logged.length ? section("All activity", filled("All activity", ["When", "Item", "What"], [...logged].reverse().map((one) => [time(one.at), one.item_id, one.type]), "")) : null,
    activity.length ? section("Activity", filled("Activity", ["When", "Item", "What"], [...activity].reverse().map((one) => [time(one.at), one.item_id, one.type]), "")) : null,
    turn.length ? h("nav", { class: "turn", "aria-label": "Pages of the user" }, turn) : null,
    section("All of it", raw(page)),
  ];
}
