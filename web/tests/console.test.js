// The operator's console on the admin port.

import assert from "node:assert/strict";
import { test } from "node:test";

import { button, picture, shows, until, violations, withServer } from "./rig.js";

const value = (page, title) => page.locator("figure", { hasText: title }).locator(".value").textContent();

test("it shows what the server does, and needs nothing else", () => withServer({ context: { viewport: { width: 1200, height: 1000 } } }, async ({ server, open }) => {
  const demo = await open("/");
  await shows(demo, "post:42", { state: "ready" });
  const page = await open(server.admin);
  await page.getByText("Live, every 2 s").waitFor();
  await page.getByText("Nothing was liked").waitFor();
  await page.getByText("The log is empty.").waitFor();
  await button(demo, "The answer").click();
  await page.getByRole("cell", { name: "post:42" }).first().waitFor();
  await page.getByRole("cell", { name: "liked", exact: true }).waitFor();
  await demo.getByRole("button", { name: "Make it busy" }).click();
  await until("the rate", async () => parseFloat((await value(page, "Events projected")).replace(",", "")) > 500);
  await until("the time until counts show it", async () => /ms|s$/.test(await value(page, "p99")));
  await until("the hottest", async () => (await page.locator("#hottest tr").first().textContent()).startsWith("post:1"));
  assert.equal(await page.locator("#lag tr").count(), 16);
  assert.equal(await page.locator("#log tr").count(), 15);
  await page.getByRole("cell", { name: "Dead letters" }).waitFor();
  await until("two looks more", async () => (await page.locator("polyline").first().getAttribute("points")).split(" ").length > 4);
  await picture(page, "console");
  assert.deepEqual((await violations(page)).found, []);
  console.log(`until counts show it: p50 ${await value(page, "p50")}, p99 ${await value(page, "p99")} (oldest of each commit)`);
  await server.stop("SIGKILL");
  await page.getByText("cannot be reached").waitFor();
}));

test("with authentication it asks for an admin's credential and keeps it in memory", () => withServer({ args: ["--keys-file", `/tmp/likewise-keys-${process.pid}.json`] }, async ({ server, open }) => {
  const key = server.command("key", "create", "--name", "console", "--scope", "admin").match(/\S{20,}/)[0];
  const page = await open(server.admin);
  await page.getByText("This port is for administrators.").waitFor();
  assert.equal((await fetch(`${server.admin}/console/state`)).status, 401);
  await page.getByLabel("Admin token or key").fill(key);
  await until("the key to be taken", async () => {
    await page.getByRole("button", { name: "Look" }).click({ timeout: 1000 }).catch(() => {});
    return page.getByText("Live, every 2 s").isVisible();
  });
  assert.equal(await page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie])), '[{},{},""]');
}));
