// The line of totals, and what the profile does not show: always there, never hidden.
import type { Losses } from "./api";
import { el } from "./dom";
import type { Loaded, Profiled } from "./load";
import { clock, count, human, share, typeName } from "./units";

const MEANINGS: [name: string, meaning: string][] = [
  ["lost", "taken by nobody: a ring or a queue was full"],
  ["late", "arrived after their window had been sent"],
  ["truncated", "their stack was cut before its root"],
  ["unproven", "joined to a statement without proof"],
  ["unattributed", "belong to no request"],
];

function fact(name: string, text: string, testId: string): HTMLElement {
  return el("div", { class: "fact" }, el("dt", {}, name), el("dd", { "data-testid": testId }, text));
}

function lossNames(losses: Losses): [string, string][] {
  const known = new Set(MEANINGS.map(([name]) => name));
  return [
    ...MEANINGS,
    ...Object.keys(losses)
      .filter((name) => !known.has(name))
      .map((name): [string, string] => [name, "counted by the sender"]),
  ];
}

export class Totals {
  private readonly facts = el("dl", { class: "facts" });
  private readonly summary = el("summary", { "data-testid": "losses" });
  private readonly meanings = el("table", { class: "meanings" });
  readonly element = el(
    "section",
    { class: "totals", "aria-label": "Totals" },
    this.facts,
    el("details", { class: "losses" }, this.summary, this.meanings),
  );

  /** Draw the line; `filtered` where filters are in force, which losses cannot follow. */
  render(loaded: Loaded, { graph, series }: Profiled, filtered: boolean): void {
    const samples = series.reduce((sum, row) => sum + row.samples, 0);
    this.facts.replaceChildren(
      fact(typeName(loaded.type), human(graph.total, graph.unit), "total"),
      fact("samples", count(samples), "samples"),
      fact("series", count(series.length), "series"),
      fact(graph.samplers.length === 1 ? "sampler" : "samplers", graph.samplers.join(", ") || "-", "samplers"),
      fact("from - to", `${clock(loaded.from)} - ${clock(loaded.to)}`, "range"),
      ...(graph.pruned
        ? [fact("folded into (other)", `${count(graph.pruned)} small frames`, "pruned")]
        : []),
    );
    this.drawLosses(graph.losses, samples, filtered);
  }

  private drawLosses(losses: Losses, samples: number, filtered: boolean): void {
    const names = lossNames(losses);
    this.summary.replaceChildren(
      el("span", { class: "caption" }, "Not shown or unsure:"),
      ...names.map(([name]) => {
        const lost = losses[name] ?? 0;
        return el(
          "span",
          { class: lost ? "loss some" : "loss", "data-testid": `loss-${name}` },
          `${name} ${count(lost)}`,
        );
      }),
    );
    this.meanings.replaceChildren(
      el(
        "tbody",
        {},
        ...names.map(([name, meaning]) => {
          const lost = losses[name] ?? 0;
          const part = samples && !filtered ? `${share(lost, samples)} of samples` : "";
          return el(
            "tr",
            {},
            el("th", { scope: "row" }, name),
            el("td", { class: "number" }, count(lost)),
            el("td", { class: "number" }, lost ? part : ""),
            el("td", {}, meaning),
          );
        }),
        filtered &&
          el("tr", {}, el("td", { colspan: 4, class: "hint" }, "Counted for whole profiles: filters do not divide them.")),
      ),
    );
  }
}
