// What the documentation says to copy, copied: the examples for React, Vue and Svelte run as they are printed, but for the
// server's name.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { build } from "esbuild";
import { compile } from "svelte/compiler";

import { shows, until, withServer } from "./rig.js";

const web = new URL("..", import.meta.url).pathname;
const docs = readFileSync(new URL("../../docs/like-button.md", import.meta.url), "utf8");

/** The one example in a language. */
function example(language) {
  const found = [...docs.matchAll(/```(\w+)\n([^]*?)```/g)].filter(([, name]) => name === language);
  assert.equal(found.length, 1, `one example in ${language}`);
  return found[0][2];
}

async function bundle(entry, files, api) {
  const here = {
    name: "here",
    setup(build) {
      build.onResolve({ filter: /^(entry|example)$/ }, ({ path }) => ({ path, namespace: "here" }));
      build.onLoad({ filter: /.*/, namespace: "here" }, ({ path }) => ({ ...(path === "entry" ? { contents: entry, loader: "js" } : files), resolveDir: web }));
      build.onResolve({ filter: /^likewise-like-button$/ }, () => ({ path: join(web, "dist/like-button.js") }));
    },
  };
  const { outputFiles } = await build({ entryPoints: ["entry"], bundle: true, write: false, format: "esm", jsx: "automatic", plugins: [here], define: { "process.env.NODE_ENV": '"production"', __VUE_OPTIONS_API__: "true", __VUE_PROD_DEVTOOLS__: "false", __VUE_PROD_HYDRATION_MISMATCH_DETAILS__: "false" } });
  return outputFiles[0].text.replaceAll("https://likes.example", api);
}

/** Runs the bundle on a page and likes with the button that it makes. */
async function works(name, make) {
  await withServer({ html: `<!doctype html><html lang="en"><head><title>${name}</title><script type="module" src="/app.js"></script></head><body><div id="app"></div></body></html>`, csp: "" }, async ({ server, context, open }) => {
    const text = await make(server.url);
    await context.route("**/app.js", (route) => route.fulfill({ contentType: "text/javascript", body: text }));
    const page = await open();
    const heart = page.getByRole("button", { name: /Like/ });
    await heart.waitFor();
    // The examples name no viewer: a token does.
    await page.evaluate(() => document.querySelector("like-button").setAttribute("viewer", "7"));
    await shows(page, "post:42", { number: "0", state: "ready" });
    await heart.click();
    await until("the server to have it", async () => (await server.likes("post:42", 7)).liked);
    await page.evaluate(() => window.show(43));
    await shows(page, "post:43", { number: "0", state: "ready" });
    await page.evaluate(() => window.hide());
    await until("it to be gone", async () => (await page.locator("like-button").count()) === 0);
  });
}

test("React: the example is typed, runs, changes and goes", () => works("React", async (api) => {
  const source = example("tsx");
  const dir = mkdtempSync(join(web, "node_modules/.example-"));
  try {
    writeFileSync(join(dir, "example.tsx"), source);
    writeFileSync(join(dir, "tsconfig.json"), JSON.stringify({
      compilerOptions: { strict: true, noEmit: true, jsx: "react-jsx", module: "ES2022", moduleResolution: "bundler", target: "ES2022", lib: ["ES2022", "DOM", "DOM.Iterable"], types: [], paths: { "likewise-like-button": ["../../dist/like-button.d.ts"] } },
      include: ["example.tsx"],
    }));
    execFileSync(join(web, "node_modules/.bin/tsc"), ["-p", dir], { stdio: "inherit" });
  } finally {
    rmSync(dir, { recursive: true });
  }
  const entry = `
    import { createElement, useState } from "react";
    import { createRoot } from "react-dom/client";
    import { Like } from "example";
    function App() {
      const [id, show] = useState(42);
      window.show = (id) => show(String(id));
      return createElement(Like, { id });
    }
    const root = createRoot(document.getElementById("app"));
    window.hide = () => root.unmount();
    root.render(createElement(App));`;
  return bundle(entry, { contents: source, loader: "tsx" }, api);
}));

test("Vue: the example runs, changes and goes", () => works("Vue", (api) => {
  const [, template] = example("vue").match(/<template>([^]*)<\/template>/);
  const entry = `
    import { createApp, ref } from "vue/dist/vue.esm-bundler.js";
    import "likewise-like-button";
    const id = ref(42);
    window.show = (next) => { id.value = next; };
    const app = createApp({ template: ${JSON.stringify(template)}, setup: () => ({ id, report() {} }) });
    app.config.compilerOptions.isCustomElement = (tag) => tag === "like-button";
    window.hide = () => app.unmount();
    app.mount("#app");`;
  return bundle(entry, {}, api);
}));

test("Svelte: the example runs, changes and goes", () => works("Svelte", (api) => {
  const source = example("svelte").replace("let { id } = $props();", "let { id } = $props(); const report = () => {};");
  const { js } = compile(source, { generate: "client", filename: "Like.svelte" });
  const entry = `
    import { mount, unmount } from "svelte";
    import Like from "example";
    const target = document.getElementById("app");
    let app = mount(Like, { target, props: { id: 42 } });
    window.show = async (id) => { await unmount(app); app = mount(Like, { target, props: { id } }); document.querySelector("like-button").setAttribute("viewer", "7"); };
    window.hide = () => unmount(app);`;
  return bundle(entry, { contents: js.code, loader: "js" }, api);
}));
