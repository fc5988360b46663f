// What both pages share: requests with the token, errors, elements. Text is only ever set as text.

const field = (name) => document.getElementById(name);
let lastTry = null;

function storedToken() {
  try {
    return sessionStorage.getItem("token");
  } catch {
    return null; // the browser keeps nothing
  }
}

let token = storedToken();

async function send(path, options = {}) {
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The server cannot be reached.");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) field("token").hidden = false;
  const said = await answer.json().catch(() => ({}));
  const later = answer.headers.get("Retry-After");
  throw new Error((said.error || `The server answered ${answer.status}.`) + (later ? ` Try again in ${later} s.` : ""));
}

const post = (body) =>
  send("translate", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

export async function about() {
  return (await send("model")).json();
}

export async function ask(body) {
  return (await post(body)).json();
}

// Calls `grown` with the text so far, and returns all of it as without stream.
export async function follow(body, grown) {
  const reader = (await post({ ...body, stream: true })).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("The answer broke off.");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const said = JSON.parse(event.slice("data: ".length));
      if (said.error) throw new Error(said.error);
      if ("text" in said) return said;
      text += said.delta;
      grown(text);
    }
  }
}

export function element(kind, className, text = "") {
  const made = document.createElement(kind);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

// Does something that may fail; the button waits, and what went wrong is said.
export async function attempt(work) {
  lastTry = work;
  const button = document.querySelector("#form button:not([type])");
  field("error").textContent = "";
  button.disabled = true;
  try {
    await work();
  } catch (error) {
    field("error").textContent = error.message;
  } finally {
    button.disabled = false;
  }
}

field("token").addEventListener("submit", (event) => {
  event.preventDefault();
  token = field("secret").value;
  try {
    sessionStorage.setItem("token", token);
  } catch {
    // it is asked for again
  }
  field("token").hidden = true;
  if (lastTry) attempt(lastTry);
});
