import { about, ask, attempt, element, follow } from "./page.js";

const [form, text, stream, turns] = ["form", "text", "stream", "turns"].map((name) => document.getElementById(name));
let model = null;
let said = [];

function add(who, className, words) {
  const item = element("li", className);
  const spoken = element("span", "", words);
  spoken.dir = "auto";
  item.append(element("span", "who", `${who}: `), spoken);
  turns.append(item);
  item.scrollIntoView({ block: "nearest" });
  return spoken;
}

async function speak() {
  const words = text.value.trim();
  if (!words) return;
  model ??= await about();
  const mine = add("You", "said", words);
  const answer = add("Model", "answer", "…");
  try {
    const asked = { text: words, turns: said.slice(-model.context_turns) };
    const found = stream.checked ? await follow(asked, (grown) => (answer.textContent = grown)) : await ask(asked);
    answer.textContent = found.text;
    said.push(words, found.text);
    for (const warning of found.warnings || []) answer.after(element("p", "warning", warning));
    text.value = "";
  } catch (error) {
    mine.parentElement.remove();
    answer.parentElement.remove();
    throw error;
  }
  answer.parentElement.scrollIntoView({ block: "nearest" });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(speak).then(() => text.focus());
});
document.getElementById("new").addEventListener("click", () => {
  said = [];
  turns.replaceChildren();
  text.focus();
});
attempt(async () => {
  model = await about();
  const most = model.context_turns === 1 ? "the turn" : `the last ${model.context_turns} turns`;
  document.getElementById("about").textContent = `A line is read after ${most} before it.`;
});
