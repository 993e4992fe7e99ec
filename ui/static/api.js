// The REST routes as promises. Every failure is an ApiError; status 0 means that the server was not reached.

const BASE = "/api/v1/";

export class ApiError extends Error {
  constructor(status, detail, retryAfter = 0) {
    super(detail);
    this.name = "ApiError";
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

// Difference of the server's clock to ours in milliseconds, from the Date header: lease times are the server's.
let skew = 0;

export function serverNow() {
  return Date.now() + skew;
}

function noteClock(response) {
  const date = Date.parse(response.headers.get("date") ?? "");
  if (Number.isNaN(date)) return;
  const difference = date - Date.now();
  // The header has whole seconds: believe our own clock unless it is clearly off.
  skew = Math.abs(difference) > 2000 ? difference : 0;
}

function wordsOf(body, status) {
  const detail = body?.detail;
  if (typeof detail === "string") return detail;
  if (Array.isArray(detail)) return detail.map((d) => d?.msg ?? String(d)).join("; ");
  return `the server answered ${status}`;
}

export async function call(method, path, { body, query, timeout = 10000, signal, keepalive = false } = {}) {
  const url = new URL(BASE + path, location.origin);
  for (const [key, value] of Object.entries(query ?? {})) {
    if (value != null) url.searchParams.set(key, value);
  }
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), timeout);
  const forward = () => stop.abort();
  signal?.addEventListener("abort", forward, { once: true });
  try {
    const response = await fetch(url, {
      method,
      keepalive,
      credentials: "same-origin",
      cache: "no-store",
      signal: stop.signal,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    noteClock(response);
    const text = await response.text();
    let parsed = null;
    try {
      parsed = text ? JSON.parse(text) : null;
    } catch {
      // A proxy's error page: the status says enough.
    }
    if (!response.ok) {
      throw new ApiError(response.status, wordsOf(parsed, response.status), Number(response.headers.get("retry-after")) || 0);
    }
    return parsed;
  } catch (error) {
    if (error instanceof ApiError) throw error;
    throw new ApiError(0, "the server cannot be reached");
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", forward);
  }
}

export const get = (path, options) => call("GET", path, options);
export const post = (path, body, options) => call("POST", path, { body, ...options });

export function uuid() {
  if (crypto.randomUUID) return crypto.randomUUID();
  // Plain http on a lab's network is no secure context: the same thing by hand.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((b) => b.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
