// The demo: posts with like buttons, a network that fails when told to, a crowd, and a look into the outbox.

const posts = [
  ["1", "Hello, world", "The first post of every feed, and the one that everybody likes."],
  ["2", "A bridge at dawn", "Nobody on it yet, and the river takes its time."],
  ["3", "Soup for six", "Feeds four, if one of them is you."],
  ["42", "The answer", "Now for the question."],
  ["9007199254740993", "A large id", "JavaScript numbers cannot hold it, which is why ids are strings."],
];
const SLOW_MS = 2000;
const LOSS = 0.5;
const LOOK_MS = 250;

const by = (id) => document.getElementById(id);
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

// The network: what the buttons use to reach the server, and what happens to it on the way.

const network = by("network");
const { fetch, EventSource } = window;
const streams = new Set();

window.fetch = async (...request) => {
  const lost = () => { throw new TypeError("lost on the way"); };
  const state = network.value;
  if (state === "offline" || (state === "flaky" && Math.random() < LOSS / 2)) lost();
  if (state === "slow") await pause(SLOW_MS);
  const answer = await fetch(...request);
  if (state === "flaky" && Math.random() < LOSS / 2) lost();
  return answer;
};
window.EventSource = class extends EventSource {
  constructor(url) {
    super(network.value === "offline" ? "/demo/offline" : url);
    streams.add(this);
  }
};
network.addEventListener("change", () => {
  if (network.value === "offline") {
    for (const stream of streams) {
      stream.close();
      stream.dispatchEvent(new Event("error"));
    }
    streams.clear();
  } else {
    window.dispatchEvent(new Event("online"));
  }
});

await import("/like-button.js");

// The feed and who looks at it.

const state = await (await fetch("/demo/state")).json();
const viewer = by("viewer");
viewer.value = sessionStorage.getItem("viewer") ?? String(1 + Math.floor(Math.random() * 1e6));
by("signing").hidden = state.open;
viewer.parentElement.hidden = !state.open;

const buttons = posts.map(([id, title, text]) => {
  const article = by("post").content.cloneNode(true).firstElementChild;
  article.querySelector("h2").textContent = title;
  article.querySelector("p").textContent = text;
  const button = article.querySelector("like-button");
  button.setAttribute("content", `post:${id}`);
  button.setAttribute("label", `Like ${title}`);
  return button;
});

function beViewer() {
  if (!viewer.reportValidity() || viewer.value === "") return;
  sessionStorage.setItem("viewer", viewer.value);
  for (const button of buttons) button.setAttribute("viewer", viewer.value);
}
if (state.open) {
  beViewer();
  viewer.addEventListener("change", beViewer);
} else {
  by("token").addEventListener("change", ({ target }) => { buttons[0].token = target.value || null; });
}
by("feed").append(...buttons.map((button) => button.closest("article")));

// The crowd.

let until = 0;
function show({ busySeconds }) {
  until = Date.now() + (busySeconds ?? 0) * 1000;
  by("busy").closest("section").hidden = busySeconds === null;
  showCrowd();
}
function showCrowd() {
  const left = Math.ceil((until - Date.now()) / 1000);
  by("busy").setAttribute("aria-pressed", String(left > 0));
  const text = left > 0 ? `1,000 likes a second, for ${left} seconds more.` : "1,000 likes a second, for a minute.";
  if (by("crowd").textContent !== text) by("crowd").textContent = text;
}
by("busy").addEventListener("click", async () => {
  const method = by("busy").getAttribute("aria-pressed") === "true" ? "DELETE" : "PUT";
  show(await (await fetch("/demo/busy", { method })).json());
});
show(state);

// The outbox: what the buttons keep in the browser's storage until the server has it.

function row(cells) {
  const row = document.createElement("tr");
  for (const text of cells) row.appendChild(document.createElement("td")).textContent = text;
  return row;
}
function look() {
  showCrowd();
  const rows = [];
  for (const key of Object.keys(localStorage)) {
    const [kind, api, who, content] = key.split(" ");
    if (kind !== "likewise" || api !== location.origin || (state.open && who !== viewer.value)) continue;
    const { liked, position, tries, next } = JSON.parse(localStorage.getItem(key));
    const wait = Math.ceil((next - Date.now()) / 1000);
    const how = position ? "accepted" : wait > 0 ? `again in ${wait} s` : tries ? `sent ${tries} times in vain` : "on its way";
    rows.push([content, liked ? "like" : "no like", how]);
  }
  const text = JSON.stringify(rows);
  if (text !== look.shown) by("outbox").replaceChildren(...rows.map(row));
  look.shown = text;
}
setInterval(look, LOOK_MS);
look();
