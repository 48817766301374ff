// Numbers and times as people read them.

const whole = new Intl.NumberFormat(undefined, { maximumFractionDigits: 0 });
const exact = new Intl.NumberFormat(undefined, { maximumSignificantDigits: 6 });
const short = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });
const precise = new Intl.NumberFormat(undefined, { maximumSignificantDigits: 3 });
const places = [0, 1, 2, 3, 4].map((n) => new Intl.NumberFormat(undefined, { maximumFractionDigits: n, minimumFractionDigits: n }));
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const minute = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });

export const NONE = "–";

export const count = (n) => whole.format(n);

export function figure(x) {
  if (x === null || x === undefined) return NONE;
  const size = Math.abs(x);
  if (size === 0) return "0";
  return places[size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : 3].format(x);
}

// On an axis.
export const tick = (x) => exact.format(x);

export const percent = (share) => `${short.format(100 * share)} %`;

// A probability, however small.
export const chance = (p) => `${precise.format(100 * p)} %`;

// A value of a request: text as it is, all else as JSON.
export const text = (value) => (typeof value === "string" ? value : JSON.stringify(value));

export const interval = (found) =>
  found ? `${figure(found.estimate)} (${figure(found.low)} to ${figure(found.high)})` : NONE;

export function bytes(n) {
  const [unit, size] = n < 1e3 ? ["B", 1] : n < 1e6 ? ["kB", 1e3] : ["MB", 1e6];
  return `${short.format(n / size)} ${unit}`;
}

export const at = (seconds) => clock.format(new Date(seconds * 1000));

export const moment = (seconds) => `${day.format(new Date(seconds * 1000))} ${at(seconds)}`;

// A time on an axis, or in a list, of a span of so many seconds.
export function when(seconds, span) {
  const date = new Date(seconds * 1000);
  if (span <= 900) return clock.format(date);
  if (span <= 2 * 86400) return minute.format(date);
  return span <= 14 * 86400 ? `${day.format(date)} ${minute.format(date)}` : day.format(date);
}

export function lasting(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const [unit, size] = units.find(([, size]) => seconds >= size) ?? units.at(-1);
  return `${size === 1 ? whole.format(seconds) : short.format(seconds / size)} ${unit}`;
}

export function zone() {
  const offset = -new Date().getTimezoneOffset();
  const hours = `${offset < 0 ? "−" : "+"}${String(Math.floor(Math.abs(offset) / 60)).padStart(2, "0")}:${String(Math.abs(offset) % 60).padStart(2, "0")}`;
  return `${Intl.DateTimeFormat().resolvedOptions().timeZone} (UTC${hours})`;
}

// A cell of a file for spreadsheets, which take what begins with = + - @ for a formula.
function cell(value) {
  const text = String(value ?? "");
  const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

export const csv = (lines) => lines.map((line) => line.map(cell).join(",") + "\r\n").join("");
