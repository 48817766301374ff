// The head of each page of a loop: its name, and the way to its other pages.

import { h } from "./dom.js";

const PAGES = [["", "Over time"], ["/policies", "Policies"], ["/decisions", "Decisions"], ["/try", "Try it"], ["/experiments", "Experiments"]];

// The address of a page of a loop. What is left undefined in the query is left out.
export function address(loop, page, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
  return `#/loops/${encodeURIComponent(loop)}${page}${given.length ? `?${new URLSearchParams(given)}` : ""}`;
}

export const head = (loop, page, badge = null) => [
  h("h1", {}, loop, badge ? " " : null, badge),
  h("nav", { class: "tabs", "aria-label": "Pages of the loop" }, PAGES.map(([end, text]) =>
    h("a", { href: address(loop, end), "aria-current": end === page ? "page" : false }, text)))];
