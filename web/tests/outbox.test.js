// The outbox: what becomes of likes when the network, the server, the clock or the browser fails. Every test starts its
// own server; where the server could not be made to answer so, the test answers in its place.

import assert from "node:assert/strict";
import { test } from "node:test";

import { answerSends, pageOf, pause, shows, slowWay, until, withServer } from "./rig.js";

/** How long the longest outage lasts. */
const OFFLINE_S = Number(process.env.LIKEWISE_TEST_OFFLINE_S ?? 5);
const DAY_MS = 24 * 3600_000;

const stored = (page) => page.evaluate(() => Object.entries(localStorage).filter(([key]) => key.startsWith("likewise ")).map(([key, value]) => [key, JSON.parse(value)]));
const click = (page, content) => page.evaluate((content) => document.querySelector(`like-button[content="${content}"]`).shadowRoot.querySelector("button").click(), content);
const ids = (sends) => sends.flatMap(({ body }) => body.commands.map(({ requestId }) => requestId));
const gaps = (sends) => sends.slice(1).map(({ at }, index) => at - sends[index].at);

/** Waits until the server agrees that user 7 likes `content` or not, after exactly so many intents: a repeat has no effect. */
async function settles(server, page, content, liked, intents) {
  await until(`${content} to be ${liked ? "liked" : "not liked"}`, async () => (await server.likes(content, 7)).liked === liked);
  await shows(page, content, { liked, state: "ready", count: liked ? 1 : 0 });
  if (intents !== undefined) assert.equal(new Set(server.events(content).map(({ requestId }) => requestId)).size, intents, `intents for ${content}`);
}

test(`offline for ${OFFLINE_S} s, 20 clicks on 5 contents, the tab killed, a new tab online: one effect each, the last intent`, () => {
  const contents = [1, 2, 3, 4, 5].map((id) => `post:${id}`);
  return withServer({ html: pageOf(contents) }, async ({ server, context, open, seen }) => {
    const page = await open();
    for (const content of contents) await shows(page, content, { state: "ready" });
    await context.setOffline(true);
    const ended = Date.now() + OFFLINE_S * 1000;
    // 20 clicks: contents 1 and 2 end liked (5 and 3), the others not (4 each).
    const clicks = [...Array(4)].flatMap(() => contents).filter((content, index) => !(content === "post:2" && index > 15)).concat("post:1");
    assert.equal(clicks.length, 20);
    for (const content of clicks) await click(page, content);
    for (const [content, liked] of [["post:1", true], ["post:2", true], ["post:3", false]]) {
      await shows(page, content, { liked, state: "queued", hint: "Will be sent" });
    }
    assert.equal((await stored(page)).length, 5);
    await pause(Math.max(0, ended - Date.now()));
    // The process of the tab ends without a word.
    const session = await context.newCDPSession(page);
    session.send("Page.crash").catch(() => {});
    await new Promise((done) => page.once("crash", done));
    await page.close();
    await context.setOffline(false);
    const before = seen.batches.length;
    const next = await open();
    for (const content of contents) await settles(server, next, content, ["post:1", "post:2"].includes(content), 1);
    console.log(`${before} sends in vain in ${OFFLINE_S} s, then ${seen.batches.length - before}`);
    assert.equal(seen.batches.length - before, 1, "one batch");
    await until("the outbox to be empty", async () => (await stored(next)).length === 0);
  });
});

test("two tabs toggle the same post as fast as they can: both end at the truth", () => withServer({ html: pageOf(["post:1"]) }, async ({ server, open }) => {
  const pages = [await open(), await open()];
  for (const page of pages) await shows(page, "post:1", { state: "ready" });
  for (let round = 0; round < 5; round++) await Promise.all(pages.map((page) => click(page, "post:1")));
  const last = pages[1];
  await last.evaluate(() => document.querySelector("like-button").toggle(true));
  for (const page of pages) await settles(server, page, "post:1", true);
}));

test("the last click wins, in whichever tab it was", () => withServer({ html: pageOf(Array.from({ length: 20 }, (_, i) => `post:${i + 1}`)) }, async ({ server, open }) => {
  const pages = [await open(), await open()];
  for (const page of pages) await shows(page, "post:20", { state: "ready" });
  const set = (page, content, liked) => page.evaluate(([content, liked]) => document.querySelector(`like-button[content="${content}"]`).toggle(liked), [content, liked]);
  for (let id = 1; id <= 20; id++) {
    const liked = id % 2 === 0;
    await set(pages[id % 2], `post:${id}`, !liked);
    await set(pages[(id + 1) % 2], `post:${id}`, liked);
  }
  for (let id = 1; id <= 20; id++) {
    for (const page of pages) await settles(server, page, `post:${id}`, id % 2 === 0);
  }
  for (const page of pages) await until("nothing to be left", async () => (await stored(page)).length === 0);
}));

for (const [name, answers, minimum] of [
  ["503 with a date", [{ status: 503, retryAfter: () => new Date(Date.now() + 3000).toUTCString() }, null], 1500],
  ["503 with Retry-After", [{ status: 503, retryAfter: 2 }, { status: 503, retryAfter: 2 }, null], 2000],
  ["429 for all", [{ status: 429, retryAfter: 2 }, null], 2000],
  ["409 for all", [{ status: 409, retryAfter: 1 }, null], 1000],
  ["500 without a word on when", [{ status: 500 }, null], 50],
  ["an answer that is no JSON", [(route) => route.fulfill({ status: 200, body: "<html>" }), null], 50],
  ["a request that is lost", [(route) => route.abort(), null], 50],
]) {
  test(`${name}: the same request again, and not before its time`, () => withServer({ html: pageOf(["post:1"]) }, async ({ server, context, open, seen }) => {
    await answerSends(context, ...answers);
    const page = await open();
    await shows(page, "post:1", { state: "ready" });
    await click(page, "post:1");
    await shows(page, "post:1", { liked: true, state: "queued" });
    await settles(server, page, "post:1", true, 1);
    assert.equal(seen.batches.length, answers.length);
    assert.equal(new Set(ids(seen.batches)).size, 1, "one requestId");
    assert.ok(gaps(seen.batches).every((gap) => gap >= minimum), `${gaps(seen.batches)} ms between sends`);
  }));
}

for (const [name, result, minimum] of [
  ["429", { status: 429, retryAfter: 2, type: "https://iana.org/assignments/http-problem-types#quota-exceeded" }, 2000],
  ["409", { status: 409, retryAfter: 1, type: "/problems/request-in-flight" }, 1000],
  ["503 with an unknown outcome", { status: 503, retryAfter: 1, outcome: "unknown", type: "/problems/outcome-unknown" }, 1000],
]) {
  test(`${name} for one of a batch holds up that one only`, () => withServer({ html: pageOf(["post:1", "post:2"]) }, async ({ server, context, open, seen }) => {
    await answerSends(context, async (route) => {
      const answer = await (await route.fetch()).json();
      answer.results[0] = result;
      await route.fulfill({ json: answer });
    }, null);
    const page = await open();
    await shows(page, "post:2", { state: "ready" });
    await page.evaluate(() => document.querySelectorAll("like-button").forEach((element) => element.toggle()));
    await settles(server, page, "post:2", true, 1);
    await settles(server, page, "post:1", true, 1);
    const sends = seen.batches.filter(({ body }) => body.commands.some(({ contentId }) => contentId === "1"));
    assert.equal(new Set(ids(sends)).size - (sends[0].body.commands.length - 1), 1);
    assert.ok(gaps(sends).every((gap) => gap >= minimum), `${gaps(sends)} ms between sends`);
  }));
}

test("an answer that is lost after the log had it: asked again, one effect", () => withServer({ html: pageOf(["post:1"]) }, async ({ server, context, open, seen }) => {
  await answerSends(context, async (route) => {
    await route.fetch();
    await route.abort();
  }, null);
  const page = await open();
  await shows(page, "post:1", { state: "ready" });
  const counts = page.evaluate(() => new Promise((done) => {
    const element = document.querySelector("like-button");
    const counts = [];
    const timer = setInterval(() => {
      counts.push(element.shown.count);
      if (element.shown.state === "ready" && counts.length > 10) { clearInterval(timer); done(counts); }
    }, 5);
    element.toggle();
  }));
  await settles(server, page, "post:1", true, 1);
  assert.deepEqual([...new Set(await counts)], [1], "the number never moved");
  assert.equal(new Set(ids(seen.batches)).size, 1);
}));

test("the server is killed in the middle and comes back: one effect", () => withServer({ html: pageOf(["post:1", "post:2"]), problems: [] }, async ({ server, open }) => {
  const page = await open();
  await shows(page, "post:2", { state: "ready" });
  await click(page, "post:1");
  await server.stop("SIGKILL");
  await click(page, "post:2");
  await shows(page, "post:2", { state: "queued", liked: true });
  await server.restart();
  await settles(server, page, "post:1", true, 1);
  await settles(server, page, "post:2", true, 1);
}));

test("a server that is away for hours is not asked for hours", () => withServer({ html: pageOf(["post:1"]) }, async ({ context, open, seen }) => {
  await answerSends(context, { status: 503, retryAfter: 7200 });
  const page = await open();
  await shows(page, "post:1", { state: "ready" });
  await click(page, "post:1");
  await shows(page, "post:1", { state: "queued" });
  await click(page, "post:1");
  await page.reload();
  await shows(page, "post:1", { state: "pending" });
  await pause(2000);
  assert.equal(seen.batches.length, 1);
}));

test("a clock that is wrong and much that waits: all of it arrives", () => {
  const contents = Array.from({ length: 8 }, (_, i) => `post:${i + 1}`);
  return withServer({ html: pageOf(contents) }, async ({ server, context, open }) => {
    await context.addInitScript(() => {
      const now = Date.now.bind(Date);
      Date.now = () => now() + 60_000;
    });
    const page = await open();
    await shows(page, "post:8", { state: "ready" });
    await context.setOffline(true);
    for (const content of contents) await click(page, content);
    await shows(page, "post:8", { state: "queued" });
    await context.setOffline(false);
    for (const content of contents) await settles(server, page, content, true, 1);
  });
});

for (const days of [-1, 1]) {
  test(`a clock that is ${days} day off: ids follow the server's time`, () => withServer({ html: pageOf(["post:1"]) }, async ({ server, context, open, seen }) => {
    await context.addInitScript((by) => {
      const now = Date.now.bind(Date);
      Date.now = () => now() + by;
    }, days * DAY_MS);
    const page = await open();
    await shows(page, "post:1", { state: "ready" });
    await click(page, "post:1");
    await settles(server, page, "post:1", true, 1);
    await click(page, "post:1");
    await settles(server, page, "post:1", false, 2);
    console.log(`${seen.batches.length} sends for 2 likes, ${days} day off`);
    assert.ok(seen.batches.length <= 3);
  }));
}

for (const [name, answer, reason] of [
  ["410", { status: 410, type: "gone" }, "gone"],
  ["403", { status: 403, type: "forbidden" }, "forbidden"],
  ["422", { status: 422, type: "invalid-value" }, "invalid-value"],
]) {
  test(`${name} is not asked again: it is taken back and said`, () => withServer({ html: pageOf(["post:1"]) }, async ({ server, context, open, seen }) => {
    await answerSends(context, answer, null);
    const page = await open();
    await shows(page, "post:1", { state: "ready" });
    const told = page.evaluate(() => new Promise((done) => document.addEventListener("like-error", ({ detail }) => done(detail))));
    await click(page, "post:1");
    assert.equal((await told).failure, reason);
    await shows(page, "post:1", { liked: false, count: 0, state: "failed", hint: "Not sent", said: "Not sent" });
    assert.equal(seen.batches.length, 1);
    // It is said to whoever comes back, too, and never sent again.
    await page.reload();
    await shows(page, "post:1", { liked: false, count: 0, state: "failed", hint: "Not sent" });
    assert.equal(seen.batches.length, 1);
    await click(page, "post:1");
    await settles(server, page, "post:1", true, 1);
  }));
}

test("one that the server does not take does not spoil the others", () => withServer({ args: ["--content-types", "post"], html: pageOf(["post:1", "film:2", "post:3"]) }, async ({ server, context, open }) => {
  const page = await open();
  await shows(page, "post:3", { state: "ready" });
  await context.setOffline(true);
  for (const content of ["post:1", "film:2", "post:3"]) await click(page, content);
  await shows(page, "post:3", { state: "queued" });
  await context.setOffline(false);
  await settles(server, page, "post:1", true, 1);
  await settles(server, page, "post:3", true, 1);
  await shows(page, "film:2", { liked: false, state: "failed" });
}));

test("after a day in vain it gives up and says so", () => withServer({ html: pageOf(["post:1", "post:2"]) }, async ({ server, context, open }) => {
  await context.addInitScript(() => {
    if (localStorage.length) return;
    const at = Date.now() - 24 * 3600_000;
    const intent = (id, at) => JSON.stringify({ v: 1, id: `0190a8a0-0000-7000-a000-00000000000${id}`, liked: true, at, tries: 9, next: 0 });
    localStorage.setItem(`likewise ${location.origin} 7 post:1`, intent(1, at - 1000));
    localStorage.setItem(`likewise ${location.origin} 7 post:2`, intent(2, at + 3_000));
  });
  await answerSends(context, { status: 503, retryAfter: 1 });
  const page = await open();
  await shows(page, "post:1", { liked: false, state: "failed", hint: "Not sent" });
  await shows(page, "post:2", { liked: true, state: "queued" });
  await shows(page, "post:2", { liked: false, state: "failed" });
  assert.deepEqual((await stored(page)).map(([, { failure }]) => failure), ["expired", "expired"]);
  assert.equal(server.events("post:1").length, 0);
}));

test("what is not ours in the storage is dropped or left alone, and likes go on", () => withServer({ html: pageOf(["post:1"]) }, async ({ server, context, open }) => {
  await context.addInitScript(() => {
    if (localStorage.length) return;
    const own = `likewise ${location.origin} 7 `;
    const good = { v: 1, id: "0190a8a0-0000-7000-a000-000000000001", liked: true, at: Date.now(), tries: 0, next: 0 };
    const entries = {
      "post:2": "{", "post:3": "null", "post:4": JSON.stringify({ ...good, v: 2 }), "post:5": JSON.stringify({ ...good, liked: "yes" }),
      "post:6": JSON.stringify({ ...good, at: 1e20 }), "post:7": '{"__proto__":{"v":1,"liked":true}}', __proto__: JSON.stringify(good), "post:8": JSON.stringify({ ...good, position: "x" }),
    };
    for (const [content, text] of Object.entries(entries)) localStorage.setItem(own + content, text);
    localStorage.setItem(`${own}__proto__`, JSON.stringify(good));
    for (let i = 0; i < 10_000; i++) localStorage.setItem(`${own}junk${i}`, "x");
    localStorage.setItem("somebody else's", "stays");
    localStorage.setItem(`likewise-paused ${location.origin}`, String(Date.now() + 1e12));
  });
  const page = await open();
  await shows(page, "post:1", { state: "ready", liked: false });
  await click(page, "post:1");
  await settles(server, page, "post:1", true, 1);
  assert.equal(await page.evaluate(() => localStorage.getItem("somebody else's")), "stays");
  await until("nothing to be left", async () => (await stored(page)).length === 0);
  assert.equal(await page.evaluate(() => ({}).liked), undefined);
}));

for (const [name, script] of [
  ["full", () => { Storage.prototype.setItem = () => { throw new DOMException("full", "QuotaExceededError"); }; }],
  ["forbidden", () => { Object.defineProperty(window, "localStorage", { get() { throw new DOMException("no", "SecurityError"); } }); }],
]) {
  test(`storage that is ${name}: likes are sent all the same`, () => withServer({ html: pageOf(["post:1"]) }, async ({ server, context, open }) => {
    await context.addInitScript(script);
    await answerSends(context, { status: 503, retryAfter: 1 }, null);
    const page = await open();
    await shows(page, "post:1", { state: "ready" });
    await click(page, "post:1");
    await settles(server, page, "post:1", true, 1);
  }));
}

test("locks that are forbidden are done without", () => withServer({ html: pageOf(["post:1"]) }, async ({ server, context, open }) => {
  await context.addInitScript(() => {
    LockManager.prototype.request = () => Promise.reject(new DOMException("no", "SecurityError"));
  });
  await answerSends(context, { status: 503, retryAfter: 1 }, null);
  const page = await open();
  await shows(page, "post:1", { state: "ready" });
  await click(page, "post:1");
  await settles(server, page, "post:1", true, 1);
  await server.like(8, "post:1");
  await shows(page, "post:1", { number: "2" });
}));

test("without locks and channels it works tab by tab", () => withServer({ html: pageOf(["post:1"]) }, async ({ server, context, open }) => {
  await context.addInitScript(() => {
    Object.defineProperty(navigator, "locks", { value: undefined });
    delete window.BroadcastChannel;
  });
  const pages = [await open(), await open()];
  for (const page of pages) await shows(page, "post:1", { state: "ready" });
  await click(pages[0], "post:1");
  for (const page of pages) await settles(server, page, "post:1", true, 1);
  await server.like(8, "post:1");
  for (const page of pages) await shows(page, "post:1", { number: "2" });
}));

// By a way that is slow by itself: a browser that is listened in on loses the requests of pages that have ended.
test("a page that is left sends what waited for its turn", () => withServer({}, async ({ server, open }) => {
  const sent = [];
  let release;
  const held = new Promise((done) => { release = done; });
  const way = await slowWay(server.url, async ({ url }, body) => {
    if (!url.startsWith("/v1/likes/batch")) return;
    sent.push(JSON.parse(body).commands.map(({ contentId }) => contentId));
    if (sent.length === 1) await held;
  });
  try {
    const page = await open(way.url);
    await shows(page, "post:42", { state: "ready" });
    const viewer = await page.evaluate(() => document.querySelector("like-button").getAttribute("viewer"));
    await click(page, "post:2");
    await until("the first to be on its way", () => sent.length === 1);
    await click(page, "post:3");
    // Taken back while it is on its way: this could overtake it, and waits for the next page.
    await click(page, "post:2");
    await page.evaluate(() => location.assign("about:blank"));
    await until("the second to be sent", () => sent.length === 2);
    assert.deepEqual(sent, [["2"], ["3"]]);
    release();
    await until("both to have arrived", async () => (await server.likes("post:2", viewer)).liked && (await server.likes("post:3", viewer)).liked);
    await page.goto(way.url);
    await until("what was wanted last", async () => (await server.likes("post:2", viewer)).liked === false);
    await shows(page, "post:2", { liked: false, count: 0, state: "ready" });
  } finally {
    way.close();
  }
}));

test("a crowd that is refused comes back slowly", () => withServer({ html: pageOf(["post:1"]) }, async ({ context, open, seen }) => {
  await answerSends(context, { status: 503 });
  const page = await open();
  await shows(page, "post:1", { state: "ready" });
  await click(page, "post:1");
  await until("the first retries", () => seen.batches.length >= 3);
  const before = seen.batches.length;
  await page.evaluate(() => { for (let i = 0; i < 50; i++) document.querySelector("like-button").toggle(); });
  await page.reload();
  await shows(page, "post:1", { state: "queued" });
  await pause(500);
  console.log(`${seen.batches.length} sends so far; 50 clicks and a reload made ${seen.batches.length - before} more`);
  assert.ok(seen.batches.length - before <= 2);
}));
