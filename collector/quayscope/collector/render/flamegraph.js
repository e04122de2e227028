"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const DEPTH = 0, START = 1, VALUE = 2, OWN = 3, NAME = 4, PLACE = 5, KIND = 6, COLOUR = 7;
const graph = document.getElementById("graph");
const said = document.getElementById("said");
const search = document.getElementById("search");
const all = data.rows[0];
let root = all;

function inWords(value) {
  if (data.unit === "nanoseconds") return value >= 1e9 ? (value / 1e9).toFixed(3) + " s" : (value / 1e6).toFixed(2) + " ms";
  if (data.unit === "bytes") return value >= 1 << 20 ? (value / (1 << 20)).toFixed(2) + " MiB" : (value / 1024).toFixed(1) + " KiB";
  return value.toLocaleString("en");
}

function about(row) {
  const share = all[VALUE] ? (100 * row[VALUE] / all[VALUE]).toFixed(2) : "0";
  return `${row[NAME]} [${row[KIND]}] ${row[PLACE]} - ${inWords(row[VALUE])}, ${share} %, self ${inWords(row[OWN])}`;
}

function holds(outer, inner) {
  return inner[START] >= outer[START] && inner[START] + inner[VALUE] <= outer[START] + outer[VALUE];
}

function draw() {
  const words = search.value.toLowerCase();
  const width = graph.clientWidth;
  const end = root[START] + root[VALUE];
  let deepest = 0, matched = 0, covered = -1;
  graph.replaceChildren();
  for (const row of data.rows) {
    const above = row[DEPTH] < root[DEPTH];
    if (above ? !holds(row, root) : !holds(root, row)) continue;
    const from = Math.max(row[START], root[START]), to = Math.min(row[START] + row[VALUE], end);
    const pixels = (to - from) / Math.max(1, root[VALUE]) * width;
    const found = words !== "" && row[NAME].toLowerCase().includes(words);
    if (found && from >= covered) { matched += to - from; covered = to; }
    if (pixels < 0.7) continue;
    const box = document.createElement("div");
    box.style.left = (from - root[START]) / Math.max(1, root[VALUE]) * width + "px";
    box.style.top = row[DEPTH] * 17 + "px";
    box.style.width = pixels + "px";
    box.style.background = row[COLOUR];
    box.className = (found ? "found " : "") + (above ? "above" : "");
    box.textContent = pixels > 24 ? row[NAME] : "";
    box.title = about(row);
    box.tabIndex = pixels > 24 ? 0 : -1;
    box.setAttribute("role", "treeitem");
    box.onmouseenter = box.onfocus = () => { said.textContent = about(row); };
    box.onclick = () => { root = row; draw(); };
    box.onkeydown = (event) => { if (event.key === "Enter") box.onclick(); };
    graph.append(box);
    deepest = Math.max(deepest, row[DEPTH]);
  }
  graph.style.height = (deepest + 1) * 17 + "px";
  document.getElementById("found").textContent =
    words === "" ? "" : `${(100 * matched / Math.max(1, root[VALUE])).toFixed(2)} % match`;
}

document.getElementById("losses").textContent =
  Object.entries(data.losses).map(([name, count]) => `${count} ${name}`).join(", ");
document.getElementById("reset").onclick = () => { root = all; draw(); };
search.oninput = draw;
window.addEventListener("resize", draw);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") { root = all; draw(); } });
draw();
