// The desk: one face, one question, one key.
//
// A key answers the face that is on screen, never one that is still to come. A face counts as seen once it has been
// painted for SEEN_MS. A key pressed earlier (typed ahead, or into a blank) is held, shown as held, and used once the face
// has been seen; Backspace, Z or Escape takes held keys back first. A held key older than STALE_MS is dropped aloud.

import { ApiError, get, uuid } from "./api.js";
import { buildBar } from "./bar.js";
import { Keymap, listen } from "./keys.js";
import { Outbox } from "./outbox.js";
import { Presence } from "./presence.js";
import { Shelf, decode, refine } from "./prefetch.js";
import { Status } from "./status.js";
import { View } from "./view.js";
import { answered, question } from "./words.js";

const SEEN_MS = 50;
const STALE_MS = 1500;
const NEIGHBOURS_AFTER_MS = 350;
const UNDO_DEPTH = 50;
const PATIENCE_MS = 300; // the last face stays this long while the next one is on its way

function afterPaint(callback) {
  requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => callback(performance.now());
    channel.port2.postMessage(null);
  });
}

class Desk {
  current = null;
  history = []; // what undo takes back, oldest first
  held = []; // actions typed ahead: {action, at}
  undoing = Promise.resolve();
  returning = 0; // faces on their way back
  chosen = null; // the set of classes while several are being chosen

  constructor(root, me) {
    this.settings = JSON.parse(root.dataset.desk);
    this.me = me;
    this.outbox = new Outbox(me.name);
    this.shelf = new Shelf({
      holding: () => [this.current?.item.image_id, ...this.outbox.imageIds].filter(Boolean),
      fresh: () => this.outbox.state !== "waiting" && !this.shelf.problem,
    });
    this.tabs = new BroadcastChannel("annotator-desk");
    this.attach(root);
    this.status = new Status(this);
    this.#wire();
    void this.#start();
  }

  attach(root) {
    this.root = root;
    this.view = new View(root, this.settings);
    root.addEventListener("click", (event) => this.#onClick(event));
    // A button clicked by mouse must not keep the focus: the next Space would press it again.
    root.addEventListener("pointerdown", (event) => event.target.closest("button") && event.pointerType === "mouse" && event.preventDefault());
    root.addEventListener("mousedown", (event) => event.target.closest("button") && event.preventDefault());
    this.view.flag.addEventListener("submit", (event) => this.#sendFlag(event));
    this.view.note.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Escape") this.view.showFlag(false);
    });
    if (this.current) this.#show(this.current);
  }

  get visible() {
    return this.root.isConnected && this.root.getClientRects().length > 0 && !document.querySelector("dialog[open]");
  }

  #wire() {
    const keymap = new Keymap(this.settings.classes, this.settings.candidate_keys);
    listen(keymap, { active: () => this.visible, onAction: (action, at) => this.#press(action, at) });
    this.shelf.addEventListener("ready", () => this.#fillStage());
    this.shelf.addEventListener("filled", () => this.#fillStage());
    this.shelf.addEventListener("broken", ({ detail }) => this.view.say(`A face could not be shown and was left out (${detail.image_id}).`, false));
    this.outbox.addEventListener("stored", ({ detail }) => this.#onStored(detail));
    this.outbox.addEventListener("change", () => this.status?.showOffline());
    this.tabs.addEventListener("message", ({ data }) => this.#onOtherTab(data));
    this.presence = new Presence(this);
    addEventListener("beforeunload", (event) => {
      // Answers on their way survive a reload in localStorage: ask only when they are stuck.
      const stuck = this.outbox.size > 0 && (this.outbox.state === "waiting" || !this.outbox.durable);
      if (stuck && !this.leaving) event.preventDefault();
    });
  }

  async #start() {
    this.outbox.kick();
    await Promise.all([this.shelf.restore(), this.#loadHistory()]);
    await this.shelf.fill();
    this.root.focus({ preventScroll: true });
  }

  async #loadHistory() {
    try {
      const answer = await get("history", { query: { n: 10 } });
      const rows = Array.isArray(answer) ? answer : answer.items;
      this.history = rows
        .filter((row) => row.kind !== "undo" && !row.undone)
        .reverse()
        .map((row) => ({ annotationId: row.annotation_id ?? row.id, kind: row.kind, classes: row.classes, item: row, face: null }));
      this.status.showDay();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error; // without the past, undo reaches back to this page's first answer
    }
  }

  // ---- what is on screen

  #fillStage() {
    if (this.current) return;
    clearTimeout(this.emptyTimer);
    const face = this.shelf.take();
    if (face) return this.#show(face);
    const { problem, message, busy } = this.shelf;
    if (problem?.status === 401) this.view.showEmpty("Please sign in again to go on.");
    else if (problem) this.view.showEmpty("The server cannot be reached. Your answers are kept; this goes on by itself.");
    else if (!busy) this.view.showEmpty(message || "Nothing to label just now. New faces appear here by themselves.");
    else this.emptyTimer = setTimeout(() => this.view.showEmpty("Fetching the next face."), PATIENCE_MS);
  }

  #show(face) {
    clearTimeout(this.emptyTimer);
    this.current = face;
    face.paintedAt = Infinity;
    face.candidates = face.item.blind ? [] : (face.item.candidates ?? []);
    face.question = question(face, (slug) => this.view.name(slug));
    this.#choose(null);
    this.view.showFace(face);
    afterPaint((now) => {
      if (this.current !== face) return;
      face.paintedAt = now;
      if (!face.fine) void this.#refine(face);
      this.#drain();
      this.shelf.remember(face.item);
      this.status.showDay();
    });
    clearTimeout(this.nearTimer);
    this.nearStop?.abort();
    if (!face.item.blind) this.nearTimer = setTimeout(() => void this.#loadNeighbours(face), NEIGHBOURS_AFTER_MS);
  }

  async #refine(face) {
    const fine = await refine(face.image);
    face.fine ??= fine;
    if (this.current === face) this.view.overlay(face.fine);
  }

  async #loadNeighbours(face) {
    this.nearStop = new AbortController();
    try {
      const answer = await get(`images/${encodeURIComponent(face.item.image_id)}/neighbours`, { signal: this.nearStop.signal });
      const list = Array.isArray(answer) ? answer : (answer.neighbours ?? answer.items ?? []);
      if (this.current === face) this.view.showNeighbours(list.slice(0, 6));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error; // neighbours are a courtesy
    }
  }

  // ---- keys and buttons

  #press(action, at) {
    if (action.name === "help") return this.help?.();
    if (["undo", "cancel"].includes(action.name) && this.held.length) return this.#letGo("taken back");
    if (action.name === "cancel") return this.#choose(null);
    if (action.name === "undo") return this.#undo();
    const seen = this.current && !this.returning && at - this.current.paintedAt >= SEEN_MS;
    if (seen && !this.held.length) return this.#perform(action);
    if (!this.current && !this.shelf.size && this.view.empty.textContent && !this.view.empty.hidden) {
      return this.view.say("There is no face on screen yet: the key was not used.", false);
    }
    this.held.push({ action, at });
    this.#flash(action, "held");
    this.#drain();
  }

  // Uses held keys on the face on screen once it has been seen; those that follow an answer wait for the next face.
  #drain() {
    clearTimeout(this.drainTimer);
    while (this.held.length && this.current && !this.returning) {
      const left = SEEN_MS - (performance.now() - this.current.paintedAt);
      if (left > 0) {
        // Not painted yet: the paint calls again. Timers may fire early by a fraction, so the time is looked at anew.
        if (left < Infinity) this.drainTimer = setTimeout(() => this.#drain(), Math.ceil(left));
        return;
      }
      const { action, at } = this.held.shift();
      if (performance.now() - at > STALE_MS) return this.#letGo("dropped: too long before their face", 1);
      this.#perform(action);
    }
  }

  #letGo(why, more = 0) {
    const count = this.held.length + more;
    this.held = [];
    this.view.say(`${count} ${count === 1 ? "key" : "keys"} typed ahead ${why}.`, false);
  }

  #perform(action) {
    const { candidates, item } = this.current;
    if (action.name === "candidate") {
      const slug = candidates[action.slot]?.class;
      return slug ? this.#class(slug) : this.view.say("No suggestion has that key here.", false);
    }
    if (action.name === "class") return this.#class(action.slug);
    if (action.name === "several") return this.#choose(this.chosen ? null : new Set());
    if (action.name === "confirm") return this.#confirm(item);
    if (action.name === "none") return this.#none(candidates);
    if (action.name === "flag") return this.view.showFlag(true);
    if (action.name === "unusable" || action.name === "skip") return this.#answer(action.name, [], action.name);
  }

  #class(slug) {
    if (!this.chosen) return this.#answer("label", [slug]);
    if (!this.chosen.delete(slug)) this.chosen.add(slug);
    this.view.showSeveral(this.chosen);
  }

  #choose(chosen) {
    if (chosen === null && this.chosen === null) return;
    this.chosen = chosen;
    this.view.showSeveral(chosen);
    this.view.say(chosen ? "Choose all that may be true, then Enter. Esc leaves." : "");
  }

  #confirm(item) {
    if (this.chosen) {
      if (!this.chosen.size) return this.view.say("Choose at least one class, then Enter.", false);
      const classes = this.#ordered(this.chosen);
      return this.#answer(classes.length === 1 ? "label" : "candidates", classes);
    }
    if (item.given) return this.#answer("label", [item.given]);
    this.view.say("Enter confirms several. Press S first.", false);
  }

  #none(candidates) {
    const classes = this.chosen?.size ? this.#ordered(this.chosen) : candidates.map((c) => c.class);
    if (!classes.length) return this.view.say("Nothing is suggested here. Press S, choose what it is not, then N.", false);
    this.#answer("not", classes, "none");
  }

  #ordered(chosen) {
    return this.settings.classes.map((c) => c.slug).filter((slug) => chosen.has(slug));
  }

  #sendFlag(event) {
    event.preventDefault();
    const note = this.view.note.value.trim();
    if (!note) return this.view.note.focus();
    this.view.showFlag(false);
    if (this.current) this.#answer("flag", [], "flag", note);
  }

  #onClick(event) {
    const button = event.target.closest("button");
    if (!button || button.type === "submit") return;
    const { action, slot, class: slug } = button.dataset;
    if (action === "cancel" && !this.view.flag.hidden) return this.view.showFlag(false);
    if (slot !== undefined) this.#press({ name: "candidate", slot: Number(slot) }, event.timeStamp);
    else if (slug !== undefined) this.#press({ name: "class", slug }, event.timeStamp);
    else if (action) this.#press({ name: action }, event.timeStamp);
  }

  #flash(action, kind) {
    const slug = action.slug ?? this.current?.candidates[action.slot]?.class;
    this.view.flash(slug ? [slug] : [], action.name, kind);
  }

  // ---- answers

  #answer(kind, classes, action, note) {
    const face = this.current;
    const body = {
      client_id: uuid(),
      image_id: this.view.image.dataset.imageId, // what is on screen, not what should be
      lease_id: face.item.lease_id ?? null,
      kind,
      classes,
      source: "ui",
      duration_ms: Math.max(0, Math.round(performance.now() - face.paintedAt)),
    };
    if (note) body.note = note;
    this.outbox.answer(body, face.undone); // durable in this browser before the next face appears
    this.history.push({ clientId: body.client_id, annotationId: null, kind, classes, item: face.item, face });
    if (this.history.length > UNDO_DEPTH) this.history.shift();
    this.tabs.postMessage({ owner: this.me.name, image: body.image_id });
    face.fine = null; // large; made anew if undo brings the face back
    this.current = null;
    this.#fillStage();
    this.view.flash(classes, action);
    this.view.confirmLast(answered(kind, classes, (slug) => this.view.name(slug)));
    this.status.count(1);
  }

  #onStored({ entry, stored }) {
    const known = this.history.find((past) => past.clientId === entry.body.client_id);
    if (known) known.annotationId = stored?.annotation_id ?? stored?.id ?? null;
    // The server keeps a taken-back face for its person and says under which lease.
    const face = [this.current, ...this.shelf.faces].find((one) => one?.undone === entry.body.client_id);
    if (entry.path !== "undo" || !stored?.item || !face) return;
    face.item.lease_id = stored.item.lease_id;
    face.until = Date.parse(stored.item.lease_expires_at);
    face.renewAt = 0;
  }

  // One after the other; keys pressed meanwhile are held for the face that comes back.
  #undo() {
    this.view.showFlag(false);
    this.returning += 1;
    this.undoing = this.undoing.then(() => this.#undoOne()).finally(() => {
      this.returning -= 1;
      this.#drain();
    });
  }

  async #undoOne() {
    const past = this.history.pop();
    if (!past) return this.view.say("There is nothing to undo.", false);
    const image = past.face?.image ?? (await decode(past.item));
    if (!image) return this.view.say("That face cannot be shown any more; its answer stays.", false);
    const undone = this.outbox.undo({ clientId: past.clientId, annotationId: past.annotationId });
    if (this.current) this.shelf.putBack(this.current);
    const item = { candidates: [], ...(past.face?.item ?? past.item), lease_id: null };
    this.#show({ item, image, was: { kind: past.kind, classes: past.classes }, undone, until: 0, renewAt: Infinity, kept: true });
    this.view.flash([], "undo");
    this.status.count(-1);
  }

  #onOtherTab({ owner, image }) {
    if (owner !== this.me.name) return;
    this.shelf.drop(image);
    if (this.current?.item.image_id !== image || this.current.was) return;
    this.replace("You answered that face in another tab.");
  }

  // The face on screen is not to be asked any more: show another one and say why.
  replace(why) {
    this.current = null;
    this.#fillStage();
    this.view.say(why, false);
  }
}

let desk = null;
let starting = false;

async function mount(root) {
  if (desk) {
    desk.attach(root);
    return;
  }
  if (starting) return;
  starting = true;
  try {
    const me = await get("me");
    desk = new Desk(root, me);
    buildBar(desk);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 401) location.assign(`/login?next=${encodeURIComponent(location.pathname)}`);
    else setTimeout(() => void mount(root), 1500);
  } finally {
    starting = false;
  }
}

function look() {
  const root = document.getElementById("desk");
  if (root && root !== desk?.root) void mount(root);
}

new MutationObserver(look).observe(document.documentElement, { childList: true, subtree: true });
look();
