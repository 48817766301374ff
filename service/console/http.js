// Calls the public routes. The key stays in this tab, and goes with each call in the usual header.

const KEY = "rebound-key";
const READ_MS = 10000;
const CHANGE_MS = 30000; // a change answers when every worker serves it, or after 10 s

export class Problem extends Error {
  // fields: [{field, message}] that are wrong
  constructor(status, title, detail, fields = []) {
    super(detail);
    this.status = status;
    this.title = title;
    this.fields = fields;
  }
}

export const keep = (key) => sessionStorage.setItem(KEY, key);
export const forget = () => sessionStorage.removeItem(KEY);
export const hasKey = () => sessionStorage.getItem(KEY) !== null;

// call: {method, path, body}; without a body nothing is sent
export async function send({ method, path, body }, patience = CHANGE_MS) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  if (hasKey()) headers["X-API-Key"] = sessionStorage.getItem(KEY);
  let reply;
  try {
    reply = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store", signal: AbortSignal.timeout(patience) });
  } catch {
    throw new Problem(0, "No answer", "The service does not answer. Is `rebound serve` running, and reachable from here?");
  }
  const found = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new Problem(reply.status, found.title ?? "Refused", found.detail ?? `The service answered ${reply.status}.`, found.errors ?? []);
  return found;
}

export const get = (path) => send({ method: "GET", path }, READ_MS);

export const post = (path, body) => send({ method: "POST", path, body });

// A path of a loop's route, from parts that may hold anything.
export const route = (loop, ...parts) => `${parts.map(encodeURIComponent).join("/")}?loop=${encodeURIComponent(loop)}`;

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// The same call for a shell. The key is not told: the shell takes it from its variable.
export function curl({ method, path, body }) {
  const words = ["curl", "-X", method, quoted(new URL(path, document.baseURI).href)];
  if (hasKey()) words.push("-H", '"X-API-Key: $REBOUND_KEY"');
  if (body !== undefined) words.push("-H", "'content-type: application/json'", "-d", quoted(JSON.stringify(body)));
  return words.join(" ");
}
