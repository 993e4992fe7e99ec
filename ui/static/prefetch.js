// The next faces, leased and decoded before they are asked for.

import { ApiError, get, post, serverNow } from "./api.js";

const AHEAD = 5;
const FINE_SIDE = 768;
const MOST_IDS = 80; // what fits into a query; what comes all the same is left out below
const STORAGE = "annotator.shelf";
const SLOWEST_MS = 10000;

// Browsers enlarge images bilinearly, which turns a 48 px face into a lattice. This is the same face, enlarged once with
// the browser's best filter, to be laid over the plain image. Null when the face is large enough as it is.
export async function refine(image) {
  const { naturalWidth: width, naturalHeight: height } = image;
  const scale = Math.min(8, FINE_SIDE / Math.max(width, height));
  if (scale < 2) return null;
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.className = "desk-fine";
  canvas.setAttribute("aria-hidden", "true");
  try {
    const options = { resizeWidth: canvas.width, resizeHeight: canvas.height, resizeQuality: "high" };
    const bitmap = await createImageBitmap(image, options);
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    bitmap.close();
  } catch {
    return null; // an older browser: the plain image is good enough
  }
  return canvas;
}

// Enlarging takes ten milliseconds of the thread that answers keys: not while it is busy.
function whenIdle(work) {
  if (window.requestIdleCallback) requestIdleCallback(() => void work(), { timeout: 500 });
  else setTimeout(() => void work(), 100);
}

// A third of the way to its end: two more tries fit in before the lease is gone.
function renewalTime(until) {
  return serverNow() + Math.max(500, (until - serverNow()) / 3);
}

export async function decode(item) {
  const image = new Image();
  image.src = item.image_url;
  try {
    await image.decode();
  } catch {
    return null;
  }
  return image;
}

export class Shelf extends EventTarget {
  #faces = []; // {item, image, until}
  #broken = new Set(); // image ids that would not decode: not to be offered again
  #coming = new Set(); // image ids that are being loaded
  #asking = false;
  #timer = 0;
  #failures = 0;
  #holding; // () => image ids that must not come again
  #fresh; // () => whether expired leases are worth dropping (not while offline)
  message = "";
  queue = null;
  problem = null; // the last ApiError of `next`, or null

  constructor({ holding, fresh }) {
    super();
    this.#holding = holding;
    this.#fresh = fresh;
  }

  get size() {
    return this.#faces.length;
  }

  get busy() {
    return this.#asking || this.#coming.size > 0;
  }

  get faces() {
    return [...this.#faces];
  }

  get items() {
    return this.#faces.map((face) => face.item);
  }

  // The next decoded face, or null. Never waits.
  take() {
    if (this.#fresh()) this.#faces = this.#faces.filter((face) => face.kept || face.until > serverNow());
    const face = this.#faces.shift() ?? null;
    // After the caller has put the face on screen, so that it counts as held. An empty shelf is being filled already.
    if (face) queueMicrotask(() => void this.fill());
    return face;
  }

  // A face comes back to the front: it was on screen when an older one was called back by undo.
  putBack(face) {
    face.kept = true;
    this.#faces.unshift(face);
  }

  drop(imageId) {
    const before = this.#faces.length;
    this.#faces = this.#faces.filter((face) => face.item.image_id !== imageId);
    if (this.#faces.length < before) void this.fill();
  }

  dropExpired() {
    this.#faces = this.#faces.filter((face) => face.until > serverNow());
    void this.fill();
  }

  // After a reload this tab goes on with the faces it had leased. A duplicated tab must not.
  async restore() {
    let items = [];
    try {
      const reloaded = performance.getEntriesByType("navigation")[0]?.type === "reload";
      if (reloaded) items = JSON.parse(sessionStorage.getItem(STORAGE) ?? "[]");
      sessionStorage.removeItem(STORAGE);
    } catch {
      return;
    }
    const held = new Set(this.#holding());
    await this.#shelve(items.filter((item) => Date.parse(item.lease_expires_at) > serverNow() && !held.has(item.image_id)));
  }

  remember(current) {
    try {
      sessionStorage.setItem(STORAGE, JSON.stringify(current ? [current, ...this.items] : this.items));
    } catch {
      // Without session storage a reload brings other faces: nothing is lost.
    }
  }

  async fill() {
    const missing = AHEAD - this.#faces.length - this.#coming.size;
    if (this.#asking || missing <= 0) return;
    this.#asking = true;
    clearTimeout(this.#timer);
    let items = [];
    let wait = 0;
    try {
      const have = [...this.#known()].slice(0, MOST_IDS).join(",");
      const answer = await get("next", { query: { n: missing, have } });
      this.message = answer.message ?? "";
      this.queue = answer.queue ?? null;
      this.problem = null;
      const known = this.#known();
      items = answer.items.filter((item) => !known.has(item.image_id));
      if (!items.length) wait = this.#patience(500);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.problem = error;
      wait = Math.max(error.retryAfter * 1000, this.#patience(300));
    } finally {
      this.#asking = false;
    }
    if (items.length) void this.#shelve(items);
    else this.#timer = setTimeout(() => void this.fill(), wait);
    this.dispatchEvent(new Event("filled"));
  }

  #patience(first) {
    this.#failures += 1;
    return Math.min(SLOWEST_MS, first * 2 ** (this.#failures - 1));
  }

  // Image ids that are here, on their way, on screen, answered and unsent, or known to be broken.
  #known() {
    return new Set([...this.items.map((item) => item.image_id), ...this.#coming, ...this.#holding(), ...this.#broken]);
  }

  async #shelve(items) {
    for (const item of items) this.#coming.add(item.image_id);
    let shelved = 0;
    // All load at once; in order, so that the first is ready as soon as it can be.
    for (const [item, decoded] of items.map((item) => [item, decode(item)])) {
      const image = await decoded;
      this.#coming.delete(item.image_id);
      if (!image) {
        this.#broken.add(item.image_id);
        this.dispatchEvent(new CustomEvent("broken", { detail: item }));
        continue;
      }
      const until = Date.parse(item.lease_expires_at);
      const face = { item, image, fine: null, until, renewAt: renewalTime(until), was: null, kept: false };
      this.#faces.push(face);
      shelved += 1;
      this.dispatchEvent(new Event("ready"));
      whenIdle(async () => (face.fine ??= await refine(image)));
    }
    if (shelved) this.#failures = 0;
    // Pictures that cannot be shown must not turn into a storm of requests.
    this.#timer = setTimeout(() => void this.fill(), shelved ? 0 : this.#patience(500));
    this.dispatchEvent(new Event("filled"));
  }

  // Keeps the leases of these faces alive while a person is there. Resolves to the faces that a colleague has taken over.
  async renew(current) {
    const lost = [];
    const faces = [...(current ? [current] : []), ...this.#faces].filter((face) => face.item.lease_id);
    for (const face of faces) {
      const remaining = face.until - serverNow();
      if (serverNow() < face.renewAt) continue;
      try {
        const answer = await post(`leases/${encodeURIComponent(face.item.lease_id)}/renew`, {}, { timeout: 5000 });
        const until = Date.parse(answer?.lease_expires_at ?? answer?.expires_at ?? "");
        if (!Number.isNaN(until)) face.until = until;
        face.item.lease_expires_at = new Date(face.until).toISOString();
        face.renewAt = renewalTime(face.until);
      } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        if ([403, 404, 409, 410].includes(error.status)) lost.push(face);
        else if (remaining < 0) break;
      }
    }
    return lost;
  }
}
