// What the desk looks like for a given state. Text from the server is only ever set as textContent.

const PRESSED_MS = 360;
const LAST_MS = 1400;
const LARGEST_SCALE = 8; // a 48 px face at 8 times is soft but readable; beyond that it is mush

export class View {
  constructor(root, settings) {
    this.root = root;
    this.classes = new Map(settings.classes.map((item) => [item.slug, item]));
    this.candidateKeys = settings.candidate_keys;
    const one = (selector) => root.querySelector(selector);
    this.frame = one(".desk-frame");
    this.empty = one(".desk-empty");
    this.question = one(".desk-question");
    this.hint = one(".desk-hint");
    this.reason = one(".desk-reason");
    this.near = one(".desk-near");
    this.quiet = one(".desk-quiet");
    this.last = one(".desk-last");
    this.flag = one(".desk-flag");
    this.note = one("#desk-note");
    this.slots = [...root.querySelectorAll(".desk-candidate")];
    this.choices = new Map([...root.querySelectorAll(".desk-choice")].map((b) => [b.dataset.class, b]));
    this.actions = new Map([...root.querySelectorAll("[data-action]")].map((b) => [b.dataset.action, b]));
    new ResizeObserver(() => this.#fit()).observe(this.frame);
  }

  get image() {
    return this.frame.querySelector("[data-testid=face]");
  }

  name(slug) {
    return this.classes.get(slug)?.name ?? slug;
  }

  // Swap in a decoded face: one element replaces the other, so no frame is ever blank.
  showFace(face) {
    const old = this.image;
    const image = face.image;
    image.className = "desk-face";
    image.dataset.testid = "face";
    image.dataset.imageId = face.item.image_id;
    image.alt = "Face to label";
    image.draggable = false;
    image.hidden = false;
    old.removeAttribute("data-testid");
    if (old !== image) old.replaceWith(image);
    this.overlay(face.fine);
    if (old !== image && old.naturalWidth) this.#slideAway(old);
    this.empty.hidden = true;
    this.#fit();
    this.#showItem(face);
  }

  showEmpty(text) {
    const image = this.image;
    image.hidden = true;
    image.dataset.imageId = "";
    this.overlay(null);
    this.empty.hidden = false;
    this.empty.textContent = text;
    this.question.textContent = "\u00a0";
    this.reason.textContent = "";
    this.showNeighbours([]);
    for (const slot of this.slots) slot.hidden = true;
    this.quiet.hidden = true;
    for (const button of this.choices.values()) this.#mark(button, {});
  }

  // Lays the finely enlarged copy over the face, or takes it away.
  overlay(fine) {
    this.frame.querySelector(".desk-fine")?.remove();
    if (!fine) return;
    this.image.after(fine);
    this.#fit();
  }

  #slideAway(old) {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    old.removeAttribute("data-image-id");
    old.alt = "";
    old.setAttribute("aria-hidden", "true");
    this.frame.querySelectorAll(".desk-face-leaving").forEach((other) => other.remove());
    const ghost = old.cloneNode();
    ghost.className = "desk-face desk-face-leaving";
    this.frame.append(ghost);
    ghost.addEventListener("animationend", () => ghost.remove(), { once: true });
    setTimeout(() => ghost.remove(), 200);
  }

  #fit() {
    const image = this.image;
    const { naturalWidth: width, naturalHeight: height } = image ?? {};
    if (!width || !height) return;
    const room = this.frame.getBoundingClientRect();
    const most = LARGEST_SCALE * Math.sqrt(48 / Math.max(48, Math.min(width, height)));
    const scale = Math.min(room.width / width, room.height / height, Math.max(1.5, most));
    for (const part of [image, this.frame.querySelector(".desk-fine")].filter(Boolean)) {
      part.style.width = `${Math.round(width * scale)}px`;
      part.style.height = `${Math.round(height * scale)}px`;
    }
  }

  #showItem(face) {
    const { item, was } = face;
    this.question.textContent = face.question;
    this.say(item.given && !was ? `Enter keeps ${this.name(item.given).toLowerCase()}.` : "");
    this.reason.textContent = [item.reason, item.model_version ? `model ${item.model_version}` : ""].filter(Boolean).join(" · ");
    this.near.hidden = true;
    const candidates = face.candidates;
    this.slots.forEach((slot, index) => this.#fillSlot(slot, candidates[index], was));
    this.quiet.hidden = candidates.length > 0;
    this.quiet.textContent = item.blind ? "First look: nothing is suggested." : "No suggestion for this face.";
    const suggested = new Set(candidates.map((c) => c.class));
    for (const [slug, button] of this.choices) {
      const tag = item.given === slug ? "label" : was?.classes.includes(slug) ? "you" : "";
      this.#mark(button, { candidate: suggested.has(slug), given: item.given === slug, was: was?.classes.includes(slug), tag });
    }
    for (const name of ["unusable", "skip", "flag", "none"]) {
      this.actions.get(name).classList.toggle("was", was?.kind === name || (name === "none" && was?.kind === "not"));
    }
    this.actions.get("none").classList.toggle("idle", candidates.length === 0);
  }

  #fillSlot(slot, candidate, was) {
    slot.hidden = !candidate;
    slot.classList.remove("pressed", "held", "chosen");
    if (!candidate) return;
    const item = this.classes.get(candidate.class);
    slot.dataset.testid = `candidate-${candidate.class}`;
    slot.dataset.class = candidate.class;
    slot.classList.toggle("was", Boolean(was?.classes.includes(candidate.class)));
    slot.querySelector(".desk-dot").textContent = item?.mark ?? "";
    slot.querySelector(".desk-dot").style.setProperty("--dot", item?.color ?? "");
    slot.querySelector(".desk-name").textContent = this.name(candidate.class);
    const prob = Number(candidate.prob);
    const known = candidate.prob != null && Number.isFinite(prob);
    slot.querySelector(".desk-prob").textContent = known ? prob.toFixed(2) : "";
    slot.querySelector(".desk-bar span").style.width = known ? `${Math.round(100 * Math.min(1, Math.max(0, prob)))}%` : "0";
    slot.setAttribute("aria-label", `${this.name(candidate.class)}, suggested, key ${slot.querySelector("kbd").textContent}`);
  }

  #mark(button, { candidate = false, given = false, was = false, tag = "" }) {
    button.classList.toggle("candidate", candidate);
    button.classList.toggle("given", given);
    button.classList.toggle("was", Boolean(was));
    button.classList.remove("chosen");
    button.setAttribute("aria-pressed", "false");
    button.querySelector(".desk-tag").textContent = tag;
  }

  // Several: the class keys toggle.
  showSeveral(chosen) {
    const on = chosen !== null;
    this.root.classList.toggle("several", on);
    this.actions.get("several").setAttribute("aria-pressed", String(on));
    for (const [slug, button] of this.choices) {
      button.classList.toggle("chosen", on && chosen.has(slug));
      button.setAttribute("aria-pressed", String(on && chosen.has(slug)));
    }
    for (const slot of this.slots) slot.classList.toggle("chosen", on && chosen.has(slot.dataset.class));
  }

  showFlag(open) {
    this.flag.hidden = !open;
    this.root.classList.toggle("flagging", open);
    if (open) {
      this.note.value = "";
      this.note.focus();
    } else if (this.root.contains(document.activeElement)) {
      this.root.focus({ preventScroll: true });
    }
  }

  say(text, calm = true) {
    this.hint.textContent = text;
    this.hint.classList.toggle("warm", !calm);
  }

  #buttons(classes, action) {
    const found = classes.map((slug) => this.choices.get(slug)).filter(Boolean);
    for (const slot of this.slots) if (!slot.hidden && classes.includes(slot.dataset.class)) found.push(slot);
    if (action && this.actions.has(action)) found.push(this.actions.get(action));
    return found;
  }

  // What was pressed shows for a moment where it was pressed.
  flash(classes, action, kind = "pressed") {
    for (const button of this.#buttons(classes, action)) {
      button.classList.remove("pressed", "held");
      void button.offsetWidth; // starts the animation again when the same key is pressed twice
      button.classList.add(kind);
      setTimeout(() => button.classList.remove(kind), PRESSED_MS);
    }
  }

  confirmLast(text) {
    this.last.textContent = text;
    this.last.classList.add("on");
    clearTimeout(this.lastTimer);
    this.lastTimer = setTimeout(() => this.last.classList.remove("on"), LAST_MS);
  }

  showNeighbours(list) {
    this.near.hidden = list.length === 0;
    this.near.replaceChildren(
      ...(list.length ? [Object.assign(document.createElement("span"), { textContent: "nearest labeled", className: "desk-near-title" })] : []),
      ...list.map((near) => this.#neighbour(near)),
    );
  }

  #neighbour({ image_url: url, classes = [] }) {
    const figure = document.createElement("figure");
    const image = new Image();
    image.src = url;
    image.alt = "";
    image.width = image.height = 40;
    const words = document.createElement("figcaption");
    words.textContent = classes.map((slug) => this.name(slug).toLowerCase()).join(", ");
    figure.append(image, words);
    return figure;
  }
}
