// From key events to actions. Pure but for `listen`.

const NAMED = { Enter: "confirm", Escape: "cancel", Backspace: "undo", " ": "skip", Spacebar: "skip" };
const LETTERS = { s: "several", n: "none", u: "unusable", f: "flag", z: "undo", "?": "help" };

export class Keymap {
  #classes = new Map();
  #slots = new Map();

  constructor(classes, candidateKeys) {
    for (const item of classes) this.#classes.set(item.key, item.slug);
    candidateKeys.forEach((key, slot) => this.#slots.set(key, slot));
  }

  // The action a key press means, or null when it is not ours.
  action(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return null;
    if (NAMED[event.key]) return { name: NAMED[event.key] };
    const key = event.key.toLowerCase();
    if (this.#classes.has(key)) return { name: "class", slug: this.#classes.get(key) };
    if (this.#slots.has(key)) return { name: "candidate", slot: this.#slots.get(key) };
    if (LETTERS[key]) return { name: LETTERS[key] };
    // The digit row of a French keyboard types "&é…" without Shift: the place of the key says what is meant.
    const digit = /^(?:Digit|Numpad)([0-9])$/.exec(event.code ?? "")?.[1];
    if (digit !== undefined && this.#classes.has(digit)) return { name: "class", slug: this.#classes.get(digit) };
    return null;
  }
}

export function isTyping(target) {
  return target instanceof Element && target.closest("input, textarea, select, [contenteditable]:not([contenteditable=false])") !== null;
}

// Enter and Space belong to a button or link that the keyboard has focused; every other key to the desk.
function belongsToFocus(event) {
  if (event.key !== "Enter" && event.key !== " ") return false;
  return event.target instanceof Element && event.target.closest("button:focus-visible, a:focus-visible, summary") !== null;
}

export function listen(keymap, { active, onAction }) {
  document.addEventListener(
    "keydown",
    (event) => {
      if (event.defaultPrevented || isTyping(event.target) || belongsToFocus(event) || !active()) return;
      const action = keymap.action(event);
      if (!action) return;
      event.preventDefault();
      event.stopPropagation();
      if (event.repeat) return; // a key held down is one press
      onAction(action, event.timeStamp);
    },
    { capture: true },
  );
}
