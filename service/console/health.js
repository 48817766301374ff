// What /status says about a loop, in sentences; the worst first.

import { count, lasting } from "./words.js";

const RUNGS = {
  learner_down: "No learner is at work. Nothing is lost; start one with `rebound learn`, and it goes on where it stopped.",
  store_down: "Redis does not answer. Recommendations go on from memory. Bring Redis back.",
  store_lost: "Redis answers, but its data is gone. Restore a backup, or restart workers and learner to start from nothing.",
};

export const ofService = (status) => (status.rung in RUNGS ? [{ level: "bad", text: RUNGS[status.rung] }] : []);

export function ofLoop(loop) {
  const found = [];
  if (loop.problem) found.push({ level: "bad", text: `The loop cannot be read: ${loop.problem}` });
  for (const [name, policy] of Object.entries(loop.policies)) {
    if (policy.lag && (policy.snapshot_age_s ?? 10) >= 10) {
      found.push({ level: "bad", text: `${name} is ${count(policy.lag)} events behind, and has published nothing for ${lasting(policy.snapshot_age_s)}. Is a learner at work?` });
    }
    if (policy.set_aside) found.push({ level: "warn", text: `${name} could not learn ${count(policy.set_aside)} events. GET /dead-letters says why.` });
  }
  if (!Object.keys(loop.policies).length) found.push({ level: "warn", text: "There is no policy: choices are random, and nothing is learned. Make one with POST /policies." });
  else if (!loop.decisions) found.push({ level: "idle", text: "No decision yet. Ask POST /recommend." });
  else if (!loop.events) found.push({ level: "idle", text: "No event yet: rewards come by POST /feedback, or with the end of the wait time." });
  for (const notice of loop.notices) {
    found.push({ level: notice.needs_person ? "warn" : "note", text: `${notice.field ?? "The loop"}: ${notice.means} (${count(notice.count)})` });
  }
  const order = ["bad", "warn", "idle", "note"];
  return found.sort((a, b) => order.indexOf(a.level) - order.indexOf(b.level));
}

export function state(loop) {
  const worst = ofLoop(loop)[0]?.level;
  if (worst === "bad") return { level: "bad", text: "Not learning" };
  if (!loop.learning) return { level: worst === "warn" ? "warn" : "idle", text: "Not learning yet" };
  return worst === "warn" ? { level: "warn", text: "Learning, but look" } : { level: "good", text: "Learning" };
}
