// The demo page in a real browser against the real server. Each test starts its own server.
//
// LIKEWISE_TEST_BINARY names the server, CHROMIUM the browser, SCREENSHOTS (if set) a folder for pictures.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";

import { chromium } from "playwright-core";

const { LIKEWISE_TEST_BINARY, CHROMIUM = "/usr/bin/chromium", SCREENSHOTS } = process.env;
let browser;

before(async () => {
  browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update"],
  });
});
after(() => browser?.close());

async function start(dataDir, listen = "127.0.0.1:0") {
  const child = spawn(LIKEWISE_TEST_BINARY, ["serve", "--listen", listen, "--admin-listen", "127.0.0.1:0", "--data-dir", dataDir],
    { stdio: ["ignore", "pipe", "inherit"] });
  const lines = createInterface({ input: child.stdout });
  const ended = once(child, "exit").then(([code]) => { throw new Error(`the server ended with ${code}`); });
  const [first] = await Promise.race([once(lines, "line"), ended]);
  ended.catch(() => {});
  const url = first.match(/http:\S+/)[0];
  return { url, child, end: async (signal = "SIGTERM") => { child.kill(signal); await once(child, "exit"); } };
}

async function withServer(story) {
  const dataDir = await mkdtemp(join(tmpdir(), "likewise-page-"));
  const server = await start(dataDir);
  const context = await browser.newContext();
  const problems = [];
  const open = async () => {
    const page = await context.newPage();
    page.on("pageerror", (error) => problems.push(String(error)));
    page.on("console", (message) => message.type() === "error" && !/Failed to load resource/.test(message.text()) && problems.push(message.text()));
    page.on("request", (request) => new URL(request.url()).host !== new URL(server.url).host && !request.url().startsWith("data:") && problems.push(`foreign request ${request.url()}`));
    await page.goto(server.url);
    await page.waitForFunction(() => document.querySelector("output")?.textContent !== "");
    return page;
  };
  try {
    await story({ server, dataDir, open });
    assert.deepEqual(problems, []);
  } finally {
    await context.close();
    if (server.child.exitCode === null && server.child.signalCode === null) await server.end();
    await rm(dataDir, { recursive: true, force: true });
  }
}

const like = (page, title) => page.getByRole("button", { name: `Like ${title}`, exact: true });
const count = (page, title) => page.locator("article", { hasText: title }).locator("output");
const pressed = (locator, value) => locator.and(locator.page().locator(`[aria-pressed="${value}"]`)).waitFor();
const shows = (page, title, text) => count(page, title).getByText(text, { exact: true }).waitFor();
const truth = async (server, id) => (await (await fetch(`${server.url}/v1/contents/post/${id}/likes`)).json()).count;

test("a click likes, a second one takes it back, and the server agrees", () => withServer(async ({ server, open }) => {
  const page = await open();
  const button = like(page, "The answer");
  await pressed(button, false);
  await button.click();
  assert.equal(await button.getAttribute("aria-pressed"), "true", "shown at once");
  await shows(page, "The answer", "1 like");
  await page.waitForFunction(async () => (await (await fetch("/v1/contents/post/42/likes")).json()).count === 1);
  if (SCREENSHOTS) await page.screenshot({ path: join(SCREENSHOTS, "demo.png"), fullPage: true });
  await page.reload();
  await pressed(like(page, "The answer"), true);
  await like(page, "The answer").click();
  await shows(page, "The answer", "0 likes");
  await page.waitForFunction(async () => (await (await fetch("/v1/contents/post/42/likes")).json()).count === 0);
  assert.equal(await truth(server, 42), 0);
}));

test("it works with the keyboard alone, and an id past 2^53 is not bent", () => withServer(async ({ server, open }) => {
  const page = await open();
  await like(page, "A large id").focus();
  await page.keyboard.press("Enter");
  await pressed(like(page, "A large id"), true);
  await page.waitForFunction(async () => (await (await fetch("/v1/contents/post/9007199254740993/likes")).json()).count === 1);
  assert.equal(await truth(server, "9007199254740992"), 0);
}));

test("a like in one page moves the count in another", () => withServer(async ({ open }) => {
  const [first, second] = [await open(), await open()];
  await second.getByLabel("You are user").fill("77");
  await second.getByLabel("You are user").press("Tab");
  await like(first, "Hello, world").click();
  await shows(second, "Hello, world", "1 like");
  await pressed(like(second, "Hello, world"), false);
  await like(second, "Hello, world").click();
  await shows(first, "Hello, world", "2 likes");
}));

test("a like sent while the server is away arrives once it is back", () => withServer(async ({ server, dataDir, open }) => {
  const page = await open();
  await server.end("SIGKILL");
  await like(page, "Soup for six").click();
  await page.getByRole("status").getByText(/trying again/).waitFor();
  await pressed(like(page, "Soup for six"), true);
  const again = await start(dataDir, new URL(server.url).host);
  try {
    await page.waitForFunction(async () => {
      try {
        return (await (await fetch("/v1/contents/post/3/likes")).json()).count === 1;
      } catch {
        return false;
      }
    });
    await shows(page, "Soup for six", "1 like");
  } finally {
    await again.end();
  }
}));
