// The collector's query interface, as docs/api.md has it. Nothing here touches the document.

export type Kind = "python" | "native" | "kernel" | "go" | "sql" | "wait" | "root";

export interface FlameNode {
  name: string;
  kind: Kind;
  file: string;
  line: number;
  value: number;
  self: number;
  children?: FlameNode[];
}

export type Losses = Record<string, number>;

export interface FlameGraph {
  type: string;
  unit: string;
  total: number;
  samplers: string[];
  losses: Losses;
  pruned: number;
  root: FlameNode;
}

export interface TopRow {
  function: string;
  file: string;
  line: number;
  kind: Kind;
  self: number;
  total: number;
}

export interface Top {
  unit: string;
  total: number;
  rows: TopRow[];
}

export interface BreakdownRow {
  value: number;
  samples: number;
  [dimension: string]: string | number;
}

export interface Breakdown {
  unit: string;
  rows: BreakdownRow[];
}

/** One endpoint through all tiers; `shown` is what of the database's time fits into what workers waited. */
export interface Stitched {
  unit: string;
  total: number;
  pruned: number;
  tiers: Record<string, { value: number; samplers: string[]; losses: Losses }>;
  root: FlameNode;
}

export interface TypeInfo {
  id: string;
  name: string;
  value: string;
  unit: string;
}

export interface SeriesRow {
  labels: Record<string, string>;
  type: string;
  profiles: number;
  samples: number;
  total: number;
  losses: Losses;
}

/** What a query selects: a stretch of time (Unix seconds), a type (or any), and `NAME=VALUE` matchers. */
export interface Selector {
  from: number;
  to: number;
  type?: string;
  match: string[];
}

/** A refusal or a silence. `status` is 0 where the collector did not answer at all. */
export class ApiError extends Error {
  override readonly name = "ApiError";

  constructor(
    message: string,
    readonly status: number,
    readonly nextStep: string,
  ) {
    super(message);
  }
}

function address(path: string, selector: Selector | null, extra: Record<string, string>): URL {
  const url = new URL(path, document.baseURI);
  if (selector) {
    if (selector.type) url.searchParams.set("type", selector.type);
    url.searchParams.set("from", selector.from.toFixed(3));
    url.searchParams.set("to", selector.to.toFixed(3));
    for (const match of selector.match) url.searchParams.append("match", match);
  }
  for (const [name, value] of Object.entries(extra)) url.searchParams.set(name, value);
  return url;
}

async function get<Answer>(
  signal: AbortSignal,
  path: string,
  selector: Selector | null = null,
  extra: Record<string, string> = {},
): Promise<Answer> {
  let response: Response;
  try {
    response = await fetch(address(path, selector, extra), { signal, headers: { Accept: "application/json" } });
  } catch (error) {
    if (signal.aborted) throw error;
    throw new ApiError("The collector does not answer.", 0, "Check that it is still running, then try again.");
  }
  let body: unknown;
  try {
    body = await response.json();
  } catch (error) {
    if (signal.aborted) throw error;
    body = {};
  }
  if (!response.ok) {
    const refusal = body as { error?: unknown; next_step?: unknown };
    throw new ApiError(
      typeof refusal.error === "string" ? refusal.error : `The collector answered ${response.status}.`,
      response.status,
      typeof refusal.next_step === "string" ? refusal.next_step : "Look at the collector's log, then try again.",
    );
  }
  return body as Answer;
}

export async function health(signal: AbortSignal): Promise<{ status: string; version: string }> {
  return get(signal, "api/v1/health");
}

export async function types(signal: AbortSignal, selector: Selector): Promise<TypeInfo[]> {
  return (await get<{ types: TypeInfo[] }>(signal, "api/v1/types", { ...selector, match: [] })).types;
}

export async function labels(signal: AbortSignal, selector: Selector): Promise<string[]> {
  return (await get<{ labels: string[] }>(signal, "api/v1/labels", { ...selector, match: [] })).labels;
}

export async function values(signal: AbortSignal, name: string, selector: Selector): Promise<string[]> {
  const path = `api/v1/labels/${encodeURIComponent(name)}/values`;
  return (await get<{ values: string[] }>(signal, path, selector)).values;
}

export async function series(signal: AbortSignal, selector: Selector): Promise<SeriesRow[]> {
  return (await get<{ series: SeriesRow[] }>(signal, "api/v1/series", selector)).series;
}

export async function flamegraph(signal: AbortSignal, selector: Selector): Promise<FlameGraph> {
  return get(signal, "api/v1/flamegraph", selector);
}

export async function stitch(signal: AbortSignal, selector: Selector): Promise<Stitched> {
  return get(signal, "api/v1/stitch", selector);
}

export async function top(signal: AbortSignal, selector: Selector, limit: number): Promise<Top> {
  return get(signal, "api/v1/top", selector, { limit: String(limit) });
}

export async function breakdown(signal: AbortSignal, selector: Selector, by: string): Promise<Breakdown> {
  return get(signal, "api/v1/breakdown", selector, { by });
}
