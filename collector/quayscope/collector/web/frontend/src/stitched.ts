// One endpoint through all tiers, as a profile like any other: the page draws it with the same parts.
import * as api from "./api";
import type { View } from "./view";

/** The name it goes by among the profile types. */
export const STITCHED: api.TypeInfo = { id: "stitched", name: "stitched", value: "stitched", unit: "nanoseconds" };

const DELAY = "block:delay:nanoseconds:contentions:count";
const WORKER = "sampler=agent";

export interface StitchedProfile {
  graph: api.FlameGraph;
  top: api.Top;
  series: api.SeriesRow[];
  breakdown: api.Breakdown;
  by: string;
}

/** Functions by self value, as `/api/v1/top` has them: a recursive one counts once a stack. */
function topOf(graph: api.FlameGraph, limit: number): api.Top {
  const rows = new Map<string, api.TopRow>();
  const open: [frame: api.FlameNode, above: ReadonlySet<string>][] = [[graph.root, new Set()]];
  for (let next = open.pop(); next; next = open.pop()) {
    const [frame, above] = next;
    const key = JSON.stringify([frame.name, frame.file, frame.kind]);
    const row = rows.get(key) ?? { function: frame.name, file: frame.file, line: frame.line, kind: frame.kind, self: 0, total: 0 };
    row.self += frame.self;
    if (!above.has(key)) row.total += frame.value;
    rows.set(key, row);
    const below = above.has(key) ? above : new Set([...above, key]);
    for (const child of frame.children ?? []) open.push([child, below]);
  }
  const sorted = [...rows.values()].sort((a, b) => b.self - a.self || a.function.localeCompare(b.function));
  return { unit: graph.unit, total: graph.total, rows: sorted.slice(0, limit) };
}

function summed(losses: api.Losses[]): api.Losses {
  const sums: api.Losses = {};
  for (const one of losses) for (const [name, lost] of Object.entries(one)) sums[name] = (sums[name] ?? 0) + lost;
  return sums;
}

/** The endpoint that is looked at: the one of the filters, else the one that workers waited for most. */
async function withEndpoint(signal: AbortSignal, selector: api.Selector): Promise<api.Selector> {
  if (selector.match.some((match) => match.startsWith("endpoint="))) return selector;
  const waits = { ...selector, type: DELAY, match: [...selector.match, WORKER] };
  const { rows } = await api.breakdown(signal, waits, "endpoint");
  const most = rows.find((row) => row["endpoint"]);
  return { ...selector, match: [...selector.match, `endpoint=${String(most?.["endpoint"] ?? "")}`] };
}

/** Load one endpoint's profile of all tiers; `null` where no worker served one. Raises `ApiError`. */
export async function loadStitched(
  signal: AbortSignal,
  view: View,
  asked: api.Selector,
  limit: number,
): Promise<StitchedProfile | null> {
  const selector = await withEndpoint(signal, asked);
  if (selector.match.includes("endpoint=")) return null;
  const waits = { ...selector, type: DELAY, match: [...selector.match, WORKER] };
  const by = view.by === "endpoint" ? "sql" : view.by;
  const [found, series, breakdown] = await Promise.all([
    api.stitch(signal, selector),
    api.series(signal, waits),
    api.breakdown(signal, waits, by),
  ]);
  if (found.total <= 0) return null;
  const tiers = Object.values(found.tiers);
  const graph: api.FlameGraph = {
    type: STITCHED.id,
    unit: found.unit,
    total: found.total,
    samplers: [...new Set(tiers.flatMap((tier) => tier.samplers))].sort(),
    losses: summed(tiers.map((tier) => tier.losses)),
    pruned: found.pruned,
    root: found.root,
  };
  return { graph, top: topOf(graph, limit), series, breakdown, by };
}
