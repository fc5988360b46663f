import { about, ask, attempt, element, follow } from "./page.js";

const [form, text, best, details, stream, status, results] = [
  "form", "text", "best", "details", "stream", "status", "results",
].map((name) => document.getElementById(name));

function heatMap(hypothesis) {
  const table = element("table", "attention");
  table.append(element("caption", "", "Per cent; columns are read, rows are written"));
  const head = table.createTHead().insertRow();
  head.append(element("td"));
  for (const token of hypothesis.source_tokens) {
    const cell = element("th", "", token);
    cell.scope = "col";
    head.append(cell);
  }
  const body = table.createTBody();
  hypothesis.tokens.forEach((token, index) => {
    const row = body.insertRow();
    const name = element("th", "", token);
    name.scope = "row";
    row.append(name);
    for (const weight of hypothesis.attention[index]) {
      const cell = element("td", "", weight >= 0.005 ? String(Math.round(100 * weight)) : "");
      cell.style.setProperty("--weight", weight);
      row.append(cell);
    }
  });
  const scroll = element("div", "scroll");
  scroll.tabIndex = 0;
  scroll.append(table);
  return scroll;
}

function explained(hypothesis) {
  if (!hypothesis.tokens) return [];
  if (!hypothesis.attention) return [element("p", "warning", "This model has no attention.")];
  if (!hypothesis.tokens.length) return [];
  const folded = element("details");
  folded.append(element("summary", "", "Attention"), heatMap(hypothesis));
  return [folded];
}

const scored = (hypothesis) => (hypothesis.score === null ? "" : hypothesis.score.toFixed(3));

function show(block, found) {
  const output = element("p", "best", found.text);
  output.dir = "auto";
  block.querySelector(".best").replaceWith(output);
  if (found.cut) block.append(element("p", "warning", "The output reached the most tokens allowed, and is cut."));
  for (const warning of found.warnings || []) block.append(element("p", "warning", warning));
  if (!found.hypotheses) {
    block.append(element("p", "score", `score ${scored(found)}`), ...explained(found));
    unfold(block);
    return;
  }
  const list = element("ol", "hypotheses");
  for (const hypothesis of found.hypotheses) {
    const item = element("li");
    const words = element("span", "", hypothesis.text);
    words.dir = "auto";
    item.append(words, element("span", "score", scored(hypothesis)), ...explained(hypothesis));
    list.append(item);
  }
  block.append(list);
  unfold(block);
}

function unfold(block) {
  const first = block.querySelector("details");
  if (first) first.open = true;
}

function blockOf(line) {
  const block = element("article", "card");
  const source = element("p", "source", line);
  source.dir = "auto";
  block.append(source, element("p", "best", "…"));
  results.append(block);
  return block;
}

async function translate() {
  const lines = text.value.split("\n").filter((line) => line.trim());
  if (!lines.length) return;
  results.replaceChildren();
  status.textContent = "Translating…";
  const blocks = lines.map(blockOf);
  const begin = performance.now();
  try {
    if (stream.checked) {
      for (const [index, line] of lines.entries()) {
        const output = blocks[index].querySelector(".best");
        show(blocks[index], await follow({ text: line }, (grown) => (output.textContent = grown)));
      }
    } else {
      const several = best.valueAsNumber > 1 ? { num_best: best.valueAsNumber } : {};
      const { translations } = await ask({ texts: lines, details: details.checked, ...several });
      translations.forEach((found, index) => show(blocks[index], found));
    }
    status.textContent = `${((performance.now() - begin) / 1000).toFixed(2)} s`;
  } catch (error) {
    status.textContent = "";
    results.replaceChildren();
    throw error;
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(translate);
});
text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
stream.addEventListener("change", () => {
  best.disabled = details.disabled = stream.checked;
});
attempt(async () => {
  const model = await about();
  const sides = model.source && model.target ? `From ${model.source} to ${model.target}, ` : "";
  document.getElementById("about").textContent = `${sides}beam ${model.beam_size}, up to ${model.max_tokens} tokens a line`;
  best.max = model.beam_size;
});
