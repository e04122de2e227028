// What a frame is called, where it stands in the tree, and what a search finds.
import type { FlameNode, Kind } from "./api";

export const KINDS: [kind: Kind, label: string][] = [
  ["python", "Python"],
  ["native", "native"],
  ["kernel", "kernel"],
  ["go", "Go"],
  ["sql", "SQL statement"],
  ["wait", "wait"],
  ["root", "grouping"],
];

const LABEL_LENGTH = 160;
const SHADES = 5;

/** Return the last two parts of a path: enough to tell `flask/app.py` from `celery/app.py`. */
export function shortFile(file: string): string {
  return file.split("/").filter(Boolean).slice(-2).join("/");
}

/** `file:line`, as far as they are known. */
export function place(frame: { file: string; line: number }): string {
  return frame.line > 0 ? `${frame.file}:${frame.line}` : frame.file;
}

/** One line for a frame's rectangle; the whole of it is in the tooltip. */
export function label(frame: FlameNode): string {
  const name = frame.name.replace(/\s+/g, " ").slice(0, LABEL_LENGTH);
  return frame.kind === "python" && frame.file ? `${name} · ${shortFile(frame.file)}` : name;
}

/** FNV-1a over UTF-16 units, 32 bits: short in an address, and stable. */
function hash(text: string, seed: number): number {
  let value = seed;
  for (let index = 0; index < text.length; index += 1) {
    value = Math.imul(value ^ text.charCodeAt(index), 0x01000193) >>> 0;
  }
  return value;
}

function step(frame: FlameNode, parent: number): number {
  // Not the line: the tree merges a function's lines, and the one it shows may differ after a reload.
  return hash(`${frame.kind}\u0000${frame.name}\u0000${frame.file}\u0000`, parent);
}

/** Name the place at the end of a path (root first), so that it is found again in newer data. */
export function placeId(path: FlameNode[]): string {
  return path.reduce((above, frame) => step(frame, above), 0x811c9dc5).toString(16);
}

/** The path (root first) to the place named, or `null` where the tree has no such place. */
export function findPlace(root: FlameNode, id: string): FlameNode[] | null {
  const wanted = Number.parseInt(id, 16);
  const open: { path: FlameNode[]; value: number }[] = [{ path: [root], value: step(root, 0x811c9dc5) }];
  for (let next = open.pop(); next; next = open.pop()) {
    if (next.value === wanted) return next.path;
    for (const child of next.path[next.path.length - 1]?.children ?? []) {
      open.push({ path: [...next.path, child], value: step(child, next.value) });
    }
  }
  return null;
}

/** One of a few shades of the kind's colour, by name: neighbours differ, the same name stays the same. */
export function shade(frame: FlameNode): number {
  return hash(frame.name, 0x811c9dc5) % SHADES;
}

/** Quote a name so that a search finds this name alone. */
export function exactly(name: string): string {
  return `"${name}"`;
}

/**
 * A test of frames: part of the name or the file in any case, or the whole name where the term is quoted.
 * `null` where there is nothing to look for.
 */
export function matcher(term: string): ((frame: { name: string; file: string }) => boolean) | null {
  const trimmed = term.trim();
  if (!trimmed) return null;
  if (trimmed.length > 2 && trimmed.startsWith('"') && trimmed.endsWith('"')) {
    const whole = trimmed.slice(1, -1);
    return (frame) => frame.name === whole;
  }
  const part = trimmed.toLowerCase();
  return (frame) => frame.name.toLowerCase().includes(part) || frame.file.toLowerCase().includes(part);
}

/** What lies in matching frames: their number, and their value with nested matches counted once. */
export function matched(
  root: FlameNode,
  matches: (frame: FlameNode) => boolean,
): { frames: number; value: number } {
  let frames = 0;
  let value = 0;
  const open: [frame: FlameNode, inside: boolean][] = [[root, false]];
  for (let next = open.pop(); next; next = open.pop()) {
    const [frame, inside] = next;
    const found = matches(frame);
    if (found) {
      frames += 1;
      if (!inside) value += frame.value;
    }
    for (const child of frame.children ?? []) open.push([child, inside || found]);
  }
  return { frames, value };
}
