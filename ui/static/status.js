// The quiet lines: learner and queue, today's count and pace, and what has not been sent yet.

import { ApiError, get } from "./api.js";

const EVERY_MS = 2000;
const SPARK_BARS = 12;
const SPARK_MINUTES = 5;

const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

export function statusWords({ learner, queue, labels } = {}) {
  const parts = [];
  if (learner) {
    const progress = learner.progress == null ? "" : `, ${Math.round(100 * learner.progress)} %`;
    const number = /(\d+)$/.exec(String(learner.round ?? ""))?.[1]; // rounds are named like lion-0001
    const round = number ? ` round ${Number(number)}` : "";
    const method = learner.method ? ` of ${String(learner.method).toUpperCase()}` : "";
    const doing = learner.state === "training" ? `${round ? round.trim() : "training"}${method}` : (learner.state ?? "off");
    parts.push(`learner: ${doing}${progress}`);
  }
  if (queue) {
    const behind = Number(queue.behind) || 0;
    parts.push(`queue: ${[queue.mode, queue.model ? `model ${queue.model}` : ""].filter(Boolean).join(", ")}`);
    parts.push(behind ? `${plural(behind, "answer")} behind` : "up to date");
  }
  const open = Number(labels?.unlabeled);
  if (Number.isFinite(open)) parts.push(`${plural(open, "face")} to go`);
  return parts.join(" · ");
}

export class Status {
  #desk;
  #today = 0;
  #perMinute = 0;
  #open = null;
  #times = [];

  constructor(desk) {
    this.#desk = desk;
    const one = (name) => desk.root.querySelector(`[data-testid=${name}]`);
    this.line = () => one("status");
    this.offline = () => one("offline");
    this.counter = () => one("counter");
    this.undo = () => one("undo");
    void this.#poll();
  }

  async #poll() {
    try {
      if (!document.hidden) this.#take(await get("live", { timeout: 5000 }));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.line().textContent = error.status === 401 ? "signed out" : "the server is not answering; trying again";
    }
    this.showOffline();
    setTimeout(() => void this.#poll(), EVERY_MS);
  }

  #take(live) {
    this.line().textContent = statusWords(live);
    if (live.you) {
      const unsent = this.#desk.outbox.size;
      if (!unsent) this.#today = live.you.today;
      this.#perMinute = live.you.per_minute;
    }
    this.#open = live.labels?.unlabeled ?? null;
    this.showDay();
  }

  count(step) {
    this.#today = Math.max(0, this.#today + step);
    const now = Date.now();
    if (step > 0) this.#times.push(now);
    else this.#times.pop();
    this.#times = this.#times.filter((time) => now - time < SPARK_BARS * SPARK_MINUTES * 60000);
  }

  showDay() {
    this.counter().textContent = `${this.#today.toLocaleString("en")} today`;
    const words = [];
    const pace = Math.max(Math.round(this.#perMinute), this.#times.filter((time) => Date.now() - time < 60000).length);
    if (pace > 0) words.push(`${pace}/min`);
    if (pace > 0 && this.#open > 0) {
      const hours = this.#open / pace / 60;
      words.push(hours >= 1 ? `${hours.toFixed(1)} h left` : `${Math.max(1, Math.round(60 * hours))} min left`);
    }
    this.#desk.root.querySelector(".desk-pace").textContent = words.map((word) => ` · ${word}`).join("");
    const depth = this.#desk.history.length;
    this.undo().classList.toggle("idle", depth === 0);
    this.undo().lastChild.textContent = depth ? ` Undo (${depth})` : " Undo";
    this.#spark();
  }

  #spark() {
    if (!this.#times.length) return;
    const bars = new Array(SPARK_BARS).fill(0);
    const now = Date.now();
    for (const time of this.#times) bars[SPARK_BARS - 1 - Math.floor((now - time) / (SPARK_MINUTES * 60000))] += 1;
    const most = Math.max(1, ...bars);
    const space = "http://www.w3.org/2000/svg";
    const rects = bars.map((count, index) => {
      const rect = document.createElementNS(space, "rect");
      const height = count ? Math.max(2, (16 * count) / most) : 1;
      for (const [name, value] of Object.entries({ x: index * 6, y: 16 - height, width: 4, height })) rect.setAttribute(name, value);
      return rect;
    });
    this.#desk.root.querySelector(".desk-spark").replaceChildren(...rects);
  }

  showOffline() {
    const { outbox, shelf } = this.#desk;
    const line = this.offline();
    const [words, button] = this.#offlineWords(outbox, shelf);
    line.hidden = !words;
    if (line.dataset.words === words) return;
    line.dataset.words = words;
    line.replaceChildren(document.createTextNode(words), ...(button ? [" ", button()] : []));
  }

  #offlineWords(outbox, shelf) {
    const kept = plural(outbox.size, "answer");
    if (outbox.state === "signin" || shelf.problem?.status === 401) {
      return [outbox.size ? `You are signed out. ${kept} kept here, will be sent.` : "You are signed out.", () => this.#signIn()];
    }
    if (!outbox.durable && outbox.size) return ["This browser cannot keep answers. Stay on this page until they are sent.", null];
    if (outbox.size && (outbox.state === "waiting" || outbox.oldestAge > EVERY_MS)) return [`${kept} kept here, will be sent`, null];
    const refused = outbox.refused;
    if (refused.length) {
      return [`${plural(refused.length, "answer")} refused: ${refused.at(-1).detail}`, () => this.#dismiss(outbox)];
    }
    return ["", null];
  }

  #signIn() {
    const link = document.createElement("a");
    link.href = `/login?next=${encodeURIComponent(location.pathname)}`;
    link.textContent = "Sign in again";
    link.addEventListener("click", () => (this.#desk.leaving = true));
    return link;
  }

  #dismiss(outbox) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Seen";
    button.addEventListener("click", (event) => {
      event.stopPropagation();
      outbox.dismissRefused();
    });
    return button;
  }
}
