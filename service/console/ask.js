// A form that changes something: it says what will happen, the way back, and the same call for a shell, before it is sent.

import { h, show } from "./dom.js";
import { Problem, curl, send } from "./http.js";

// fields: elements between the heading and what is said
// plan(): {says: [sentence], back: [sentence or call], call: {method, path, body}}, of what the fields hold now
// done(reply): what came of it, as sentences
export function ask({ title, verb, fields = [], plan, done, leave }) {
  const says = h("ul", { class: "plain" });
  const back = h("ul", { class: "plain" });
  const line = h("pre", { tabindex: "0", "aria-label": "The same call for a shell" });
  const said = h("div", { role: "alert" });
  const button = h("button", {}, verb);
  const leaving = h("a", { href: leave }, "Back, change nothing");
  const form = h("form", { class: "ask", oninput: update, onsubmit: submit },
    h("h2", {}, title), fields,
    h("h3", {}, "What happens"), says,
    h("h3", {}, "The way back"), back,
    h("h3", {}, "The same call"), line,
    h("p", { class: "answers" }, button, leaving), said);
  const element = h("section", {}, form);
  update();

  function update() {
    const found = plan();
    show(says, found.says.map((sentence) => h("li", {}, sentence)));
    show(back, found.back.map((one) => h("li", {}, one.method ? h("code", {}, curl(one)) : one)));
    const text = curl(found.call);
    if (line.textContent !== text) line.textContent = text;
  }

  async function submit(event) {
    event.preventDefault();
    button.disabled = true;
    show(said, "Sent …");
    try {
      const sentences = done(await send(plan().call));
      show(element, h("h2", {}, title), h("div", { role: "status" }, sentences.map((sentence) => h("p", {}, sentence))), h("p", {}, h("a", { href: leave }, "Back")));
      element.querySelector("a").focus();
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      const fields = problem.fields.map(({ field, message }) => h("li", {}, h("b", {}, field), `: ${message}`));
      show(said, h("div", { class: "refusal" }, h("b", {}, `${problem.title}${problem.status ? ` (${problem.status})` : ""}`), h("p", {}, problem.message), h("ul", {}, fields)));
      button.disabled = false;
    }
  }

  return { element, update };
}

// What a change of the traffic answers.
export function adopted({ adopted: all, workers, missing }) {
  return all ? [`Done: ${workers === 1 ? "the worker that is alive serves" : `all ${workers} live workers serve`} it.`] :
    [`Stored, but not every worker serves it yet. Missing: ${missing.join(", ")}.`];
}

// A field of a form, with its label and a line about it.
export const field = (label, input, about = null) => h("label", { class: "field" }, label, input, about && h("small", {}, about));

export const choice = (id, values, chosen) => h("select", { id }, values.map((value) => h("option", { value, selected: value === chosen }, value)));
