// Bundles src/ into ../static: page.js, page.css, index.html, icon.svg. No network, no second entry.
import { copyFile, mkdir } from "node:fs/promises";
import { build } from "esbuild";

const target = new URL("../static/", import.meta.url);

await mkdir(target, { recursive: true });
await build({
  entryPoints: { page: new URL("src/main.ts", import.meta.url).pathname },
  outdir: target.pathname,
  bundle: true,
  minify: true,
  // d3-flame-graph tells a prepared tree from raw data by `constructor.name === "Node"`.
  keepNames: true,
  format: "esm",
  target: ["chrome111", "firefox113", "safari16.4"],
  legalComments: "inline",
  logLevel: "warning",
});
for (const name of ["index.html", "icon.svg"]) {
  await copyFile(new URL(`src/${name}`, import.meta.url), new URL(name, target));
}
