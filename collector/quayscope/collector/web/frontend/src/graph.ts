// The drawing itself: d3-flame-graph with colours by kind, places that outlive a reload, and a keyboard cursor.
import flamegraph, { type Chart, type Drawn } from "d3-flame-graph";
import { select } from "d3-selection";
import type { FlameGraph, FlameNode } from "./api";
import { findPlace, label, matcher, placeId, shade } from "./frames";
import { Tooltip, type Placed } from "./tooltip";

type Frame = Drawn<FlameNode>;

const ROW = 20;
const TRANSITION_MS = 220;
/** Frames narrower than this many pixels are not drawn: nobody sees them, and they are most of the tree. */
const SMALLEST = 1;

export interface GraphEvents {
  /** A frame was zoomed to; `id` is its place, `""` for the whole. */
  zoomed(id: string): void;
  /** The frame that the details under the graph are about; `null` for none. */
  looked(placed: Placed | null): void;
}

function path(node: Frame): Frame[] {
  return node.ancestors().reverse() as Frame[];
}

/** A colour as a style sheet has it: the kind's, a little lighter or darker by name. */
function colour(node: Frame): string {
  const base = node.highlight ? "found" : `kind-${node.data.kind}`;
  return `color-mix(in oklab, var(--${base}), var(--shade) ${shade(node.data) * 6}%)`;
}

export class Graph {
  private readonly tooltip = new Tooltip();
  private readonly calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  private chart: Chart<FlameNode> | null = null;
  private data: FlameGraph | null = null;
  private rootOnTop = true;
  private term = "";
  private zoomedTo: Frame | null = null;
  private cursor: Frame | null = null;
  private announcing = true;

  constructor(
    private readonly box: HTMLElement,
    private readonly events: GraphEvents,
  ) {
    box.tabIndex = 0;
    box.addEventListener("keydown", (event) => this.key(event));
    box.addEventListener("mousemove", (event) => this.tooltip.move(event));
    box.addEventListener("mouseleave", () => this.tooltip.hide());
    box.addEventListener("scroll", () => this.tooltip.hide());
    let width = 0;
    new ResizeObserver(() => {
      if (box.clientWidth === width) return;
      width = box.clientWidth;
      if (this.chart && width) {
        this.chart.width(width).update();
        this.decorate();
      }
    }).observe(box);
  }

  /** Draw `data`, zoomed to the place `zoom` if it still is in it. */
  show(data: FlameGraph, rootOnTop: boolean, zoom: string): void {
    if (data !== this.data || rootOnTop !== this.rootOnTop) this.draw(data, rootOnTop);
    const root = this.root();
    if (!root) return;
    const wanted = this.find(zoom) ?? root;
    if (wanted !== (this.zoomedTo ?? root)) this.quietly(() => this.zoom(wanted));
  }

  /** Highlight what `term` finds and dim the rest. */
  search(term: string): void {
    if (term === this.term) return;
    this.term = term;
    if (!this.chart) return;
    if (term) this.chart.search(term);
    else this.chart.clear();
    this.decorate();
  }

  /** Go back to the whole. */
  reset(): void {
    const root = this.root();
    if (root) this.zoom(root);
  }

  /** The frames from the root to the zoomed one. */
  zoomPath(): { name: string; zoom: () => void }[] {
    const root = this.root();
    const frames = this.zoomedTo ? path(this.zoomedTo) : root ? [root] : [];
    return frames.map((node) => ({ name: node.data.name, zoom: () => this.zoom(node) }));
  }

  private root(): Frame | null {
    return this.chart ? (select(this.box).datum() as Frame) : null;
  }

  private find(zoom: string): Frame | null {
    const root = this.root();
    if (!root || !zoom) return null;
    const places = findPlace(root.data, zoom);
    if (!places) return null;
    let node = root;
    for (const frame of places.slice(1)) {
      const child = (node.children as Frame[] | undefined)?.find((candidate) => candidate.data === frame);
      if (!child) return null;
      node = child;
    }
    return node;
  }

  private draw(data: FlameGraph, rootOnTop: boolean): void {
    const scrolled = this.data && rootOnTop === this.rootOnTop ? this.box.scrollTop : null;
    this.chart?.destroy();
    this.box.replaceChildren();
    this.data = data;
    this.rootOnTop = rootOnTop;
    this.zoomedTo = null;
    this.cursor = null;
    const tip = Object.assign(() => {}, {
      show: (event: MouseEvent, node: Frame) => this.tooltip.show(event, this.placed(node)),
      hide: () => this.tooltip.hide(),
      destroy: () => this.tooltip.hide(),
    });
    // A matcher is built once a term, not once a frame.
    let built: { term: string; test: ReturnType<typeof matcher> } = { term: "", test: null };
    this.chart = flamegraph<FlameNode>()
      .width(this.box.clientWidth)
      .cellHeight(ROW)
      .inverted(rootOnTop)
      .minFrameSize(SMALLEST)
      .resetHeightOnZoom(true)
      // Frames of the old data must not glide to places of the new that have nothing to do with them.
      .transitionDuration(0)
      .getName((node) => label(node.data))
      .setColorMapper((node) => colour(node))
      .setSearchMatch((node, term) => {
        if (built.term !== term) built = { term, test: matcher(term) };
        return built.test?.(node.data) ?? false;
      })
      .setSearchHandler(() => {})
      .setDetailsHandler(() => {})
      .onClick((node) => this.clicked(node))
      .tooltip(tip);
    this.chart(select(this.box).datum(data.root));
    this.chart.transitionDuration(this.calm.matches ? 0 : TRANSITION_MS);
    if (this.term) this.chart.search(this.term);
    this.decorate();
    this.box.scrollTop = scrolled ?? (rootOnTop ? 0 : this.box.scrollHeight);
  }

  private zoom(node: Frame): void {
    this.chart?.zoomTo(node);
  }

  private quietly(act: () => void): void {
    this.announcing = false;
    act();
    this.announcing = true;
  }

  private clicked(node: Frame): void {
    this.zoomedTo = node.parent ? node : null;
    this.cursor = null;
    this.decorate();
    this.scrollTo(node);
    this.look(this.zoomedTo);
    if (this.announcing) {
      this.events.zoomed(this.zoomedTo ? placeId(path(node).map((frame) => frame.data)) : "");
    }
  }

  /** Keep the zoomed frame within the third next to the root, so that what it calls is in sight. */
  private scrollTo(node: Frame): void {
    const { box } = this;
    const third = box.clientHeight / 3;
    const fromRoot = node.depth * ROW;
    if (this.rootOnTop) {
      if (fromRoot < box.scrollTop || fromRoot - box.scrollTop > third) box.scrollTop = fromRoot - third;
    } else {
      const toBottom = box.scrollHeight - box.clientHeight - box.scrollTop;
      if (fromRoot < toBottom || fromRoot - toBottom > third) {
        box.scrollTop = box.scrollHeight - box.clientHeight - (fromRoot - third);
      }
    }
  }

  private placed(node: Frame): Placed {
    return {
      frame: node.data,
      parent: node.parent?.data ?? null,
      total: this.data?.total ?? 0,
      unit: this.data?.unit ?? "",
    };
  }

  private look(node: Frame | null): void {
    this.events.looked(node ? this.placed(node) : null);
  }

  /** What the library does not write: kinds, matches and the cursor, for style, tests and the keyboard. */
  private decorate(): void {
    this.box.classList.toggle("searching", matcher(this.term) !== null);
    for (const svg of this.box.querySelectorAll("svg")) svg.setAttribute("aria-hidden", "true");
    const cursor = this.cursor;
    select(this.box)
      .selectAll<SVGGElement, Frame>("g")
      .each(function (node) {
        this.setAttribute("data-testid", "frame");
        this.setAttribute("data-kind", node.data.kind);
        this.setAttribute("data-name", node.data.name);
        this.classList.toggle("match", node.highlight === true);
        this.classList.toggle("cursor", node === cursor);
      });
  }

  private visible(node: Frame): boolean {
    return (node.x1 - node.x0) * this.box.clientWidth > SMALLEST;
  }

  private neighbour(node: Frame, direction: -1 | 1): Frame | null {
    const siblings = (node.parent?.children ?? []) as Frame[];
    for (let at = siblings.indexOf(node) + direction; at >= 0 && at < siblings.length; at += direction) {
      const sibling = siblings[at];
      if (sibling && this.visible(sibling)) return sibling;
    }
    return null;
  }

  private key(event: KeyboardEvent): void {
    const root = this.root();
    if (!root || event.ctrlKey || event.metaKey || event.altKey) return;
    const at = this.cursor ?? this.zoomedTo ?? root;
    const deeper = this.rootOnTop ? "ArrowDown" : "ArrowUp";
    const higher = this.rootOnTop ? "ArrowUp" : "ArrowDown";
    let to: Frame | null = null;
    if (event.key === "Enter" || event.key === " ") this.zoom(at);
    else if (event.key === "Home") to = root;
    else if (event.key === deeper) to = ((at.children ?? []) as Frame[]).find((child) => this.visible(child)) ?? at;
    else if (event.key === higher) to = (at.parent as Frame | null) ?? at;
    else if (event.key === "ArrowLeft") to = this.neighbour(at, -1) ?? at;
    else if (event.key === "ArrowRight") to = this.neighbour(at, 1) ?? at;
    else return;
    event.preventDefault();
    if (!to) return;
    this.cursor = to;
    this.decorate();
    this.look(to);
    this.box.querySelector("g.cursor")?.scrollIntoView({ block: "nearest" });
  }
}
