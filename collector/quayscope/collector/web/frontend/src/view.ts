// What the page shows, as one value, and its form in the address: a link reproduces the view.

/** The last so many seconds, or a stretch between two Unix times. */
export type Range = { last: number } | { from: number; to: number };

export interface Match {
  name: string;
  equal: boolean;
  value: string;
}

export type Column = "function" | "file" | "kind" | "self" | "total";

export interface View {
  /** `null`: not chosen yet; `""`: all services. */
  service: string | null;
  type: string;
  sampler: string;
  matches: Match[];
  range: Range;
  /** Seconds between reloads, 0: off. */
  refresh: number;
  search: string;
  rootOnTop: boolean;
  /** The zoomed frame, as `frames.ts` names a place in the tree; `""`: the whole. */
  zoom: string;
  sort: Column;
  descending: boolean;
  /** The dimension of the breakdown: a label, an attribute, `sql` or `wait`. */
  by: string;
}

export const PRESETS: [label: string, seconds: number][] = [
  ["5 min", 300],
  ["15 min", 900],
  ["1 h", 3600],
  ["6 h", 21600],
];
export const REFRESHES = [0, 5, 30];
export const COLUMNS: Column[] = ["function", "file", "kind", "self", "total"];

const ALL_SERVICES = "*";
const DEFAULT_LAST = 900;
const DEFAULT_BY = "endpoint";

/** `NAME=VALUE` or `NAME!=VALUE`, the form the query interface takes. */
export function matchText(match: Match): string {
  return `${match.name}${match.equal ? "=" : "!="}${match.value}`;
}

function parseMatch(text: string): Match | null {
  const at = text.indexOf("=");
  if (at < 1) return null;
  const equal = text[at - 1] !== "!";
  const name = text.slice(0, equal ? at : at - 1);
  return name ? { name, equal, value: text.slice(at + 1) } : null;
}

function parseRange(query: URLSearchParams): Range {
  const from = Number(query.get("from") ?? "");
  const to = Number(query.get("to") ?? "");
  if (Number.isFinite(from) && Number.isFinite(to) && from > 0 && to > from) return { from, to };
  const last = Number(query.get("last") ?? "");
  return { last: Number.isInteger(last) && last > 0 && last <= 366 * 86400 ? last : DEFAULT_LAST };
}

/** Read a view from an address. What it cannot read is left at its default, never an error. */
export function parseView(search: string): View {
  const query = new URLSearchParams(search);
  const service = query.get("service");
  const refresh = Number(query.get("refresh") ?? 0);
  const [column, direction] = (query.get("sort") ?? "").split(",");
  return {
    service: service === ALL_SERVICES ? "" : service || null,
    type: query.get("type") ?? "",
    sampler: query.get("sampler") ?? "",
    matches: query.getAll("match").flatMap((text) => parseMatch(text) ?? []),
    range: parseRange(query),
    refresh: REFRESHES.includes(refresh) ? refresh : 0,
    search: query.get("q") ?? "",
    rootOnTop: query.get("layout") !== "flame",
    zoom: query.get("zoom") ?? "",
    sort: COLUMNS.find((name) => name === column) ?? "self",
    descending: direction !== "up",
    by: query.get("by") || DEFAULT_BY,
  };
}

/** Write a view as an address' query, defaults left out. */
export function formatView(view: View): string {
  const query = new URLSearchParams();
  if (view.service !== null) query.set("service", view.service || ALL_SERVICES);
  if (view.type) query.set("type", view.type);
  if (view.sampler) query.set("sampler", view.sampler);
  for (const match of view.matches) query.append("match", matchText(match));
  if ("last" in view.range) {
    if (view.range.last !== DEFAULT_LAST) query.set("last", String(view.range.last));
  } else {
    query.set("from", String(view.range.from));
    query.set("to", String(view.range.to));
  }
  if (view.refresh) query.set("refresh", String(view.refresh));
  if (view.search) query.set("q", view.search);
  if (!view.rootOnTop) query.set("layout", "flame");
  if (view.zoom) query.set("zoom", view.zoom);
  if (view.sort !== "self" || !view.descending) query.set("sort", `${view.sort},${view.descending ? "down" : "up"}`);
  if (view.by !== DEFAULT_BY) query.set("by", view.by);
  const text = query.toString();
  return text ? `?${text}` : location.pathname;
}

/** The stretch of Unix seconds that a range means now. */
export function resolveRange(range: Range): { from: number; to: number } {
  if ("from" in range) return range;
  const to = Date.now() / 1000;
  return { from: to - range.last, to };
}
