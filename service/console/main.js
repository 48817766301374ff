// Finds the page that the address names, and refreshes it every two seconds while somebody looks.

import { decisionsPage } from "./decisions.js";
import { h, show } from "./dom.js";
import { experimentsPage } from "./experiments.js";
import { Problem, forget, hasKey, keep } from "./http.js";
import { loopPage } from "./loop.js";
import { overview } from "./overview.js";
import { policiesPage } from "./policies.js";
import { tryPage } from "./try.js";
import { at, zone } from "./words.js";

const EVERY_MS = 2000;
const PAGES = { "": loopPage, "/decisions": decisionsPage, "/policies": policiesPage, "/try": tryPage, "/experiments": experimentsPage };
const main = document.getElementById("main");
const age = document.getElementById("age");
let page = null;
let timer = null;
let busy = false;
let known = null; // when the figures on the page were true, in seconds

function route() {
  const [path, query] = location.hash.slice(1).split("?");
  const [, loop, end] = /^\/loops\/([^/]+)(\/\w+)?$/.exec(path) ?? [];
  const made = loop && PAGES[end ?? ""];
  page = made ? made(decodeURIComponent(loop), new URLSearchParams(query)) : overview();
  known = null;
  document.title = `${page.title} – Rebound console`;
  show(main, page.element);
  refresh();
}

async function refresh() {
  clearTimeout(timer);
  if (busy || document.hidden) return;
  const shown = page;
  busy = true;
  try {
    const now = await shown.refresh();
    if (shown === page) {
      known = now;
      say("", `As of ${at(now)}`);
    }
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (shown === page) tell(error);
  } finally {
    busy = false;
    timer = setTimeout(refresh, shown === page ? EVERY_MS : 0);
  }
}

function say(level, text) {
  age.className = level;
  if (age.textContent !== text) age.textContent = text;
}

function tell(problem) {
  if (problem.status === 401 || problem.status === 403) {
    page = signIn(problem);
    show(main, page.element);
    say("", "");
    return;
  }
  say("bad", known === null ? problem.message : `Not known since ${at(known)}: ${problem.message}`);
}

function signIn(problem) {
  const field = h("input", { type: "password", id: "key", autocomplete: "off", required: true });
  const said = problem.status === 403 ? "This key is not an administrator's." : hasKey() ? "The service does not know this key." : "";
  const form = h("form", { class: "sign-in", onsubmit: (event) => {
    event.preventDefault();
    keep(field.value);
    route();
  } },
    h("h1", {}, "Sign in"),
    h("p", {}, "The console shows what an administrator's key may read. The key stays in this tab until you close it."),
    h("label", { for: "key" }, "Key"), field,
    h("p", { class: "bad", role: "alert" }, said),
    h("button", {}, "Sign in"));
  forget();
  return { title: "Sign in", element: form, refresh: () => new Promise(() => {}) };
}

document.getElementById("zone").textContent = `Times in ${zone()}. Intervals are of 95 %.`;
window.addEventListener("hashchange", route);
document.addEventListener("visibilitychange", refresh);
route();
