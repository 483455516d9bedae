// The component: what one sees, hears and can do. Every test starts its own server.

import assert from "node:assert/strict";
import { test } from "node:test";

import { button, pageOf, picture, shown, shows, site, until, violations, withServer } from "./rig.js";

test("a click shows in the same frame, a second one takes it back, and the server agrees", () => withServer({ html: pageOf(["post:42"]) }, async ({ server, open }) => {
  const page = await open();
  await shows(page, "post:42", { number: "0", liked: false, state: "ready" });
  const seen = await page.evaluate(async () => {
    const element = document.querySelector("like-button");
    const inner = element.shadowRoot.querySelector("button");
    const colour = () => getComputedStyle(inner).color;
    const look = () => ({ pressed: inner.ariaPressed, colour: colour(), number: element.shadowRoot.querySelector("[part=count] span").textContent });
    const before = look();
    const begin = performance.now();
    inner.click();
    const [after, took] = [look(), performance.now() - begin];
    const frame = await new Promise((done) => requestAnimationFrame(() => done(look())));
    return { before, after, frame, took };
  });
  console.log(`a click is handled and shown within ${seen.took.toFixed(2)} ms, before the next frame`);
  assert.deepEqual([seen.before.pressed, seen.after.pressed, seen.before.number, seen.after.number], ["false", "true", "0", "1"]);
  assert.notEqual(seen.after.colour, seen.before.colour);
  assert.deepEqual(seen.frame, seen.after, "nothing moves in the frame after");
  assert.ok(seen.took < 16, `${seen.took} ms`);
  await until("the server to have it", async () => (await server.likes("post:42", 7)).liked);
  await shows(page, "post:42", { number: "1", state: "ready" });
  await page.reload();
  await shows(page, "post:42", { number: "1", pressed: "true" });
  await button(page, "post:42").click();
  await until("the server to have that too", async () => (await server.likes("post:42", 7)).liked === false);
  await shows(page, "post:42", { number: "0", pressed: "false", state: "ready" });
  assert.equal(server.events("post:42").length, 2);
}));

test("it is used with the keyboard alone, its name does not change, and it says what one did", () => withServer({ html: pageOf(["post:1", "post:9007199254740993"]) }, async ({ server, open }) => {
  const page = await open();
  await shows(page, "post:1", { state: "ready" });
  await page.keyboard.press("Tab");
  await page.keyboard.press("Space");
  await shows(page, "post:1", { pressed: "true", said: "Liked" });
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await shows(page, "post:9007199254740993", { pressed: "true" });
  await page.keyboard.press("Enter");
  await shows(page, "post:9007199254740993", { pressed: "false", said: "Like removed" });
  await button(page, "post:1").waitFor();
  await until("the server to have them", async () => (await server.likes("post:1")).count === 1 && server.events("post:9007199254740993").length > 0);
  assert.equal(await page.evaluate(() => document.activeElement.getAttribute("content")), "post:9007199254740993");
  // Somebody else's like is shown and not said.
  await server.like(8, "post:1");
  await shows(page, "post:1", { number: "2", said: "Liked" });
}));

for (const scheme of ["light", "dark"]) {
  test(`there is nothing for axe to find, and it can be looked at: ${scheme}`, () => withServer({
    html: pageOf(["post:1", "post:2", "post:3"], 'viewer="7"', '<meta name="color-scheme" content="light dark"><link rel="stylesheet" href="/look.css">'),
    context: { colorScheme: scheme, viewport: { width: 320, height: 240 }, deviceScaleFactor: 2 },
  }, async ({ server, context, open }) => {
    await context.route("**/look.css", (route) => route.fulfill({ contentType: "text/css", body: "body{font:1rem system-ui}h1{font-size:1rem}" }));
    for (const user of [8, 9]) await server.like(user, "post:2");
    const page = await open();
    await shows(page, "post:2", { number: "2" });
    await button(page, "post:1").click();
    await shows(page, "post:1", { state: "ready", liked: true });
    await picture(page, scheme);
    await page.keyboard.press("Tab");
    if (scheme === "light") await picture(page, "focus");
    await context.setOffline(true);
    await button(page, "post:3").click();
    await shows(page, "post:3", { hint: "Will be sent", said: "Will be sent", liked: true });
    if (scheme === "light") await picture(page, "offline");
    const { found, passes } = await violations(page);
    assert.deepEqual(found, []);
    assert.ok(passes >= 10, `${passes} checks passed`);
    await context.setOffline(false);
    await shows(page, "post:3", { state: "ready", hint: "" });
    await page.evaluate(() => { document.documentElement.dir = "rtl"; });
    if (scheme === "light") await picture(page, "rtl");
    const [heart, number] = await page.evaluate(() => {
      const { shadowRoot } = document.querySelector("like-button");
      return [...shadowRoot.querySelectorAll("button,[part=count]")].map((part) => part.getBoundingClientRect().left);
    });
    assert.ok(heart > number, "from right to left");
  }));
}

test("without a viewer it shows counts and asks for a sign-in", () => withServer({ html: pageOf(["post:1"], "") }, async ({ server, open, seen }) => {
  await server.like(8, "post:1");
  const page = await open();
  await shows(page, "post:1", { number: "1", pressed: "false" });
  const told = page.evaluate(() => new Promise((done) => document.addEventListener("like-auth-required", ({ detail }) => done(detail), { once: true })));
  await button(page, "post:1").click();
  assert.equal((await told).content, "post:1");
  assert.deepEqual([(await shown(page, "post:1")).pressed, seen.batches.length], ["false", 0]);
}));

test("what a page says is shown as text and nothing else", () => withServer({
  html: pageOf(["post:1"]).replace('label="Like post:1"', 'label="<img src=x onerror=alert(1)>"').replace("</like-button>", '<svg slot="icon" class="own"></svg><b slot="other">no</b><i>no</i></like-button>')
    + '<like-button content="post:0"></like-button><like-button content="post:9223372036854775808"></like-button><like-button></like-button><like-button content="<b>:1"></like-button>',
}, async ({ open, problems }) => {
  const page = await open();
  await until("the button to be made", async () => (await shown(page, "post:1")).state === "ready");
  const made = await page.evaluate(() => [...document.querySelectorAll("like-button")].map(({ shadowRoot }) => ({
    images: shadowRoot.querySelectorAll("img").length,
    isDisabled: shadowRoot.querySelector("button").disabled,
    name: shadowRoot.querySelector("button").textContent,
  })));
  assert.deepEqual(made.map(({ images }) => images), [0, 0, 0, 0, 0]);
  assert.equal(made[0].name, "<img src=x onerror=alert(1)>");
  assert.deepEqual(made.map(({ isDisabled }) => isDisabled), [false, true, true, true, true]);
  assert.equal(problems.filter((text) => text.includes("no content such as post:42")).length, 3);
  problems.length = 0;
}));

test("a number that the page knows is there from the first, and is replaced by the truth", () => withServer({ html: pageOf(["post:5"], 'viewer="7" count="12" liked hide-count-below="3"') }, async ({ server, context, open }) => {
  let release;
  const held = new Promise((done) => { release = done; });
  await context.route("**/v1/likes?**", async (route) => { await held; await route.fallback(); });
  await context.route("**/v1/likes/stream**", async (route) => { await held; await route.fallback(); });
  const page = await open();
  await shows(page, "post:5", { number: "12", pressed: "true" });
  for (const user of [1, 2, 3, 4]) await server.like(user, "post:5");
  release();
  await shows(page, "post:5", { number: "4", pressed: "false" });
  for (const user of [1, 2]) await server.like(user, "post:5", false);
  await shows(page, "post:5", { number: "", count: 2 });
  await page.evaluate(() => document.querySelector("like-button").setAttribute("readonly", ""));
  assert.ok(await button(page, "post:5").isDisabled());
  await page.evaluate(() => document.querySelector("like-button").toggle());
  assert.equal((await shown(page, "post:5")).liked, false);
}));

test("an answer that is older than what is shown changes nothing", () => withServer({ html: pageOf(["post:1"]) }, async ({ server, context, open, seen }) => {
  await server.like(8, "post:1");
  const page = await open();
  await shows(page, "post:1", { number: "1", state: "ready" });
  const old = await server.json("/v1/likes?content=post:1&viewer=7");
  for (const user of [9, 10]) await server.like(user, "post:1");
  await button(page, "post:1").click();
  await shows(page, "post:1", { number: "4", liked: true, state: "ready" });
  await until("the stream to have shown it", async () => (await page.evaluate(() => Object.keys(localStorage).filter((key) => key.startsWith("likewise ")).length)) === 0);
  await context.route("**/v1/likes?**", (route) => route.fulfill({ json: old }));
  const reads = seen.reads.length;
  await page.evaluate(() => document.querySelector("like-button").refresh());
  await until("the old answer", async () => seen.reads.length > reads && (await (await seen.reads.at(-1).request.response()).finished()) === null);
  assert.deepEqual(await page.evaluate(() => new Promise((done) => setTimeout(() => done(document.querySelector("like-button").shown), 50))), { count: 4, liked: true, state: "ready", failure: undefined });
}));

test("numbers are in the page's language, in few characters", () => withServer({ html: pageOf(["post:6"], 'viewer="7" count="123456"').replace('lang="en"', 'lang="de"') }, async ({ context, open }) => {
  await context.route("**/v1/likes**", (route) => route.abort());
  const page = await open();
  await shows(page, "post:6", { number: "123.456" });
  await page.evaluate(() => { document.documentElement.lang = "en"; document.querySelector("like-button").render(); });
  await shows(page, "post:6", { number: "123K" });
  // A language that there is not.
  await page.evaluate(() => { document.documentElement.lang = "en_US"; document.querySelector("like-button").render(); });
  await shows(page, "post:6", { number: "123K" });
}));

test("a button that is moved keeps what it shows, and one that is used again is another's", () => withServer({ html: pageOf(["post:1", "post:2"]) }, async ({ server, open }) => {
  await server.like(8, "post:1");
  const page = await open();
  await shows(page, "post:1", { number: "1" });
  const numbers = await page.evaluate(() => {
    const first = document.querySelector("like-button");
    const number = () => first.shadowRoot.querySelector("[part=count] span").textContent;
    first.parentElement.parentElement.append(first.parentElement);
    const numbers = [number()];
    first.setAttribute("content", "post:9");
    return [...numbers, number()];
  });
  assert.deepEqual(numbers, ["1", ""]);
  await shows(page, "post:9", { number: "0", state: "ready" });
}));

test("a static form stands in until the script has come, and nothing moves then", () => withServer({
  html: pageOf(["post:7"]).replace("</like-button>", '<form method="post" action="/like"><button>Like</button></form></like-button>').replace("</head>", '<link rel="stylesheet" href="/look.css"></head>') + "<p>below</p>",
}, async ({ context, open, server }) => {
  await server.like(8, "post:7");
  await context.route("**/look.css", (route) => route.fulfill({ contentType: "text/css", body: "like-button{display:inline-flex;min-width:7ch;height:2.25rem}form{margin:0}" }));
  let release;
  const held = new Promise((done) => { release = done; });
  await context.route("**/like-button.js", async (route) => { await held; await route.fallback(); });
  const page = await context.newPage();
  await page.goto(`${server.url}/page`, { waitUntil: "commit" });
  await page.getByRole("button", { name: "Like", exact: true }).waitFor();
  await page.evaluate(() => {
    window.shifts = [];
    new PerformanceObserver((list) => window.shifts.push(...list.getEntries().map(({ value }) => value))).observe({ type: "layout-shift", buffered: true });
    return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  });
  release();
  await shows(page, "post:7", { number: "1" });
  await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
  assert.equal(await page.locator("form").isVisible(), false);
  assert.deepEqual(await page.evaluate(() => window.shifts), [], "layout shifts");
}));

test("100 buttons: one read, one stream, for five tabs together", () => withServer({ html: pageOf(Array.from({ length: 100 }, (_, i) => `post:${i + 1}`)) }, async ({ server, open, seen }) => {
  const first = await open();
  await shows(first, "post:1", { state: "ready" });
  await shows(first, "post:100", { state: "ready" });
  await until("the stream", () => seen.streams.length > 0);
  const reads = seen.reads.length;
  assert.ok(reads <= 2, `${reads} reads at load`);
  const pages = [first];
  while (pages.length < 5) pages.push(await open());
  for (const page of pages) await shows(page, "post:1", { state: "ready" });
  await server.like(9, "post:1");
  for (const page of pages) await shows(page, "post:1", { number: "1" });
  const alive = async () => {
    const isOpen = await Promise.all(seen.streams.map(({ request }) => Promise.race([request.response().then((response) => response?.finished()).then(() => 0, () => 0), new Promise((done) => setTimeout(done, 50, 1))])));
    return isOpen.reduce((sum, one) => sum + one, 0);
  };
  console.log(`${reads} reads at load; ${await alive()} of ${seen.streams.length} streams are open with 5 tabs`);
  assert.equal(await alive(), 1);
  // The tab that holds the stream ends: another takes over.
  await pages.shift().close();
  await until("another tab's stream", async () => (await alive()) === 1);
  await server.like(10, "post:1");
  for (const page of pages) await shows(page, "post:1", { number: "2" });
}));

test("500 buttons are made without a long task", () => withServer({ html: pageOf(Array.from({ length: 500 }, (_, i) => `post:${i + 1}`), 'viewer="7"') }, async ({ open, seen }) => {
  const page = await open("/livez");
  await page.addInitScript(() => {
    window.tasks = [];
    new PerformanceObserver((list) => window.tasks.push(...list.getEntries().map(({ duration }) => duration))).observe({ type: "longtask", buffered: true });
  });
  await page.goto(page.url().replace("/livez", "/page"));
  await shows(page, "post:1", { state: "ready" });
  await shows(page, "post:500", { state: "ready" });
  const tasks = await page.evaluate(() => window.tasks);
  console.log(`500 buttons: ${seen.reads.length} reads, long tasks of ${JSON.stringify(tasks)} ms (aim: none over 50)`);
  assert.ok(seen.reads.length <= 10, `${seen.reads.length} reads`);
}));

test("it works on a page of another origin, under a strict policy, and says so to nobody else", async () => {
  let server;
  const other = await site(() => `<!doctype html><html lang="en"><head><title>Another site</title>
    <meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src ${server.url}; connect-src ${server.url}; require-trusted-types-for 'script'; trusted-types 'none'">
    <script type="module" src="${server.url}/like-button.js"></script></head>
    <body><like-button content="post:1" viewer="7" label="Like post:1"></like-button></body></html>`);
  try {
    await withServer({ args: ["--cors-origins", other.url] }, async (rig) => {
      ({ server } = rig);
      const page = await rig.open(other.url);
      await shows(page, "post:1", { number: "0", state: "ready" });
      await button(page, "post:1").click();
      await until("the server to have it", async () => (await server.likes("post:1", 7)).liked);
      await server.like(8, "post:1");
      await shows(page, "post:1", { number: "2", state: "ready" });
    });
    // Where the server does not know the site, the page is told nothing and says so.
    await withServer({}, async (rig) => {
      ({ server } = rig);
      const page = await rig.open(other.url);
      const [{ request }] = await until("a read", () => rig.seen.reads.length > 0 && rig.seen.reads);
      await until("it to be refused", () => request.failure());
      assert.equal((await shown(page, "post:1")).state, "loading");
    });
  } finally {
    other.close();
  }
});

test("buttons come, go and change while requests are under way", () => withServer({ html: pageOf(["post:1", "post:1", "post:2"]) }, async ({ server, open }) => {
  const page = await open();
  await shows(page, "post:2", { state: "ready" });
  await page.evaluate(() => {
    const [first, second, third] = document.querySelectorAll("like-button");
    first.toggle();
    first.remove();
    third.setAttribute("content", "post:3");
    third.toggle();
    third.setAttribute("content", "post:2");
    second.before(first);
  });
  await until("the server to have both", async () => (await server.likes("post:1", 7)).liked && (await server.likes("post:3", 7)).liked);
  const all = await page.evaluate(() => [...document.querySelectorAll("like-button")].map((element) => [element.getAttribute("content"), element.shown.liked]));
  assert.deepEqual(all, [["post:1", true], ["post:1", true], ["post:2", false]]);
}));

test("the script has a name that stays and one that may be kept for ever", () => withServer({}, async ({ server }) => {
  const file = await fetch(`${server.url}/like-button.js`);
  const name = file.headers.get("Content-Location");
  const text = await file.text();
  assert.match(name, /^\/like-button-[0-9a-f]{16}\.js$/);
  assert.equal(file.headers.get("Access-Control-Allow-Origin"), "*");
  assert.equal(file.headers.get("Content-Encoding"), "gzip");
  const twin = await fetch(server.url + name);
  assert.match(twin.headers.get("Cache-Control"), /immutable/);
  assert.equal(await twin.text(), text);
  assert.equal((await fetch(`${server.url}/like-button-0123456789abcdef.js`)).status, 404);
  const known = await fetch(`${server.url}/like-button.js`, { headers: { "If-None-Match": file.headers.get("ETag") } });
  assert.deepEqual([known.status, await known.text()], [304, ""]);
}));
