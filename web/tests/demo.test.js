// The demo, as somebody finds it who has just started the server.

import assert from "node:assert/strict";
import { test } from "node:test";

import { button, picture, shown, shows, until, violations, withServer } from "./rig.js";

test("from the start of the server to a page that moves", () => withServer({ context: { viewport: { width: 1000, height: 800 } } }, async ({ server, open }) => {
  const page = await open("/");
  await shows(page, "post:1", { number: "0" });
  await page.getByRole("button", { name: "Make it busy" }).click();
  await until("the counts to move", async () => (await shown(page, "post:1")).count > 10);
  console.log(`a moving page ${Date.now() - server.startedAt} ms after the server was started`);
  assert.ok(Date.now() - server.startedAt < 3 * 10_000);
  await page.getByRole("button", { name: "Like A bridge at dawn" }).click();
  await shows(page, "post:2", { pressed: "true" });
  await until("a thousand likes", async () => (await shown(page, "post:1")).count > 1000);
  const before = [Date.now(), (await server.likes("post:1")).count];
  await until("the next thousand", async () => (await server.likes("post:1")).count > before[1] + 1000);
  console.log(`half of the crowd likes one post: ${Math.round(((await server.likes("post:1")).count - before[1]) / ((Date.now() - before[0]) / 1000))} a second`);
  await picture(page, "demo");
  assert.deepEqual((await violations(page)).found, []);
  await page.getByRole("button", { name: "Make it busy" }).click();
  await until("the crowd to leave", async () => (await server.json("/demo/state")).busySeconds === 0);
}));

test("the network's failures are shown, and the outbox empties when it is back", () => withServer({ context: { viewport: { width: 1000, height: 800 } } }, async ({ server, open }) => {
  const page = await open("/");
  await shows(page, "post:3", { number: "0", state: "ready" });
  await page.getByLabel("This page is").selectOption("offline");
  await page.getByRole("button", { name: "Like Soup for six" }).click();
  await shows(page, "post:3", { state: "queued", liked: true });
  await page.getByRole("cell", { name: "post:3" }).waitFor();
  await picture(page, "demo-offline");
  await page.getByLabel("This page is").selectOption("fine");
  await shows(page, "post:3", { state: "ready", count: 1 });
  await page.getByText("the server has all that you did").waitFor();
  await page.getByLabel("This page is").selectOption("flaky");
  for (const content of ["post:1", "post:2", "post:42"]) await page.evaluate((content) => document.querySelector(`like-button[content="${content}"]`).toggle(), content);
  for (const content of ["post:1", "post:2", "post:42"]) await until(`${content} to arrive`, async () => (await server.likes(content)).count === 1);
  assert.equal(server.events("post:42").length, 1);
}));

test("a like in one page moves the count in another", () => withServer({}, async ({ open }) => {
  const [first, second] = [await open("/"), await open("/")];
  await second.getByLabel("User").fill("77");
  await second.getByLabel("User").press("Tab");
  await button(first, "Hello, world").click();
  await shows(second, "post:1", { number: "1", pressed: "false" });
  await button(second, "Hello, world").click();
  await shows(first, "post:1", { number: "2", pressed: "true" });
}));

test("with authentication there is no crowd unless somebody wants it, and one signs in by a token", () => withServer({ args: ["--keys-file", `/tmp/likewise-none-${process.pid}.json`] }, async ({ server, open }) => {
  const page = await open("/");
  await shows(page, "post:1", { number: "0" });
  assert.equal(await page.getByRole("button", { name: "Make it busy" }).isVisible(), false);
  assert.ok(await page.getByLabel("Token").isVisible());
  assert.equal((await fetch(`${server.url}/demo/busy`, { method: "PUT" })).status, 404);
}));
