// The demo: a few posts, polled counts, and a like button that shows the intent at once and the truth when it is known.

const posts = [
  ["1", "Hello, world", "The first post of every feed."],
  ["2", "A bridge at dawn", "Nobody on it yet, and the river takes its time."],
  ["3", "Soup for six", "Feeds four, if one of them is you."],
  ["42", "The answer", "Now for the question."],
  ["9007199254740993", "A large id", "JavaScript numbers cannot hold it, which is why ids are strings."],
];
const POLL_MS = 1000;
const RETRIES_MAX = 8;

const viewer = document.querySelector("#viewer");
const state = document.querySelector("#state");
const shown = new Map();
const compact = new Intl.NumberFormat(document.documentElement.lang, { notation: "compact", maximumFractionDigits: 1 });
const plural = new Intl.PluralRules(document.documentElement.lang);

viewer.value = localStorage.getItem("viewer") ?? String(1 + Math.floor(Math.random() * 1e6));
if (!viewer.checkValidity() || viewer.value === "") viewer.value = "1";
localStorage.setItem("viewer", viewer.value);
viewer.addEventListener("change", () => {
  if (viewer.reportValidity()) {
    localStorage.setItem("viewer", viewer.value);
    for (const post of shown.values()) post.intent = null;
    refresh();
  }
});

for (const [id, title, text] of posts) {
  const article = document.querySelector("#post").content.cloneNode(true).firstElementChild;
  article.querySelector("h2").textContent = title;
  article.querySelector("p").textContent = text;
  const post = { id, button: article.querySelector("button"), output: article.querySelector("output"),
                 title, liked: false, count: null, intent: null, sending: false };
  post.button.addEventListener("click", () => toggle(post));
  post.button.setAttribute("aria-label", `Like ${title}`);
  document.querySelector("#feed").append(article);
  shown.set(`post:${id}`, post);
}

function render(post) {
  const liked = post.intent?.liked ?? post.liked;
  const own = post.intent ? Number(post.intent.liked) - Number(post.liked) : 0;
  post.button.setAttribute("aria-pressed", String(liked));
  const count = Math.max(0, (post.count ?? 0) + own);
  const noun = plural.select(count) === "one" ? "like" : "likes";
  post.output.textContent = post.count === null ? "" : `${compact.format(count)} ${noun}`;
}

function toggle(post) {
  const liked = !(post.intent?.liked ?? post.liked);
  const intent = { liked, viewer: viewer.value, requestId: uuid7() };
  post.intent = intent;
  render(post);
  if (!post.sending) sendLatest(post);
}

// One request at a time for each post: the log must see intents in the order in which they were had.
async function sendLatest(post) {
  post.sending = true;
  while (post.intent && !post.intent.position) await send(post, post.intent);
  post.sending = false;
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Every retry keeps the requestId, so that however often it is sent it has one effect. Ends when it was taken or given up.
async function send(post, intent) {
  const path = `/v1/contents/post/${post.id}/like?viewer=${encodeURIComponent(intent.viewer)}`;
  const method = intent.liked ? "PUT" : "DELETE";
  for (let tries = 0; tries <= RETRIES_MAX; tries++) {
    let wait = Math.random() * 500 * 2 ** tries;
    try {
      const answer = await fetch(path, { method, headers: { "Idempotency-Key": intent.requestId } });
      const body = await answer.json();
      if (answer.ok) {
        state.textContent = "";
        intent.position = body.position;
        refresh();
        return;
      }
      const again = answer.status === 409 || answer.status === 429 || answer.status >= 500;
      if (!again) return giveUp(post, intent, body.title);
      state.textContent = `${body.title}; trying again…`;
      wait = Number(answer.headers.get("Retry-After") ?? 1) * 1000 * (1 + Math.random() / 4);
    } catch {
      state.textContent = "The server cannot be reached; trying again…";
    }
    await pause(wait);
  }
  giveUp(post, intent, "The server did not take it");
}

function giveUp(post, intent, why) {
  if (post.intent === intent) post.intent = null;
  state.textContent = why;
  render(post);
}

let reading = 0;
let underWay = 0;
async function refresh() {
  const turn = ++reading;
  underWay++;
  const query = new URLSearchParams({ viewer: viewer.value, wait: "2" });
  for (const key of shown.keys()) query.append("content", key);
  const settled = [];
  for (const post of shown.values()) {
    if (post.intent?.position) {
      query.append("after", post.intent.position);
      settled.push([post, post.intent]);
    }
  }
  try {
    const answer = await fetch(`/v1/likes?${query}`);
    if (!answer.ok || turn !== reading) return;
    for (const item of (await answer.json()).items) {
      const post = shown.get(`${item.contentType}:${item.contentId}`);
      post.count = item.count;
      post.liked = item.liked;
      for (const [known, intent] of settled) {
        if (known === post && post.intent === intent && !item.stale) post.intent = null;
      }
      render(post);
    }
  } catch {
    // The next poll tries again; a failing command says so itself.
  } finally {
    underWay--;
  }
}

function uuid7() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  let millis = Date.now();
  for (let i = 5; i >= 0; i--) {
    bytes[i] = millis % 256;
    millis = Math.floor(millis / 256);
  }
  bytes[6] = 0x70 | (bytes[6] & 0x0f);
  bytes[8] = 0x80 | (bytes[8] & 0x3f);
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

refresh();
setInterval(() => underWay || refresh(), POLL_MS);
