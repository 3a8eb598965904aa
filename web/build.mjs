// Builds the page: one file with its script and its style in it. `node build.mjs [FOLDER]` writes page.html there, by default
// where the server embeds it, and licences.txt beside it or, by default, here.

import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const read = (...path) => readFileSync(join(here, ...path), "utf8");

/** What esbuild makes of an entry: its text, and the packages of which something is in it. */
async function made(entry, plugins = []) {
  const { outputFiles, metafile } = await build({
    absWorkingDir: here,
    entryPoints: [entry],
    bundle: true,
    minify: true,
    write: false,
    metafile: true,
    target: ["chrome123", "firefox120", "safari17.5"],
    format: entry.endsWith(".css") ? undefined : "iife",
    legalComments: "none",
    jsx: "automatic",
    jsxImportSource: "preact",
    plugins,
  });
  const [output] = Object.values(metafile.outputs);
  const inputs = Object.entries(output.inputs).filter(([, { bytesInOutput }]) => bytesInOutput > 0);
  const packages = inputs.map(([path]) => path.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1]);
  return { text: outputFiles[0].text.trim(), packages: packages.filter(Boolean) };
}

/** The licences of packages, as their files say them. */
function licences(packages) {
  const one = (name) => {
    const { version, license } = JSON.parse(read("node_modules", name, "package.json"));
    const text = read("node_modules", name, "LICENSE").replace(/\r\n/g, "\n").trim();
    return `${name} ${version} (${license})\n\n${text}\n`;
  };
  const names = [...new Set(packages)].sort();
  return `Packages within backstop's page, and their licences.\n\n${names.map(one).join(`\n${"-".repeat(72)}\n\n`)}`;
}

/** `import text from "licences"` gives what is known once everything else is bundled. */
const said = (text) => ({
  name: "licences",
  setup(build) {
    build.onResolve({ filter: /^licences$/ }, () => ({ path: "licences", namespace: "said" }));
    build.onLoad({ filter: /.*/, namespace: "said" }, () => ({ contents: text, loader: "text" }));
  },
});

const { packages } = await made("src/main.tsx", [said("")]);
const notices = licences(packages);
const script = (await made("src/main.tsx", [said(notices)])).text;
const style = (await made("src/style.css")).text;
for (const [text, end] of [
  [script, "</script"],
  [style, "</style"],
]) {
  if (text.toLowerCase().includes(end)) throw new Error(`${end} within the page would end it early`);
}
const page = read("src/page.html")
  .replace("/* style */", () => style)
  .replace("/* script */", () => script);
const [folder] = process.argv.slice(2);
writeFileSync(folder ? join(folder, "page.html") : join(here, "../src/server/page.html"), page);
writeFileSync(join(folder ?? here, "licences.txt"), notices);
console.log(`page.html: ${(Buffer.byteLength(page) / 1024).toFixed(0)} KiB`);
