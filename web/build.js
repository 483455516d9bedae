// Builds dist/ from src/: one minified module, and its types. `node build.js --out DIR` writes somewhere else.

import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import { build } from "esbuild";
import { minify } from "terser";

const here = fileURLToPath(new URL(".", import.meta.url));
const { values } = parseArgs({ options: { out: { type: "string", default: join(here, "dist") } } });
rmSync(values.out, { recursive: true, force: true });
/** Members that neither pages, nor other tabs, nor the storage ever see. */
const INTERNAL =
  /^(accepted|announce|changed|held|hint|isQueued|isReady|isVisible|likedAt|listeners|lost|noun|resume|setProvider|setToken|settle|take|truth|unauthorized|views)$/;

const bundled = await build({
  absWorkingDir: here,
  entryPoints: ["src/like-button.ts"],
  bundle: true,
  format: "esm",
  target: "es2022",
  legalComments: "none",
  mangleProps: INTERNAL,
  write: false,
});
const { code } = await minify(bundled.outputFiles[0].text, {
  module: true,
  ecma: 2020,
  // Inlined functions are longer once they are packed.
  compress: { passes: 4, unsafe_arrows: true, unsafe_methods: true, pure_getters: true, inline: 0, reduce_funcs: false },
});
mkdirSync(values.out, { recursive: true });
writeFileSync(join(values.out, "like-button.js"), code);
// For servers that render pages: there is nothing to define there.
writeFileSync(join(values.out, "server.js"), "export class LikeButton {\n  static strings = {};\n}\n");
const types = mkdtempSync(join(tmpdir(), "likewise-types-"));
const tsc = join(here, "node_modules", ".bin", "tsc");
execFileSync(tsc, ["-p", here, "--emitDeclarationOnly", "--outDir", types], { stdio: "inherit" });
for (const name of ["like-button.d.ts", "types.d.ts"]) copyFileSync(join(types, name), join(values.out, name));
rmSync(types, { recursive: true });
