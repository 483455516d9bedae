// Who one is: tokens, providers, and what is forgotten at sign-out. Every test starts its own server.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { answerSends, button, pageOf, shown, shows, until, withServer } from "./rig.js";

async function withAuth(options, story) {
  const dir = mkdtempSync(join(tmpdir(), "likewise-secret-"));
  const file = join(dir, "secret");
  writeFileSync(file, randomBytes(32).toString("hex"), { mode: 0o600 });
  const args = ["--auth-secret-file", file, "--auth-issuer", "https://issuer.example", "--auth-audience", "likes"];
  try {
    await withServer({ html: pageOf(["post:1", "post:2"], ""), args, ...options }, (rig) => {
      const token = (user, ...more) => rig.server.command("token", "--user", String(user), ...more).trim();
      const likes = (content, user) => rig.server.json(`/v1/contents/${content.replace(":", "/")}/likes`, { headers: { Authorization: `Bearer ${token(user)}` } });
      return story({ ...rig, token, likes });
    });
  } finally {
    rmSync(dir, { recursive: true });
  }
}

const be = (page, token) => page.evaluate((token) => { document.querySelector("like-button").token = token; }, token);
const storage = (page) => page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie]));

test("a token for one button is for all of the page, and is kept nowhere", () => withAuth({}, async ({ open, token, likes, seen, context }) => {
  const page = await open();
  await shows(page, "post:1", { number: "0", state: "ready" });
  const own = token(7);
  await be(page, own);
  await context.setOffline(true);
  await button(page, "post:2").click();
  await shows(page, "post:2", { liked: true, state: "queued" });
  const kept = await storage(page);
  assert.match(kept, /post:2/);
  assert.ok(!kept.includes(own) && !kept.includes(own.split(".")[2]) && !kept.includes("Bearer"), "no token in the storage");
  await context.setOffline(false);
  await until("the server to have it", async () => (await likes("post:2", 7)).liked);
  await shows(page, "post:2", { liked: true, count: 1, state: "ready" });
  assert.ok(seen.batches.every(({ body }) => body.commands.every((command) => !("userId" in command))));
}));

test("a provider is asked at first, and again when a token is refused", () => withAuth({}, async ({ open, token, likes }) => {
  const page = await open();
  const tokens = ["e30.eyJzdWIiOiI3In0.x", token(7)];
  await page.exposeFunction("give", () => tokens.shift() ?? null);
  await page.evaluate(() => { document.querySelector("like-button").tokenProvider = () => window.give(); });
  // Clicked before anybody has said who it is.
  await button(page, "post:1").click();
  await until("the server to have it", async () => (await likes("post:1", 7)).liked);
  await shows(page, "post:1", { liked: true, count: 1, state: "ready" });
  assert.deepEqual(tokens, []);
}));

test("a provider that fails is no sign-out", () => withAuth({}, async ({ open, token, likes, context }) => {
  const page = await open();
  const answers = [token(7), null, token(7)];
  await page.exposeFunction("give", () => answers.shift());
  await page.evaluate(() => { document.querySelector("like-button").tokenProvider = async () => (await window.give()) ?? Promise.reject(new Error("away")); });
  await shows(page, "post:1", { state: "ready" });
  await answerSends(context, { status: 401 }, { status: 503, retryAfter: 1 }, null);
  await button(page, "post:1").click();
  await shows(page, "post:1", { liked: true, state: "queued" });
  await until("the server to have it", async () => (await likes("post:1", 7)).liked);
}));

test("a token that is refused is told to the page, and the like waits for the next one", () => withAuth({}, async ({ open, token, likes, seen }) => {
  const page = await open();
  await be(page, "e30.eyJzdWIiOiI3In0.x");
  const told = page.evaluate(() => new Promise((done) => document.addEventListener("like-auth-required", ({ detail }) => done(detail.content), { once: true })));
  await shows(page, "post:1", { count: 0 });
  await be(page, "e30.eyJzdWIiOiI3In0.x");
  await button(page, "post:1").click();
  assert.equal(await told, "post:1");
  const sends = seen.batches.length;
  assert.ok(sends <= 1);
  await be(page, token(7));
  await until("the server to have it", async () => (await likes("post:1", 7)).liked);
  await shows(page, "post:1", { liked: true, count: 1, state: "ready" });
}));

test("an old token costs nothing that waits to be sent", () => withAuth({}, async ({ open, token, likes, context, seen }) => {
  await context.addInitScript(() => {
    if (localStorage.length) return;
    localStorage.setItem(`likewise ${location.origin} 7 post:2`, JSON.stringify({ v: 1, id: "0190a8a0-0000-4000-a000-000000000001", liked: true, at: Date.now() - 1000, tries: 1, next: 0 }));
  });
  const page = await open();
  await be(page, "e30.eyJzdWIiOiI3In0.x");
  await shows(page, "post:2", { liked: true, count: 1 });
  await until("a refused read and a refused send", () => seen.reads.length >= 2 && seen.batches.length >= 1);
  await be(page, token(7));
  await until("the server to have it", async () => (await likes("post:2", 7)).liked);
}));

for (const [name, start] of [
  ["while a like is on its way", async ({ page, context, token, release }) => {
    await context.route("**/v1/likes/batch", async (route) => { await release.done; await route.fallback().catch(() => {}); });
    await be(page, token(7));
    await button(page, "post:1").click();
    await shows(page, "post:1", { liked: true, state: "pending" });
    await be(page, token(8));
  }],
  ["and the old token is refused", async ({ page, context, token }) => {
    await answerSends(context, { status: 401 }, null);
    const tokens = [token(7), token(8)];
    await page.exposeFunction("give", () => tokens.shift());
    await page.evaluate(() => { document.querySelector("like-button").tokenProvider = () => window.give(); });
    await shows(page, "post:1", { state: "ready" });
    await button(page, "post:1").click();
  }],
]) {
  test(`somebody else signs in ${name}: nothing is done under their name`, () => withAuth({}, async ({ server, open, token, likes, context }) => {
    const page = await open();
    const release = {};
    release.done = new Promise((done) => { release.now = done; });
    await start({ page, context, token, release });
    await shows(page, "post:1", { liked: false, state: "ready" });
    release.now();
    await button(page, "post:2").click();
    await until("the next like of the new one to arrive", async () => (await likes("post:2", 8)).liked);
    assert.equal((await likes("post:1", 8)).liked, false);
    assert.deepEqual(server.events("post:1").filter(({ userId }) => String(userId) === "8"), []);
    await shows(page, "post:1", { liked: false });
    await until("nothing of the old one to be kept", async () => !(await storage(page)).includes(" 7 post:1"));
  }));
}

test("a token that was set before the script came, or before there was a server, counts", () => withAuth({ html: pageOf(["post:1"], "") }, async ({ server, token, likes, context }) => {
  let release;
  const held = new Promise((done) => { release = done; });
  await context.route("**/like-button.js", async (route) => { await held; await route.fallback(); });
  const page = await context.newPage();
  await page.goto(`${server.url}/page`, { waitUntil: "commit" });
  await page.locator("like-button").waitFor({ state: "attached" });
  await be(page, token(7));
  release();
  await shows(page, "post:1", { state: "ready" });
  await button(page, "post:1").click();
  await until("the server to have it", async () => (await likes("post:1", 7)).liked);
  await page.evaluate((own) => {
    const late = document.createElement("like-button");
    late.token = own;
    late.setAttribute("api", location.origin);
    late.setAttribute("content", "post:2");
    document.querySelector("main").append(late);
  }, token(8));
  await shows(page, "post:1", { liked: false, count: 1 });
}));

test("what one wanted is forgotten when they sign out, and another's hearts are not shown", () => withAuth({}, async ({ server, open, token, likes, context }) => {
  const page = await open();
  await be(page, token(7));
  await button(page, "post:1").click();
  await until("the server to have it", async () => (await likes("post:1", 7)).liked);
  await context.setOffline(true);
  await button(page, "post:2").click();
  await shows(page, "post:2", { liked: true, state: "queued" });
  await be(page, null);
  await shows(page, "post:2", { liked: false });
  await shows(page, "post:1", { liked: false });
  await context.setOffline(false);
  await be(page, token(8));
  await shows(page, "post:1", { liked: false, count: 1, state: "ready" });
  await button(page, "post:1").click();
  await until("the server to have it", async () => (await likes("post:1", 8)).liked);
  assert.equal((await likes("post:2", 7)).liked, false);
  assert.equal(server.events("post:2").length, 0);
  // Another page finds leftovers of somebody else.
  await page.evaluate(() => localStorage.setItem(`likewise ${location.origin} 9 post:2`, JSON.stringify({ v: 1, id: "0190a8a0-0000-7000-a000-000000000001", liked: true, at: Date.now(), tries: 0, next: 0 })));
  const next = await open();
  await be(next, token(8));
  await shows(next, "post:1", { liked: true, state: "ready" });
  assert.equal(await next.evaluate(() => localStorage.getItem(`likewise ${location.origin} 9 post:2`)), null);
}));
