// What this page uses of d3-flame-graph 5.0.0, which ships no types.
declare module "d3-flame-graph" {
  import type { HierarchyRectangularNode } from "d3-hierarchy";
  import type { Selection } from "d3-selection";

  export type Drawn<Data> = HierarchyRectangularNode<Data> & { id: number; highlight?: boolean };

  export interface Tip<Data> {
    (svg: unknown): void;
    show(event: MouseEvent, node: Drawn<Data>): void;
    hide(): void;
    destroy(): void;
  }

  export interface Chart<Data> {
    (selection: Selection<HTMLElement, Data, null, undefined>): void;
    width(pixels: number): this;
    cellHeight(pixels: number): this;
    inverted(rootOnTop: boolean): this;
    minFrameSize(pixels: number): this;
    transitionDuration(milliseconds: number): this;
    resetHeightOnZoom(reset: boolean): this;
    getName(name: (node: Drawn<Data>) => string): this;
    setColorMapper(color: (node: Drawn<Data>, original: string) => string): this;
    setSearchMatch(match: (node: Drawn<Data>, term: string) => boolean): this;
    setSearchHandler(handler: (found: Drawn<Data>[], sum: number, total: number) => void): this;
    setDetailsHandler(handler: (text: string | null) => void): this;
    onClick(handler: (node: Drawn<Data>) => void): this;
    tooltip(tip: Tip<Data>): this;
    search(term: string): void;
    clear(): void;
    zoomTo(node: Drawn<Data>): void;
    resetZoom(): void;
    update(data?: Data): this;
    destroy(): this;
  }

  export default function flamegraph<Data>(): Chart<Data>;
}
