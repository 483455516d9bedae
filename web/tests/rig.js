// What the tests stand on: real servers, a real browser, and pages of their own.
//
// LIKEWISE_TEST_BINARY names the server, CHROMIUM the browser, SCREENSHOTS (if set) a folder for pictures.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer, request as httpRequest } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before } from "node:test";

import { chromium } from "playwright-core";

const { LIKEWISE_TEST_BINARY = new URL("../../target/debug/likewise", import.meta.url).pathname, CHROMIUM = "/usr/bin/chromium", SCREENSHOTS } = process.env;
/** What a strict page says: no inline script or style, nothing from elsewhere, and no text that becomes a script. */
const STRICT = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; require-trusted-types-for 'script'; trusted-types 'none'";
const PATIENCE_MS = 30_000;

let browser;
before(async () => {
  browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update"],
  });
});
after(() => browser?.close());

export const pause = (ms) => new Promise((done) => setTimeout(done, ms));

/** Waits until `look` returns what is true; fails with what it returned last. */
export async function until(what, look, ms = PATIENCE_MS) {
  const started = Date.now();
  let last;
  for (;;) {
    try {
      last = await look();
      if (last) return last;
    } catch (error) {
      last = error;
    }
    if (Date.now() - started > ms) assert.fail(`waited ${ms} ms for ${what}; last seen: ${last}`);
    await pause(20);
  }
}

export class Server {
  static async start(dataDir, ...args) {
    const server = new Server();
    server.dataDir = dataDir;
    server.args = args;
    await server.run("127.0.0.1:0");
    return server;
  }

  async run(listen) {
    const started = Date.now();
    this.child = spawn(
      LIKEWISE_TEST_BINARY,
      ["serve", "--listen", listen, "--admin-listen", "127.0.0.1:0", "--data-dir", this.dataDir, ...this.args],
      { stdio: ["ignore", "pipe", "inherit"], env: { ...process.env, LIKEWISE_LOG_LEVEL: "error" } },
    );
    const lines = createInterface({ input: this.child.stdout });
    this.ended = once(this.child, "exit").then(([code, signal]) => { throw new Error(`the server ended with ${code ?? signal}`); });
    this.ended.catch(() => {});
    const greeting = new Promise((done) => {
      let text = "";
      lines.on("line", (line) => {
        text += `${line}\n`;
        const [, url] = text.match(/listens on (http:\S+)/) ?? [];
        const [, admin] = text.match(/Metrics +(http:\S+)\/metrics/) ?? [];
        if (url && admin) done({ url, admin });
      });
    });
    Object.assign(this, await Promise.race([greeting, this.ended]));
    this.startedAt = started;
  }

  async stop(signal = "SIGTERM") {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    this.child.kill(signal);
    await once(this.child, "exit");
  }

  /** On the same port and data. */
  async restart() {
    await this.run(new URL(this.url).host);
  }

  async json(path, init) {
    return (await fetch(this.url + path, init)).json();
  }

  /** A content's likes as the server has them. */
  async likes(content, viewer) {
    const [type, id] = content.split(":");
    return this.json(`/v1/contents/${type}/${id}/likes${viewer ? `?viewer=${viewer}` : ""}`);
  }

  /** Somebody likes it, and it is projected. */
  async like(user, content, liked = true) {
    const [type, id] = content.split(":");
    const path = `/v1/contents/${type}/${id}/like?viewer=${user}`;
    const answer = await fetch(this.url + path, { method: liked ? "PUT" : "DELETE", headers: { Prefer: "wait=5" } });
    assert.equal(answer.status, 200, await answer.text());
  }

  /** All events of a content, in order. */
  events(content) {
    const lines = this.command("tail", "--json", "--lines", "all", "--content", content).split("\n").filter(Boolean);
    return lines.map((line) => JSON.parse(line).data);
  }

  /** Runs the program with this server's data and settings. */
  command(...args) {
    return execFileSync(LIKEWISE_TEST_BINARY, [...args, "--data-dir", this.dataDir, ...this.args], { encoding: "utf8" });
  }
}

/**
 * Runs `story` with a server of its own and a browser context of its own, and fails on any error that a page reports.
 * `html` is a page of the server's origin, under a strict policy.
 */
export async function withServer({ args = [], html = "", csp = STRICT, context: options = {}, problems = [] }, story) {
  const dataDir = await mkdtemp(join(tmpdir(), "likewise-page-"));
  const server = await Server.start(dataDir, ...args);
  const context = await browser.newContext(options);
  const seen = { batches: [], reads: [], streams: [], all: [] };
  const watch = (page) => {
    page.on("pageerror", (error) => problems.push(String(error)));
    page.on("console", (message) => {
      if (message.type() === "error" && !/Failed to load resource|CORS policy|net::ERR/.test(message.text())) problems.push(message.text());
    });
  };
  context.on("request", (request) => {
    const { pathname } = new URL(request.url());
    const note = { at: Date.now(), url: request.url(), body: request.postDataJSON?.() ?? null, request };
    seen.all.push(note);
    if (pathname === "/v1/likes/batch") seen.batches.push(note);
    if (pathname === "/v1/likes") seen.reads.push(note);
    if (pathname === "/v1/likes/stream") seen.streams.push(note);
  });
  if (html) {
    await context.route(`${server.url}/page`, (route) =>
      route.fulfill({ contentType: "text/html; charset=utf-8", headers: { "Content-Security-Policy": csp }, body: html }));
  }
  const open = async (path = "/page") => {
    const page = await context.newPage();
    watch(page);
    await page.goto(new URL(path, server.url).href);
    return page;
  };
  try {
    await story({ server, context, open, seen, problems }).catch(async (error) => {
      for (const { url, request } of seen.all.slice(-20)) {
        const became = await Promise.race([request.response().then((response) => response?.status(), String), pause(50)]);
        console.log(`${request.method()} ${url} ${became ?? "open"} ${request.failure()?.errorText ?? ""}`);
      }
      throw error;
    });
    const foreign = seen.all.filter(({ url }) => !url.startsWith("data:") && !url.startsWith("http://127.0.0.1:") && !url.startsWith("http://localhost:"));
    assert.deepEqual(foreign.map(({ url }) => url), [], "requests to third parties");
    assert.deepEqual(problems, []);
  } finally {
    await context.close();
    await server.stop();
    await rm(dataDir, { recursive: true, force: true });
  }
}

/** A page with one button for each of `contents`. */
export const pageOf = (contents, attributes = 'viewer="7"', more = "") => `<!doctype html>
<html lang="en"><head><title>Likes</title><script type="module" src="/like-button.js"></script>${more}</head>
<body><main><h1>Likes</h1>${contents.map((content) => `<div><like-button content="${content}" ${attributes} label="Like ${content}"></like-button></div>`).join("\n")}</main></body></html>`;

export const button = (page, content) => page.getByRole("button", { name: `Like ${content}`, exact: true });

/** What a button shows. */
export const shown = (page, content) => page.evaluate((content) => {
  const element = document.querySelector(`like-button[content="${content}"]`);
  const { shadowRoot } = element;
  return {
    ...element.shown,
    pressed: shadowRoot?.querySelector("button").getAttribute("aria-pressed"),
    number: shadowRoot?.querySelector("[part=count] span").textContent,
    hint: shadowRoot?.querySelector("[part=hint]").textContent,
    said: shadowRoot?.querySelector("[role=status]").textContent,
  };
}, content);

/** Waits until a button shows all of `expected`. */
export async function shows(page, content, expected, ms) {
  let last;
  await until(`${content} to show ${JSON.stringify(expected)}`, async () => {
    last = await shown(page, content);
    return Object.entries(expected).every(([key, value]) => last[key] === value) || Promise.reject(JSON.stringify(last));
  }, ms);
}

/** A site of another origin; `html` may use the server's URL. */
export async function site(html) {
  const http = createServer((_request, response) => {
    response.setHeader("Content-Type", "text/html; charset=utf-8");
    response.end(html());
  });
  http.listen(0, "127.0.0.1");
  await once(http, "listening");
  return { url: `http://localhost:${http.address().port}`, close: () => http.close() };
}

/** A way to the server on which requests wait while `hold` says so. */
export async function slowWay(target, hold) {
  const http = createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const body = Buffer.concat(chunks);
    await hold(request, body);
    const { host, ...headers } = request.headers;
    const forward = httpRequest(target + request.url, { method: request.method, headers }, (answer) => {
      response.writeHead(answer.statusCode, answer.headers);
      answer.pipe(response);
    });
    forward.on("error", () => response.destroy());
    response.on("close", () => forward.destroy());
    forward.end(body);
  });
  http.listen(0, "127.0.0.1");
  await once(http, "listening");
  return { url: `http://127.0.0.1:${http.address().port}`, close: () => { http.close(); http.closeAllConnections(); } };
}

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
/** What axe finds. It runs in a world of its own, which the page's policy does not bind. */
export async function violations(page) {
  const session = await page.context().newCDPSession(page);
  const { frameTree } = await session.send("Page.getFrameTree");
  const { executionContextId } = await session.send("Page.createIsolatedWorld", { frameId: frameTree.frame.id });
  const run = async (expression) => {
    const { result, exceptionDetails } = await session.send("Runtime.evaluate", { expression, contextId: executionContextId, awaitPromise: true, returnByValue: true });
    assert.equal(exceptionDetails, undefined, exceptionDetails?.exception?.description);
    return result.value;
  };
  await run(axe);
  return run(`axe.run().then(({ violations, passes }) => ({ passes: passes.length, found: violations.map(({ id, nodes }) => id + ": " + nodes.map((node) => node.html + " " + node.failureSummary).join("; ")) }))`);
}

export async function picture(page, name) {
  if (SCREENSHOTS) await page.screenshot({ path: join(SCREENSHOTS, `${name}.png`) });
}

/** Answers the next sends with `answers`, one after the other, instead of the server's; null lets one through. */
export async function answerSends(context, ...answers) {
  await context.route("**/v1/likes/batch", async (route) => {
    const answer = answers.length > 1 ? answers.shift() : answers[0];
    if (answer === null || answer === undefined) return route.fallback();
    if (typeof answer === "function") return answer(route);
    await route.fulfill({
      status: answer.status,
      contentType: "application/problem+json",
      headers: answer.retryAfter ? { "Retry-After": String(typeof answer.retryAfter === "function" ? answer.retryAfter() : answer.retryAfter) } : {},
      body: JSON.stringify({ type: `/problems/${answer.type ?? "test"}`, status: answer.status, title: "A test" }),
    });
  });
}
