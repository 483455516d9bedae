// What is committed and published is what the source says, and small.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { gzipSync } from "node:zlib";

const web = new URL("..", import.meta.url).pathname;
const SIZE_MAX = 6 * 1024;

test("dist/ is what the source builds, and its types are sound", () => {
  const out = mkdtempSync(join(tmpdir(), "likewise-dist-"));
  try {
    execFileSync("node", ["build.js", "--out", out], { cwd: web, stdio: "inherit" });
    const names = readdirSync(out).sort();
    assert.deepEqual(names, readdirSync(join(web, "dist")).sort());
    for (const name of names) {
      assert.equal(readFileSync(join(web, "dist", name), "utf8"), readFileSync(join(out, name), "utf8"), `dist/${name} is not what src/ builds: run npm run build in web/`);
    }
  } finally {
    rmSync(out, { recursive: true });
  }
});

test("the button is small and needs nothing", () => {
  const text = readFileSync(join(web, "dist/like-button.js"));
  const size = gzipSync(text, { level: 9 }).length;
  console.log(`like-button.js: ${text.length} bytes, ${size} packed (at most ${SIZE_MAX})`);
  assert.ok(size <= SIZE_MAX, `${size} bytes`);
  assert.doesNotMatch(String(text), /\bimport\s*[("'{*]|innerHTML|eval\(|new Function|document\.write/);
});

test("it can be imported where pages are rendered, and defines nothing there", async () => {
  const { LikeButton } = await import("likewise-like-button");
  assert.deepEqual(LikeButton.strings, {});
});

test("the package has what it says and no more", () => {
  const [{ files }] = JSON.parse(execFileSync("npm", ["pack", "--dry-run", "--json"], { cwd: web, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }));
  assert.deepEqual(files.map(({ path }) => path).sort(), ["README.md", "dist/like-button.d.ts", "dist/like-button.js", "dist/server.js", "dist/types.d.ts", "package.json"]);
});
