// What a frame is, in full: beside the pointer, and under the graph for the keyboard.
import type { FlameNode } from "./api";
import { el } from "./dom";
import { KINDS, place } from "./frames";
import { human, share } from "./units";

const GAP = 14;

/** A frame where it stands: its parent's value and the whole's, in one unit. */
export interface Placed {
  frame: FlameNode;
  parent: FlameNode | null;
  total: number;
  unit: string;
}

/** Describe a frame: full name, place, kind, value and its shares. */
export function describe({ frame, parent, total, unit }: Placed): HTMLElement[] {
  const kind = KINDS.find(([name]) => name === frame.kind)?.[1] ?? frame.kind;
  const facts: [string, string][] = [
    ["total", `${human(frame.value, unit)} · ${share(frame.value, total)} of all`],
    ["self", `${human(frame.self, unit)} · ${share(frame.self, total)} of all`],
  ];
  if (parent) facts.splice(1, 0, ["of its caller", share(frame.value, parent.value)]);
  return [
    el("div", { class: "frame-name", "data-testid": "frame-name" }, frame.name),
    el(
      "div",
      { class: "frame-place" },
      el("span", { class: `swatch kind-${frame.kind}` }),
      [kind, place(frame)].filter(Boolean).join(" · "),
    ),
    el(
      "dl",
      { class: "frame-facts" },
      ...facts.flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]),
    ),
  ];
}

/** The box beside the pointer. It never takes the pointer itself. */
export class Tooltip {
  private readonly box = el("div", { class: "tooltip", role: "tooltip", "data-testid": "tooltip", hidden: true });

  constructor() {
    document.body.append(this.box);
  }

  show(event: MouseEvent, placed: Placed): void {
    this.box.replaceChildren(...describe(placed));
    this.box.hidden = false;
    this.move(event);
  }

  move(event: MouseEvent): void {
    if (this.box.hidden) return;
    const { offsetWidth: width, offsetHeight: height } = this.box;
    const right = event.clientX + GAP + width <= window.innerWidth;
    const left = right ? event.clientX + GAP : event.clientX - GAP - width;
    const below = event.clientY + GAP + height <= window.innerHeight;
    const top = below ? event.clientY + GAP : event.clientY - GAP - height;
    this.box.style.setProperty("left", `${Math.max(4, left)}px`);
    this.box.style.setProperty("top", `${Math.max(4, top)}px`);
  }

  hide(): void {
    this.box.hidden = true;
  }
}
