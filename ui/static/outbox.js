// Answers that the server has not confirmed yet. Each is one localStorage item, written before the next face is shown,
// removed only after the server has said that it is stored; client_id makes sending twice harmless, so tabs need no lock.

import { ApiError, post, uuid } from "./api.js";

const PREFIX = "annotator.outbox.";
const REFUSED = "annotator.refused.";
// Another tab's answer that is older than this has probably lost its tab: this one sends it. Sent twice it still counts once.
const ADOPT_AFTER_MS = 15000;
const ADOPT_AT_START_MS = 2000;
const SLOWEST_MS = 15000;
// The server understood and will never take it. Everything else is tried again.
const FINAL = new Set([400, 404, 409, 410, 413, 422]);

function tabId() {
  let id = sessionStorage.getItem("annotator.tab");
  if (!id) {
    id = uuid();
    sessionStorage.setItem("annotator.tab", id);
  }
  return id;
}

export class Outbox extends EventTarget {
  #owner;
  #tab = tabId();
  #entries = new Map();
  #ids = new Map(); // client_id -> annotation id, for undo
  #sending = false;
  #failures = 0;
  #timer = 0;
  #number = 0;
  state = "idle"; // idle | sending | waiting | signin
  detail = "";
  durable = true;

  constructor(owner) {
    super();
    this.#owner = owner;
    this.#load(ADOPT_AT_START_MS);
    addEventListener("storage", (event) => this.#onStorage(event));
    addEventListener("online", () => this.kick());
    setInterval(() => {
      this.#load();
      this.kick();
    }, 5000);
  }

  get size() {
    return this.#entries.size;
  }

  get imageIds() {
    return [...this.#entries.values()].map((e) => e.body.image_id).filter(Boolean);
  }

  get oldestAge() {
    const times = [...this.#entries.values()].map((e) => e.at);
    return times.length ? Date.now() - Math.min(...times) : 0;
  }

  get refused() {
    const prefix = REFUSED + this.#owner + ".";
    return this.#keys(prefix).map((key) => JSON.parse(localStorage.getItem(key)));
  }

  dismissRefused() {
    for (const key of this.#keys(REFUSED + this.#owner + ".")) localStorage.removeItem(key);
    this.#changed();
  }

  // `after`: the client_id of an undo, still on its way perhaps, that leases this face anew.
  answer(body, after = null) {
    this.#add({ path: "annotations", after, body });
  }

  // Takes back an answer by its client_id (it may still be on its way) or its annotation id. Returns its own client_id.
  undo({ clientId, annotationId }) {
    const body = { client_id: uuid(), annotation_id: annotationId ?? null };
    this.#add({ path: "undo", of: clientId, body });
    return body.client_id;
  }

  kick() {
    clearTimeout(this.#timer);
    void this.#run();
  }

  #keys(prefix) {
    try {
      return Object.keys(localStorage).filter((key) => key.startsWith(prefix));
    } catch {
      return [];
    }
  }

  #key(entry) {
    return `${PREFIX}${this.#owner}.${entry.body.client_id}`;
  }

  #add(part) {
    const entry = { ...part, at: Date.now(), number: this.#number++, tab: this.#tab };
    this.#entries.set(entry.body.client_id, entry);
    this.#keep(entry);
    this.#changed();
    this.kick();
  }

  #keep(entry) {
    try {
      localStorage.setItem(this.#key(entry), JSON.stringify(entry));
    } catch {
      this.durable = false; // storage full or forbidden: memory only, and the page says so
    }
  }

  #read(key) {
    try {
      return JSON.parse(localStorage.getItem(key));
    } catch {
      return null;
    }
  }

  #load(adoptAfter = ADOPT_AFTER_MS) {
    for (const key of this.#keys(PREFIX + this.#owner + ".")) {
      const entry = this.#read(key);
      if (!entry?.body?.client_id || this.#entries.has(entry.body.client_id)) continue;
      if (entry.tab === this.#tab || Date.now() - entry.at > adoptAfter) {
        this.#entries.set(entry.body.client_id, entry);
        this.#number = Math.max(this.#number, entry.number + 1);
      }
    }
    this.#changed();
  }

  #onStorage(event) {
    if (event.key === null) {
      for (const entry of this.#entries.values()) this.#keep(entry); // someone cleared the storage: ours stay
    } else if (event.newValue === null && event.key.startsWith(PREFIX + this.#owner + ".")) {
      this.#entries.delete(event.key.slice((PREFIX + this.#owner + ".").length)); // another tab has delivered it
      this.#changed();
    }
  }

  #first() {
    return [...this.#entries.values()].sort((a, b) => a.at - b.at || a.number - b.number)[0];
  }

  async #run() {
    if (this.#sending) return;
    this.#sending = true;
    try {
      for (let entry = this.#first(); entry; entry = this.#first()) {
        if (!(await this.#deliver(entry))) return;
      }
      this.state = "idle";
    } finally {
      this.#sending = false;
      this.#changed();
    }
  }

  async #deliver(entry) {
    if (entry.path === "undo" && entry.body.annotation_id === null) {
      const id = this.#ids.get(entry.of) ?? this.#read(this.#key(entry))?.body.annotation_id;
      if (id == null) {
        this.#drop(entry); // the answer it undoes was refused: there is nothing to take back
        return true;
      }
      entry.body.annotation_id = id;
    }
    try {
      const stored = await post(entry.path, entry.body, { keepalive: true });
      this.#stored(entry, stored);
      return true;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (FINAL.has(error.status)) {
        this.#refuse(entry, error);
        return true;
      }
      this.#later(error);
      return false;
    }
  }

  #stored(entry, stored) {
    this.#failures = 0;
    this.detail = "";
    this.state = "sending";
    const id = stored?.annotation_id ?? stored?.id;
    this.#ids.set(entry.body.client_id, id);
    // What waits for this must survive a reload, which forgets #ids.
    for (const other of this.#entries.values()) {
      if (other.of === entry.body.client_id && other.body.annotation_id === null) other.body.annotation_id = id;
      else if (other.after === entry.body.client_id && stored?.lease_id) other.body.lease_id = stored.lease_id;
      else continue;
      this.#keep(other);
    }
    this.#drop(entry);
    this.dispatchEvent(new CustomEvent("stored", { detail: { entry, stored } }));
  }

  #refuse(entry, error) {
    try {
      const kept = { ...entry, status: error.status, detail: error.message };
      localStorage.setItem(`${REFUSED}${this.#owner}.${entry.body.client_id}`, JSON.stringify(kept));
    } catch {
      this.durable = false;
    }
    this.#drop(entry);
    this.dispatchEvent(new CustomEvent("refused", { detail: { entry, error } }));
  }

  #drop(entry) {
    this.#entries.delete(entry.body.client_id);
    try {
      localStorage.removeItem(this.#key(entry));
    } catch {
      this.durable = false;
    }
    this.#changed();
  }

  #later(error) {
    this.#failures += 1;
    this.detail = error.message;
    this.state = error.status === 401 ? "signin" : "waiting";
    const backoff = Math.min(SLOWEST_MS, 400 * 2 ** Math.min(this.#failures, 8)) * (0.75 + Math.random() / 2);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.kick(), Math.max(backoff, error.retryAfter * 1000));
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
