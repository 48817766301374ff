// Calls the public routes. The key stays in this tab, and goes with each call in the usual header.

const KEY = "rebound-key";

export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export const keep = (key) => sessionStorage.setItem(KEY, key);
export const forget = () => sessionStorage.removeItem(KEY);
export const hasKey = () => sessionStorage.getItem(KEY) !== null;

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (hasKey()) headers["X-API-Key"] = sessionStorage.getItem(KEY);
  let reply;
  try {
    reply = await fetch(path, { ...options, headers, cache: "no-store", signal: AbortSignal.timeout(10000) });
  } catch {
    throw new Problem(0, "The service does not answer. Is `rebound serve` running, and reachable from here?");
  }
  const body = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new Problem(reply.status, body.detail ?? `The service answered ${reply.status}.`);
  return body;
}

export const get = (path) => call(path);

export const post = (path, body) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
