// The policies of a loop: what each is, how far it has learned, and whom it serves; and the forms that change that.

import { adopted, ask, choice, field } from "./ask.js";
import { h, show, terms } from "./dom.js";
import { get, route } from "./http.js";
import { address, head } from "./tabs.js";
import { NONE, bytes, count, lasting, percent, text } from "./words.js";

const STEPS = "0.01, 0.1, 0.5, 1";

export function policiesPage(loop, parameters) {
  const [doing, name] = ["do", "policy"].map((key) => parameters.get(key));
  const body = h("div");
  const element = h("div", {}, head(loop, "/policies"), body);
  const here = address(loop, "/policies");
  const cards = new Map(); // kept, so that a link which has the focus stays
  const list = h("ul", { class: "cards" });
  const add = h("p", {}, h("a", { class: "button", href: address(loop, "/policies", { do: "create" }) }, "Make a policy"));
  let form = null;
  let found = null; // {policies, traffic, kinds}

  async function refresh() {
    const [{ policies }, { traffic }] = await Promise.all([get(route(loop, "policies")), get(`loops/${encodeURIComponent(loop)}`)]);
    found = { policies, traffic, kinds: found?.kinds ?? (doing === "create" ? (await get("kinds")).kinds : null) };
    if (!doing) return all(policies);
    if (form) form.update();
    else show(body, begin());
    return Date.now() / 1000;
  }

  function all(policies) {
    for (const policy of policies) {
      if (!cards.has(policy.name)) cards.set(policy.name, cardOf(loop, policy.name));
      cards.get(policy.name).update(policy);
    }
    const elements = policies.map((policy) => cards.get(policy.name).element);
    if (elements.length !== list.children.length || elements.some((one, at) => one !== list.children[at])) show(list, elements);
    if (!body.children.length || !policies.length) show(body, policies.length ? null : h("p", { class: "hint" }, "There is no policy: choices are random, and nothing is learned. Make one."), list, add);
    return Date.now() / 1000;
  }

  let last = null; // what was known of the policy, also when somebody has deleted it meanwhile
  const policy = () => (last = found.policies.find((one) => one.name === name) ?? last);

  function begin() {
    const make = FORMS[doing];
    if (!make || (doing !== "create" && !policy())) return h("p", { class: "hint" }, `There is no policy ${name ?? ""} in ${loop} now. `, h("a", { href: here }, "All policies"));
    form = ask({ ...make({ loop, policy, found: () => found }), leave: here });
    return form.element;
  }

  return { title: `Policies of ${loop}`, element, refresh };
}

// ---- the list

function cardOf(loop, name) {
  const badge = h("span", { class: "badge" });
  const figures = h("dl");
  const release = h("p");
  const links = Object.fromEntries([["activate", "Activate"], ["rollback", "Roll back"], ["release", "Release"], ["cancel", "Cancel the release"], ["delete", "Delete"]].map(([doing, said]) =>
    [doing, h("a", { href: address(loop, "/policies", { do: doing, policy: name }), "aria-label": `${said}: ${name}` }, said)]));
  const element = h("li", { class: "card" }, h("h2", {}, h("span", {}, name), badge), figures, release, h("p", { class: "answers" }, Object.values(links)));

  function update(one) {
    const runs = one.release?.state === "running";
    badge.className = `badge ${one.pinned !== null ? "warn" : one.share ? "good" : "idle"}`;
    badge.textContent = `${one.share ? `Serves ${percent(one.share)}` : "Shadow"}${one.pinned === null ? "" : `, held at version ${one.pinned}`}`;
    terms(figures, [
      ["Kind", one.kind],
      ["Version", one.version ? [String(one.version), h("small", {}, one.published === null ? NONE : `published ${lasting(Date.now() / 1000 - one.published)} ago`)] : "none yet"],
      ["Events learned", count(one.events)],
      ["Events behind", count(one.lag)],
      ["Kept versions", kept(one.kept_versions)],
      ["Size", bytes(one.bytes)],
    ]);
    release.textContent = one.release ? released(one.release) : "No release.";
    const possible = { activate: one.share < 1 || one.pinned !== null, rollback: one.kept_versions.length > 0, release: !runs && one.share < 1, cancel: runs, delete: !one.share };
    for (const [doing, link] of Object.entries(links)) link.hidden = !possible[doing];
  }

  return { element, update };
}

// [1, 2, 3, 7] as "1 to 3, 7"
function kept(versions) {
  const spans = [];
  for (const version of versions) {
    if (spans.length && version === spans.at(-1)[1] + 1) spans.at(-1)[1] = version;
    else spans.push([version, version]);
  }
  return spans.map(([first, last]) => (first === last ? `${first}` : `${first} to ${last}`)).join(", ") || NONE;
}

const released = ({ state, step, steps, share, why }) => `Release ${state.replace("_", " ")}: step ${step} of ${steps.length}, ${percent(share)} of the users: ${why}.`;

// ---- the forms: each gets the loop's name, the policy and the loop as they are now

const split = (traffic) => Object.entries(traffic).map(([name, share]) => `${name} ${percent(share)}`).join(", ") || "nobody: choices are random";

function before(loop, traffic, { name, pinned }) {
  if (!Object.keys(traffic).length) return ["Until now choices are random, as those of a policy of kind random."];
  const held = pinned === null ? [] : ["And hold it at its version again:", { method: "POST", path: route(loop, "policies", name, "rollback"), body: { version: pinned } }];
  return [`Serve as now (${split(traffic)}):`, { method: "PUT", path: route(loop, "traffic"), body: traffic }, ...held];
}

const behind = ({ version, lag }) => `${version ? `It is at version ${count(version)}` : "It has no version yet, and would choose at random"}, ${lag ? `${count(lag)}` : "no"} events behind the log.`;

const FORMS = {
  create({ loop, found }) {
    const { kinds } = found();
    const kind = choice("kind", kinds.map((one) => one.kind), "adaptive");
    const name = h("input", { id: "name", maxlength: "64", autocomplete: "off", spellcheck: "false" });
    const about = h("p", { class: "hint" });
    const parameters = h("div", { class: "fields" });
    let inputs = [];
    let shown = null;

    function choose() {
      if (shown === kind.value) return;
      shown = kind.value;
      const { summary, params } = kinds.find((one) => one.kind === shown);
      about.textContent = summary;
      inputs = Object.entries(params.properties ?? {}).map(([key, said]) => ({ key, fallback: JSON.stringify(said.default), input: parameter(key, said), about: said.description }));
      show(parameters, inputs.map(({ key, input, about: line }) => field(key, input, line)));
    }

    function plan() {
      choose();
      const params = Object.fromEntries(inputs.map(({ key, input, fallback }) => [key, read(input.value), fallback]).filter(([, value, fallback]) => JSON.stringify(value) !== fallback).map(([key, value]) => [key, value]));
      const made = name.value || kind.value;
      return {
        says: [`${made} learns the log from its start, then every event, in the shadow. It serves nobody until you activate or release it.`],
        back: ["Delete it:", { method: "DELETE", path: route(loop, "policies", made) }],
        call: { method: "POST", path: route(loop, "policies"), body: { ...(name.value ? { name: name.value } : {}), kind: kind.value, ...(Object.keys(params).length ? { params } : {}) } },
      };
    }

    return { title: `A new policy in ${loop}`, verb: "Make it", plan, done: (made) => [`Done: ${made.name} is there, with ${count(made.lag)} events to learn.`],
      fields: [field("Kind", kind), about, field("Name", name, "default: the kind"), h("details", {}, h("summary", {}, "Parameters"), parameters)] };
  },

  activate: ({ loop, policy, found }) => ({
    title: `Activate ${policy().name}`, verb: "Activate", done: adopted,
    plan: () => {
      const one = policy();
      return {
        says: [`All users of ${loop} are served by ${one.name}: ${percent(1 - one.share)} of them move to it. Now: ${split(found().traffic)}.`,
          one.pinned === null ? behind(one) : `It is held at version ${one.pinned} now; it serves its newest, ${one.version}, from then on.`],
        back: before(loop, found().traffic, one),
        call: { method: "POST", path: route(loop, "policies", one.name, "activate") },
      };
    },
  }),

  rollback({ loop, policy, found }) {
    const { name, kept_versions: versions, version: newest } = policy();
    const back = (to) => ({ method: "POST", path: route(loop, "policies", name, "rollback"), body: { version: to } });
    const version = choice("version", versions.toReversed().map(String), String(versions.findLast((one) => one !== newest) ?? newest));
    return {
      title: `Roll ${name} back`, verb: "Roll back", fields: [field("Version", version, `of those that are kept; the newest is ${newest}`)], done: adopted,
      plan: () => {
        const { share, pinned } = policy();
        return {
          says: [`${name} serves exactly version ${version.value} until it is activated again. It goes on learning meanwhile.`,
            share ? `${percent(share)} of the users are served by it; none moves.` : "It serves nobody now."],
          back: [pinned === null ? "Activate it, which gives it all the traffic, too; then split the traffic as it is now:" : `It is held at version ${pinned} now. Roll back to that:`,
            ...(pinned === null ? [{ method: "POST", path: route(loop, "policies", name, "activate") }, { method: "PUT", path: route(loop, "traffic"), body: found().traffic }] : [back(pinned)])],
          call: back(Number(version.value)),
        };
      },
    };
  },

  release({ loop, policy, found }) {
    const { name } = policy();
    const steps = h("input", { id: "steps", value: STEPS, required: true, autocomplete: "off", inputmode: "decimal" });
    const drop = h("input", { id: "drop", value: "0.02", required: true, autocomplete: "off", inputmode: "decimal" });
    const shares = () => steps.value.split(/[\s,;]+/).filter(Boolean).map(read);
    return {
      title: `Release ${name} step by step`, verb: "Begin the release", done: () => ["Begun. The page of the policies follows it."],
      fields: [field("Steps", steps, "shares of the users, rising, from 0 to 1"), field("Drop in reward", drop, "a step goes on when a larger drop of a decision's mean reward is excluded")],
      plan: () => ({
        says: [`${percent(Number(shares()[0]))} of the users are served by ${name} at once. Then it goes on by itself, and back by itself when it does harm.`, behind(policy()),
          `The others stay with what serves now (${split(found().traffic)}).`],
        back: ["Cancel it; the traffic is as it is now:", { method: "DELETE", path: route(loop, "policies", name, "release") }],
        call: { method: "POST", path: route(loop, "policies", name, "release"), body: { steps: shares(), guard: { reward_drop: read(drop.value) } } },
      }),
    };
  },

  cancel: ({ loop, policy }) => ({
    title: `Cancel the release of ${policy().name}`, verb: "Cancel the release", done: (release) => [`The release is ${release.state}. Traffic: ${split(release.before)}.`],
    plan: () => {
      const { name, release } = policy();
      return {
        says: [release?.state === "running" ? `Now at step ${release.step} of ${release.steps.length}, ${percent(release.share)}. Its users go back to what served before it began.` : "No release of it runs: nothing changes."],
        back: ["Begin a release anew. It starts at its first step:", { method: "POST", path: route(loop, "policies", name, "release"), body: release ? { steps: release.steps } : {} }],
        call: { method: "DELETE", path: route(loop, "policies", name, "release") },
      };
    },
  }),

  delete: ({ loop, policy }) => ({
    title: `Delete ${policy().name}`, verb: "Delete", done: () => ["Done: it is deleted."],
    plan: () => {
      const one = policy();
      return {
        says: [`${one.name} is deleted with all it has learned and all its versions. ${one.share ? `It serves ${percent(one.share)} of the users now, so this will be refused.` : "It serves nobody now."}`],
        back: ["There is none for its versions. Made anew, it learns the retained log:", { method: "POST", path: route(loop, "policies"), body: { name: one.name, kind: one.kind, params: one.params } }],
        call: { method: "DELETE", path: route(loop, "policies", one.name) },
      };
    },
  }),
};

// ---- parameters: as JSON, for there are numbers, lists and null

function parameter(key, { default: fallback, enum: values, type }) {
  const id = `param-${key}`;
  if (values || type === "boolean") return choice(id, (values ?? [true, false]).map(String), String(fallback));
  return h("input", { id, value: text(fallback), autocomplete: "off", spellcheck: "false" });
}

function read(value) {
  try {
    return JSON.parse(value);
  } catch {
    return value;
  }
}
