// One view's data: which services, types and samplers there are, which are meant, and their profile.
import * as api from "./api";
import { loadStitched, STITCHED } from "./stitched";
import { typeRank } from "./units";
import { matchText, resolveRange, type View } from "./view";

/** More rows than anybody reads, so that sorting by another column is still about all functions. */
export const TOP_LIMIT = 5000;

const PREFERRED_SERVICE = "quay-app";
const PREFERRED_SAMPLERS = ["agent", "pyspy", "perf", "go", "activity"];

export interface Profiled {
  graph: api.FlameGraph;
  top: api.Top;
  series: api.SeriesRow[];
  breakdown: api.Breakdown;
  /** What it is broken down by. */
  by: string;
}

export interface Loaded {
  from: number;
  to: number;
  services: string[];
  /** Types that have data for the service in the range. */
  types: api.TypeInfo[];
  labels: string[];
  /** Samplers that measured this type; a query never sums two of them for one service. */
  samplers: string[];
  service: string;
  type: string;
  sampler: string;
  /** A service whose CPU two samplers measured, where none of them was chosen. */
  mixed: string;
  /** `null` where nothing matches, or samplers are mixed. */
  profiled: Profiled | null;
}

function bySampler(a: string, b: string): number {
  const rank = (name: string): number => (PREFERRED_SAMPLERS.indexOf(name) + 1 || PREFERRED_SAMPLERS.length + 1);
  return rank(a) - rank(b) || a.localeCompare(b);
}

/** The selector of a view's profile; `service` and `sampler` are as chosen, not as asked for. */
function selectorOf(view: View, from: number, to: number, service: string): api.Selector {
  const match = view.matches.map(matchText);
  if (service) match.unshift(`service_name=${service}`);
  return { from, to, match };
}

function samplersOf(rows: api.SeriesRow[]): string[] {
  const names = new Set(rows.map((row) => row.labels["sampler"] ?? ""));
  names.delete("");
  return [...names].sort(bySampler);
}

/** The first service that two samplers measured. */
function mixedService(rows: api.SeriesRow[]): string {
  const held = new Map<string, string>();
  for (const { labels } of rows) {
    const service = labels["service_name"] ?? "";
    const sampler = labels["sampler"] ?? "";
    if ((held.get(service) ?? sampler) !== sampler) return service;
    held.set(service, sampler);
  }
  return "";
}

/** Load all that the page shows of `view`. Raises `ApiError`. */
export async function load(signal: AbortSignal, view: View): Promise<Loaded> {
  const { from, to } = resolveRange(view.range);
  const everything: api.Selector = { from, to, match: [] };
  const [services, known, labels] = await Promise.all([
    api.values(signal, "service_name", everything),
    api.types(signal, everything),
    api.labels(signal, everything),
  ]);
  const service =
    view.service ?? (services.includes(PREFERRED_SERVICE) ? PREFERRED_SERVICE : (services[0] ?? ""));
  const empty = { from, to, services, labels, service, sampler: view.sampler, samplers: [], mixed: "", profiled: null };
  if (!services.length) return { ...empty, types: [], type: view.type };

  const selector = selectorOf(view, from, to, service);
  // Without the page's own filters, or a filter that matches nothing would take the types away too.
  const present = await api.series(signal, { ...everything, match: service ? [`service_name=${service}`] : [] });
  const bare = (id: string): string => id.split(":", 1)[0] ?? "";
  const names = new Set(present.map((row) => bare(row.type)));
  const types = known
    .filter((type) => names.has(type.name))
    .sort((a, b) => typeRank(a.id) - typeRank(b.id) || a.id.localeCompare(b.id));
  // What workers waited for, and below each statement what the database did meanwhile.
  if (present.some((row) => bare(row.type) === "block" && row.labels["sampler"] === "agent")) types.push(STITCHED);
  const type = view.type || types[0]?.id || "";
  if (!type) return { ...empty, types, type };

  if (type === STITCHED.id) {
    return { ...empty, types, type, profiled: await loadStitched(signal, view, selector, TOP_LIMIT) };
  }

  const measured = present.filter((row) => bare(row.type) === bare(type));
  const samplers = samplersOf(measured);
  // Across services each has a sampler of its own; within one, adding two would count time twice.
  const sampler = view.sampler || (service && samplers.length > 1 ? (samplers[0] ?? "") : "");
  if (sampler) selector.match.push(`sampler=${sampler}`);
  const mixed = bare(type) === "process_cpu" && !sampler ? mixedService(measured) : "";
  if (mixed) return { ...empty, types, type, samplers, mixed };

  const chosen: api.Selector = { ...selector, type };
  const [graph, top, series, breakdown] = await Promise.all([
    api.flamegraph(signal, chosen),
    api.top(signal, chosen, TOP_LIMIT),
    api.series(signal, chosen),
    api.breakdown(signal, chosen, view.by),
  ]);
  const profiled = graph.total > 0 ? { graph, top, series, breakdown, by: view.by } : null;
  return { ...empty, types, type, samplers, sampler, profiled };
}
