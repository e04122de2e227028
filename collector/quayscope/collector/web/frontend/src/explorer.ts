// The panel around the graph: search, way back, legend, and the frame looked at in full.
import type { FlameGraph, FlameNode } from "./api";
import { button, el } from "./dom";
import { KINDS, matched, matcher } from "./frames";
import { Graph } from "./graph";
import { describe } from "./tooltip";
import { count, share } from "./units";
import type { View } from "./view";

const CRUMBS_SHOWN = 3;
const SEARCH_DELAY_MS = 150;
const HINT = "Click a frame to zoom in. On the graph, arrow keys move, Enter zooms, Esc shows all.";

export type Update = (patch: Partial<View>) => void;

/** The share of self value by kind: where the time is spent, in one line. */
function selfByKind(root: FlameNode): Map<string, number> {
  const sums = new Map<string, number>();
  const open = [root];
  for (let frame = open.pop(); frame; frame = open.pop()) {
    sums.set(frame.kind, (sums.get(frame.kind) ?? 0) + frame.self);
    open.push(...(frame.children ?? []));
  }
  return sums;
}

export class Explorer {
  readonly element: HTMLElement;
  readonly searchBox = el("input", {
    type: "search",
    placeholder: "Find a function or file",
    "aria-label": "Search in the graph",
    "data-testid": "search",
    autocomplete: "off",
    spellcheck: "false",
  });
  private readonly found = el("output", { class: "found-share", "data-testid": "search-result" });
  private readonly crumbs = el("nav", { class: "crumbs", "aria-label": "Zoomed frame", "data-testid": "breadcrumb" });
  private readonly resetButton: HTMLButtonElement;
  private readonly layoutButton: HTMLButtonElement;
  private readonly legend = el("ul", { class: "legend", "aria-label": "Kinds of frame, with their share of self time", title: "share of self time" });
  private readonly details = el("div", { class: "details", "aria-live": "polite", "data-testid": "details" });
  private readonly box = el("div", {
    class: "graph",
    role: "group",
    "aria-label": "Flame graph. Arrow keys move, Enter zooms, Escape shows all.",
    "data-testid": "flamegraph",
  });
  private readonly graph: Graph;
  private data: FlameGraph | null = null;
  private rootOnTop = true;
  private pending = 0;

  constructor(update: Update) {
    this.layoutButton = button("", { "data-testid": "layout" }, () => update({ rootOnTop: !this.rootOnTop }));
    this.resetButton = button("Show all", { "data-testid": "reset-zoom", title: "Esc" }, () => this.reset());
    this.searchBox.addEventListener("input", () => {
      window.clearTimeout(this.pending);
      this.pending = window.setTimeout(() => update({ search: this.searchBox.value }), SEARCH_DELAY_MS);
    });
    this.element = el(
      "section",
      { class: "panel", "aria-label": "Flame graph" },
      el(
        "div",
        { class: "toolbar" },
        el("div", { class: "search" }, this.searchBox, this.found),
        this.legend,
        el("div", { class: "buttons" }, this.layoutButton, this.resetButton),
      ),
      this.crumbs,
      this.box,
      this.details,
    );
    this.graph = new Graph(this.box, {
      zoomed: (id) => update({ zoom: id }),
      looked: (placed) => {
        this.details.replaceChildren(...(placed ? describe(placed) : [el("p", { class: "hint" }, HINT)]));
      },
    });
    this.details.replaceChildren(el("p", { class: "hint" }, HINT));
  }

  /** Zoom out to the whole graph. */
  reset(): void {
    this.graph.reset();
  }

  render(view: View, data: FlameGraph): void {
    this.rootOnTop = view.rootOnTop;
    this.layoutButton.textContent = view.rootOnTop ? "Root at the bottom" : "Root on top";
    if (this.searchBox.value !== view.search) this.searchBox.value = view.search;
    if (data !== this.data) this.drawLegend(data);
    this.data = data;
    this.graph.show(data, view.rootOnTop, view.zoom);
    this.graph.search(view.search);
    this.drawFound(view.search, data);
    this.drawCrumbs();
  }

  private drawFound(term: string, data: FlameGraph): void {
    const test = matcher(term);
    if (!test) {
      this.found.textContent = "";
      return;
    }
    const { frames, value } = matched(data.root, test);
    const noun = frames === 1 ? "frame" : "frames";
    this.found.textContent = frames ? `${count(frames)} ${noun}, ${share(value, data.total)}` : "nothing found";
  }

  private drawLegend(data: FlameGraph): void {
    const sums = selfByKind(data.root);
    this.legend.replaceChildren(
      ...KINDS.filter(([kind]) => sums.has(kind) && (kind !== "root" || (sums.get(kind) ?? 0) > 0)).map(([kind, name]) =>
        el(
          "li",
          { "data-testid": `legend-${kind}` },
          el("span", { class: `swatch kind-${kind}` }),
          // A statement has no self time where it was sampled below it: its name alone is the key then.
          (sums.get(kind) ?? 0) > 0 ? `${name} ${share(sums.get(kind) ?? 0, data.total)}` : name,
        ),
      ),
    );
  }

  private drawCrumbs(): void {
    const path = this.graph.zoomPath();
    const last = path[path.length - 1];
    this.resetButton.disabled = path.length < 2;
    this.crumbs.hidden = path.length < 2;
    const whole = path[0];
    if (!whole || !last || path.length < 2) {
      this.crumbs.replaceChildren();
      return;
    }
    const hidden = Math.max(0, path.length - 1 - CRUMBS_SHOWN);
    const between = path.slice(1 + hidden, -1);
    this.crumbs.replaceChildren(
      button("All", {}, whole.zoom),
      ...(hidden ? [el("span", { class: "gap" }, `${hidden} ${hidden === 1 ? "frame" : "frames"}`)] : []),
      ...between.map((frame) => button(frame.name, { title: frame.name }, frame.zoom)),
      el("span", { class: "here", "aria-current": "true" }, last.name),
    );
  }
}
