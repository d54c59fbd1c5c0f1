// Build what the page loads: `node build.mjs <folder>` writes fal-client.js and fal-client.LICENSES.txt there.
// To change the committed ones: npm ci --ignore-scripts && node build.mjs ../../../proxy/fal_proxy/demo/page
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const [folder] = process.argv.slice(2);
const modules = new URL("node_modules/", import.meta.url);
const version = async (name) => JSON.parse(await readFile(new URL(`${name}/package.json`, modules), "utf8")).version;

const bundled = await build({
  entryPoints: ["entry.mjs"],
  absWorkingDir: fileURLToPath(new URL(".", import.meta.url)),
  banner: { js: `/* @fal-ai/client ${await version("@fal-ai/client")} and what it needs; licences: fal-client.LICENSES.txt */` },
  bundle: true,
  format: "esm",
  legalComments: "none",
  metafile: true,
  minify: true,
  platform: "browser",
  target: "es2022",
  write: false,
});

const names = Object.keys(bundled.metafile.inputs).map((path) => /^node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(path)?.[1]);
const packages = [...new Set(names.filter(Boolean))].sort();
// robot3 names its licence, BSD-2-Clause, and forgets the text in what it publishes.
const text = (name) => (name === "robot3" ? new URL("robot3.LICENSE", import.meta.url) : new URL(`${name}/LICENSE`, modules));
const licences = await Promise.all(
  packages.map(async (name) => `${name} ${await version(name)}\n\n${(await readFile(text(name), "utf8")).trim()}\n`),
);
await writeFile(join(folder, "fal-client.js"), bundled.outputFiles[0].contents);
await writeFile(join(folder, "fal-client.LICENSES.txt"), licences.join(`\n${"-".repeat(80)}\n\n`));
