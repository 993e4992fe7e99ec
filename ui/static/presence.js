// Leases live as long as somebody sits here. After IDLE_MS without a touch they end, and colleagues get the faces.

const IDLE_MS = 5 * 60 * 1000;
const EVERY_MS = 1000;

export class Presence {
  #desk;
  #lastActive = Date.now();
  #renewing = false;

  constructor(desk) {
    this.#desk = desk;
    for (const kind of ["keydown", "pointermove", "pointerdown", "focus"]) {
      addEventListener(kind, () => this.#touch(), { capture: true, passive: true });
    }
    setInterval(() => void this.#renew(), EVERY_MS);
  }

  get #away() {
    return Date.now() - this.#lastActive > IDLE_MS;
  }

  #touch() {
    const back = this.#away;
    this.#lastActive = Date.now();
    if (back) void this.#welcome();
  }

  // Back after a pause: what has expired is somebody else's by now, perhaps the face on screen too.
  async #welcome() {
    const { shelf } = this.#desk;
    shelf.dropExpired();
    const face = this.#desk.current;
    if (!face) return;
    face.renewAt = 0;
    const lost = await shelf.renew(face);
    if (lost.includes(face) && this.#desk.current === face && shelf.size) {
      this.#desk.replace("A colleague took that face over while you were away. Here is another one.");
    }
  }

  async #renew() {
    if (this.#renewing || document.hidden || this.#away) return;
    this.#renewing = true;
    try {
      const { shelf } = this.#desk;
      for (const face of await shelf.renew(this.#desk.current)) {
        if (face === this.#desk.current) face.renewAt = Infinity; // still answerable: the answer is kept and marked late
        else shelf.drop(face.item.image_id);
      }
    } finally {
      this.#renewing = false;
    }
  }
}
