// Signing in: the cookie comes from the REST route; this page only carries the words there.

import { ApiError, post } from "./api.js";

const form = document.getElementById("login");
const notice = document.getElementById("notice");
const button = form.querySelector("button");

function theme() {
  const chosen = localStorage.getItem("annotator.theme");
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.classList.toggle("dark", dark);
  document.documentElement.style.colorScheme = dark ? "dark" : "light";
}

// Whoever was signed out in the middle of a day should know that nothing is lost.
function showKept() {
  const count = Object.keys(localStorage).filter((key) => key.startsWith("annotator.outbox.")).length;
  const kept = document.getElementById("kept");
  kept.hidden = count === 0;
  kept.textContent = `${count} ${count === 1 ? "answer is" : "answers are"} kept in this browser and will be sent after signing in.`;
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  notice.textContent = "";
  button.disabled = true;
  try {
    await post("login", { username: form.username.value, password: form.password.value }, { timeout: 20000 });
    location.assign(form.dataset.next);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    notice.textContent = error.status === 401 ? "Name or password is wrong." : error.message;
    form.password.select();
    button.disabled = false;
  }
});

theme();
showKept();
