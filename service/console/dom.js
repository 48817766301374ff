// Makes elements. Text is only ever set as text: no name, id or note can become markup.

import { NONE, figure } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

export const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

export function show(element, ...children) {
  element.replaceChildren(...children.flat().filter((child) => child !== null && child !== undefined));
}

// Rewrites a table's body; its head, and whether it is open, stay.
export function rows(body, found) {
  show(body, found.map((cells) => h("tr", {}, cells.map((cell, at) => h(at ? "td" : "th", at ? {} : { scope: "row" }, cell)))));
}

export function table(caption, heads) {
  const body = h("tbody");
  const head = h("thead", {}, h("tr", {}, heads.map((name) => h("th", { scope: "col" }, name))));
  const whole = h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("caption", { class: "hidden" }, caption), head, body));
  return { whole, body };
}

// A figure, with its interval on a line of its own.
export const spread = (found) =>
  found ? [figure(found.estimate), h("small", {}, `${figure(found.low)} to ${figure(found.high)}`)] : NONE;

export const terms = (list, pairs) => show(list, pairs.map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))));
