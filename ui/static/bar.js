// The right end of the thin bar: who is signed in, dark mode, help.

import { ApiError, post } from "./api.js";

const THEME = "annotator.theme";

export function isDark() {
  return document.body.classList.contains("dark");
}

function setDark(on) {
  document.body.classList.toggle("dark", on);
  document.documentElement.style.colorScheme = on ? "dark" : "light";
}

// Gradio follows the system when it mounts; a choice made here is stronger.
function keepTheme() {
  const apply = () => {
    const chosen = localStorage.getItem(THEME);
    const wanted = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    if (isDark() !== wanted) setDark(wanted);
    document.documentElement.style.colorScheme = wanted ? "dark" : "light";
  };
  apply();
  new MutationObserver(apply).observe(document.body, { attributes: true, attributeFilter: ["class"] });
}

function button(label, text, onClick) {
  const made = document.createElement("button");
  made.type = "button";
  made.setAttribute("aria-label", label);
  made.title = label;
  made.textContent = text;
  made.addEventListener("mousedown", (event) => event.preventDefault()); // keys stay with the desk
  made.addEventListener("click", onClick);
  return made;
}

function helpRows(settings) {
  const keys = settings.classes.map((item) => [item.key.toUpperCase(), item.name]);
  const seconds = settings.candidate_keys.map((key) => key.toUpperCase()).join(" ");
  if (seconds) keys.push([seconds, "the suggestions"]);
  return [
    ...keys,
    ["Enter", "keep the label; confirm several"],
    ["S", "several may be true: choose, then Enter"],
    ["N", "none of the highlighted"],
    ["U", "unusable: no face, not a photo"],
    ["F", "flag with a note"],
    ["Space", "skip"],
    ["Backspace Z", "undo; the face comes back"],
    ["Esc", "leave; take back keys typed ahead"],
    ["?", "this list"],
  ];
}

function buildHelp(settings) {
  const dialog = document.createElement("dialog");
  dialog.className = "desk-help";
  dialog.setAttribute("aria-label", "Keys");
  const title = document.createElement("h2");
  title.textContent = "Keys";
  const list = document.createElement("dl");
  for (const [key, words] of helpRows(settings)) {
    const row = document.createElement("div");
    const term = document.createElement("dt");
    const text = document.createElement("dd");
    for (const part of key.split(/ +/)) {
      term.append(Object.assign(document.createElement("kbd"), { textContent: part }));
    }
    text.textContent = words;
    row.append(term, text);
    list.append(row);
  }
  const note = document.createElement("p");
  note.textContent =
    "A key answers the face you see. Typed ahead, it waits until the next face has been shown. Every answer is kept in this browser until the server has stored it.";
  const close = button("Close", "Close", () => dialog.close());
  close.removeAttribute("title");
  dialog.append(title, list, note, close);
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => event.key === "?" && dialog.close());
  document.body.append(dialog);
  return dialog;
}

async function signOut(desk) {
  desk.leaving = true;
  try {
    await post("logout", {});
  } catch (error) {
    if (!(error instanceof ApiError)) throw error; // signed out already, or unreachable: the login page will tell
  }
  location.assign("/login");
}

// A figure that Gradio drew while its tab was still hidden has Plotly's default width: fit it to its column.
function fitFigures() {
  for (const figure of document.querySelectorAll(".desk-page .js-plotly-plot")) {
    const room = figure.parentElement.clientWidth;
    const drawn = Number(figure.querySelector(".main-svg")?.getAttribute("width"));
    if (room > 0 && Math.abs(room - drawn) > 2) window.Plotly?.Plots.resize(figure);
  }
}

export function buildBar(desk) {
  keepTheme();
  setInterval(fitFigures, 400);
  const bar = document.createElement("div");
  bar.className = "desk-top";
  bar.append(Object.assign(document.createElement("span"), { className: "desk-project", textContent: desk.settings.project }));
  const help = buildHelp(desk.settings);
  desk.help = () => help.showModal();
  if (desk.me.local) {
    const name = document.createElement("span");
    name.className = "desk-user";
    name.textContent = desk.me.name;
    bar.append(name);
  } else {
    const menu = document.createElement("details");
    menu.className = "desk-user";
    const name = document.createElement("summary");
    name.textContent = desk.me.name;
    name.dataset.testid = "user";
    const out = button("Sign out", "Sign out", () => void signOut(desk));
    out.dataset.testid = "logout";
    menu.append(name, out);
    addEventListener("pointerdown", (event) => !menu.contains(event.target) && (menu.open = false), { capture: true });
    bar.append(menu);
  }
  bar.append(
    button("Light or dark", "◐", () => {
      localStorage.setItem(THEME, isDark() ? "light" : "dark");
      setDark(!isDark());
    }),
    button("Keys (?)", "?", () => desk.help()),
  );
  document.body.append(bar);
}
