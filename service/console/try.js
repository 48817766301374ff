// What would it show if? A request that nobody sent: what each policy, shadows included, would do with it, and what moves.

import { field } from "./ask.js";
import { h, rows, show, table } from "./dom.js";
import { Problem, get, post, route } from "./http.js";
import { address, head } from "./tabs.js";
import { NONE, chance, count, figure, percent, tick } from "./words.js";
import { drawn } from "./why.js";

const PAUSE_MS = 400; // after a key, before the service is asked
const MOST_FIELDS = 24;
const MOST_POLICIES = 10;
const BUSY_MS = 2000;
const TRIES = 5;
const MOST_LISTED = 8; // candidates of a policy
const FORMS = new Set(["levels", "number", "boolean"]); // kinds of fields that have one; others are written as JSON

export function tryPage(loop, parameters) {
  const id = parameters.get("decision");
  const form = h("div", { class: "fields" });
  const body = h("textarea", { id: "request", rows: "8", spellcheck: "false", oninput: typed, "aria-describedby": "wrong" });
  const wrong = h("p", { class: "bad", id: "wrong", role: "alert" });
  const keep = h("button", { type: "button", class: "quiet", hidden: true, onclick: compare }, "Compare with this from now on");
  const said = h("p", { role: "status" });
  const answers = h("div");
  const element = h("div", {}, head(loop, "/try"),
    h("p", { class: "hint" }, "Nothing is stored, counted or learned here. Change a field and see what moves."),
    h("section", {}, h("h2", {}, "The request"), form, h("details", {}, h("summary", {}, "The same as JSON"), field("Body of POST /try", body), wrong)),
    h("section", {}, h("h2", {}, "What it would show"), said, keep), answers);
  let request = { loop, context: {} };
  let names = []; // of the policies; each is asked by itself, and drawn when it answers
  let inputs = []; // {path, input, fill}
  let now = null; // what the service answered last
  let base = null; // what that is compared with
  let asked = null;
  let timer = null;
  let number = 0;

  async function refresh() {
    if (asked === null) await begin();
    return asked;
  }

  async function begin() {
    const [{ fields }, { policies }, decision] = await Promise.all([get(`loops/${encodeURIComponent(loop)}/profile`), get(route(loop, "policies")), id ? get(route(loop, "decisions", id)).then((ledger) => ledger.decision, missing) : null]);
    names = [...policies].sort((one, other) => other.share - one.share).map((one) => one.name);
    const known = fields.filter(({ side, kind, path }) => side === "context" && FORMS.has(kind) && !/^@user(\.|$)/.test(path)).slice(0, MOST_FIELDS);
    if (decision) request = ofDecision(loop, decision);
    else for (const one of known) put(request.context, one.path, usual(one));
    inputs = [userInput(), ...known.map(contextInput)];
    show(form, inputs.map(({ input, label, about }) => field(label, input, about)));
    fill();
    write();
    await send();
  }

  function missing(problem) {
    if (!(problem instanceof Problem) || problem.status !== 404) throw problem;
    show(wrong, problem.message);
    return null;
  }

  // ---- the form, and the same as JSON

  function userInput() {
    const input = h("input", { id: "try-user", maxlength: "128", autocomplete: "off", spellcheck: "false", oninput: () => change(() => { if (input.value) request.user_id = input.value; else delete request.user_id; }) });
    return { input, label: "user_id", about: "left out: nobody in particular", fill: () => { input.value = request.user_id ?? ""; } };
  }

  function contextInput(one) {
    const values = levels(one);
    const list = h("datalist", { id: `levels-${one.path}` }, values.map((value) => h("option", { value })));
    const isNumber = one.kind === "number";
    const input = h("input", { id: `try-${one.path}`, type: isNumber ? "number" : "text", step: "any", list: values.length ? list.id : false, autocomplete: "off", spellcheck: "false",
      oninput: () => change(() => put(request.context, one.path, input.value === "" ? undefined : typedAs(one, input.value))) });
    return { input, label: one.path, about: [about(one), list], fill: () => { const value = at(request.context, one.path); input.value = value === undefined || value === null ? "" : typeof value === "object" ? JSON.stringify(value) : String(value); } };
  }

  const fill = () => inputs.forEach((one) => one.fill());
  const write = () => { body.value = JSON.stringify(request, null, 2); };

  function change(apply) {
    apply();
    write();
    later();
  }

  function typed() {
    try {
      const found = JSON.parse(body.value);
      if (found === null || typeof found !== "object" || Array.isArray(found)) throw new SyntaxError("expected an object");
      if (found.context === null || typeof (found.context ?? {}) !== "object" || Array.isArray(found.context)) throw new SyntaxError("context: expected an object");
      request = { ...found, loop, context: found.context ?? {} };
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
      show(wrong, `This is not the JSON of a request: ${error.message}`);
      return;
    }
    show(wrong);
    fill();
    later();
  }

  function later() {
    clearTimeout(timer);
    timer = setTimeout(send, PAUSE_MS);
  }

  // ---- asked and answered

  async function send() {
    const mine = ++number;
    const found = { serves: null, policies: [] };
    show(said, "Asked …");
    try {
      for (const policies of wanted()) {
        const one = await patiently(() => post("try", { ...request, ...policies }));
        if (mine !== number) return;
        found.serves = one.serves;
        found.policies.push(...one.policies);
        now = found;
        draw();
      }
      base ??= found;
      asked = Date.now() / 1000;
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      if (problem.status === 401 || problem.status === 403) throw problem;
      if (mine !== number) return;
      asked ??= Date.now() / 1000;
      show(said, h("span", { class: "bad" }, `${problem.title}: ${problem.message}`));
    }
  }

  const wanted = () => {
    const one = request.policies ?? (names.length ? names.slice(0, MOST_POLICIES) : null);
    return Array.isArray(one) && one.length ? one.map((name) => ({ policies: [name] })) : [{}];
  };

  // A worker makes one explanation at a time: when others had theirs made, ask again.
  async function patiently(ask) {
    for (let again = 0; ; again++) {
      try {
        return await ask();
      } catch (problem) {
        if (!(problem instanceof Problem) || problem.status !== 503 || again === TRIES) throw problem;
        await new Promise((done) => setTimeout(done, BUSY_MS));
      }
    }
  }

  function compare() {
    base = now;
    draw();
  }

  function draw() {
    if (!now) return;
    const open = new Set([...answers.querySelectorAll("details[open]")].map((one) => one.dataset.policy));
    const serving = now.policies.find((one) => one.policy === now.serves);
    const likeliest = serving?.explanation.candidates[0];
    show(said, likeliest ? `${now.serves} would serve this request, and most likely show ${likeliest.id} (${chance(likeliest.propensity)}).` : `${now.serves} would serve this request.`);
    keep.hidden = base === null || now === base;
    const was = (one) => base?.policies.find((other) => other.policy === one.policy);
    show(answers, now.policies.map((one) => ofPolicy(one, was(one), one.policy === now.serves, open)));
  }

  return { title: `Try ${loop}`, element, refresh };
}

function ofPolicy(one, before, serves, open) {
  const { explanation: why } = one;
  const badge = h("span", { class: `badge ${one.share ? "good" : "idle"}` }, serves ? "Would serve it" : one.share ? `Serves ${percent(one.share)}` : "Shadow");
  const title = h("h2", {}, one.policy, " ", badge, h("small", {}, ` version ${one.version}`));
  if (why.refusal) return h("section", {}, title, drawn(why));
  const was = new Map(before?.explanation.candidates.map((candidate) => [candidate.id, candidate]) ?? []);
  const list = table(`What ${one.policy} would show`, ["Item", "Chance", why.scale === "logit" ? "Expected reward" : "Score", "±"]);
  rows(list.body, why.candidates.slice(0, MOST_LISTED).map((candidate) => [
    candidate.id,
    moved(candidate, was.get(candidate.id), (found) => chance(found.propensity)),
    moved(candidate, was.get(candidate.id), (found) => figure(found.expected)),
    candidate.sd === null ? NONE : figure(candidate.sd)]));
  const details = h("details", { open: serves ? !open.size || open.has(one.policy) : open.has(one.policy) }, h("summary", {}, "Why"), drawn(why));
  details.dataset.policy = one.policy;
  return h("section", {}, title, list.whole, why.n > MOST_LISTED ? h("p", { class: "hint" }, `${count(why.n)} candidates; the likeliest are listed.`) : null, details);
}

function moved(candidate, before, read) {
  const [said, was] = [read(candidate), before ? read(before) : null];
  return was === null || was === said ? said : [h("b", {}, said), h("small", {}, `was ${was}`)];
}

// ---- the fields of a request

function ofDecision(loop, { user_id: user, context, candidates }) {
  const { "@user": state, ...own } = context; // what the service knows of the user, it adds by itself
  const named = candidates?.map(([id, features]) => (features ? { id, features } : id));
  return { loop, ...(user === null ? {} : { user_id: user }), context: own, ...(named ? { candidates: named } : {}) };
}

const levels = ({ kind, levels: seen }) => (kind === "boolean" ? ["true", "false"] : kind === "levels" ? Object.keys(seen).slice(0, 50) : []);

// The value that a field has most often, or in the middle.
const usual = (one) => (one.kind === "number" ? middle(one) : typedAs(one, Object.keys(one.levels)[0]));

function middle({ quantiles, types }) {
  const value = quantiles["0.5"];
  return value === undefined ? undefined : types.number ? Number(value.toPrecision(3)) : Math.round(value);
}

function typedAs({ kind, types }, value) {
  if (value === undefined) return undefined;
  if (kind === "boolean") return value === "true" ? true : value === "false" ? false : value;
  return !types.text && (types.integer || types.number) && Number.isFinite(Number(value)) ? Number(value) : value;
}

function about({ kind, quantiles, levels: seen }) {
  if (kind !== "number") return `seen: ${Object.keys(seen).slice(0, 6).join(", ")}`;
  return quantiles["0.02"] === undefined ? "a number" : `mostly ${tick(quantiles["0.02"])} to ${tick(quantiles["0.98"])}`;
}

// The value at a path such as user.age; a name may hold dots itself.
function at(context, path) {
  if (Object.hasOwn(context, path)) return context[path];
  return path.split(".").reduce((found, name) => (found !== null && typeof found === "object" && Object.hasOwn(found, name) ? found[name] : undefined), context);
}

function put(context, path, value) {
  const names = Object.hasOwn(context, path) ? [path] : path.split(".");
  let inside = context;
  for (const name of names.slice(0, -1)) {
    if (!Object.hasOwn(inside, name) || inside[name] === null || typeof inside[name] !== "object") Object.defineProperty(inside, name, { value: {}, writable: true, enumerable: true, configurable: true });
    inside = inside[name];
  }
  if (value === undefined) delete inside[names.at(-1)];
  else Object.defineProperty(inside, names.at(-1), { value, writable: true, enumerable: true, configurable: true }); // also __proto__
}
