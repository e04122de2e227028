// The tables under the graph: functions by value, and the total broken down by a label.
import type { Breakdown, Top, TopRow } from "./api";
import { button, el } from "./dom";
import type { Update } from "./explorer";
import { exactly, KINDS, place, shortFile } from "./frames";
import { TOP_LIMIT, type Loaded, type Profiled } from "./load";
import { count, human, share, typeName } from "./units";
import type { Column, View } from "./view";

const FIRST_ROWS = 50;
const NOT_DIMENSIONS = new Set(["span_id", "trace_id"]);
const FRAME_DIMENSIONS = ["sql", "wait"];
const DIMENSION_NAMES: Record<string, string> = { sql: "statement", wait: "wait event", service_name: "service" };

const HEADERS: [column: Column, title: string, numeric: boolean][] = [
  ["function", "Function", false],
  ["file", "File", false],
  ["kind", "Kind", false],
  ["self", "Self", true],
  ["total", "Total", true],
];

/** A cell whose background shows its share, so that a column is read at a glance. */
function bar(text: string, part: number, whole: number): HTMLTableCellElement {
  const cell = el("td", { class: "number bar" }, text);
  cell.style.setProperty("--share", `${whole > 0 ? Math.min(100, (100 * part) / whole) : 0}%`);
  return cell;
}

function compare(column: Column, descending: boolean): (a: TopRow, b: TopRow) => number {
  const sign = descending ? -1 : 1;
  return (a, b) => {
    const order =
      column === "self" || column === "total"
        ? a[column] - b[column]
        : String(a[column]).localeCompare(String(b[column])) || a.line - b.line;
    return sign * order || b.self - a.self || a.function.localeCompare(b.function);
  };
}

export class Tables {
  private readonly tabs = el("div", { class: "tabs", role: "group", "aria-label": "Table" });
  private readonly body = el("div", { class: "table-box" });
  readonly element = el("section", { class: "panel", "aria-label": "Tables" }, this.tabs, this.body);
  private all = false;
  private shownFor = "";

  constructor(
    private readonly update: Update,
    private readonly addMatch: (name: string, value: string) => void,
  ) {}

  render(view: View, loaded: Loaded, profiled: Profiled): void {
    const shownFor = `${loaded.service} ${loaded.type} ${view.by}`;
    if (shownFor !== this.shownFor) this.all = false;
    this.shownFor = shownFor;
    this.drawTabs(view, loaded);
    if (view.by) {
      if (profiled.breakdown) this.drawBreakdown(view.by, profiled.breakdown, loaded, profiled.graph.total);
    } else {
      this.drawFunctions(view, loaded, profiled.top);
    }
  }

  private drawTabs(view: View, loaded: Loaded): void {
    const dimensions = [...loaded.labels.filter((name) => !NOT_DIMENSIONS.has(name)), ...FRAME_DIMENSIONS];
    const select = el(
      "select",
      { "data-testid": "breakdown-by", "aria-label": "Break the total down by" },
      el("option", { value: "" }, "break down by…"),
      ...dimensions.map((name) => el("option", { value: name }, `by ${DIMENSION_NAMES[name] ?? name}`)),
    );
    select.value = view.by;
    select.addEventListener("change", () => this.update({ by: select.value }));
    const focused = document.activeElement?.getAttribute("data-testid");
    const functions = button("Functions", { "data-testid": "tab-functions", "aria-pressed": String(!view.by) }, () =>
      this.update({ by: "" }),
    );
    const hadFocus = this.tabs.contains(document.activeElement);
    this.tabs.replaceChildren(functions, select);
    if (hadFocus) (focused === "breakdown-by" ? select : functions).focus();
  }

  private drawFunctions(view: View, loaded: Loaded, top: Top): void {
    const rows = [...top.rows].sort(compare(view.sort, view.descending));
    const listed = this.all ? rows : rows.slice(0, FIRST_ROWS);
    const head = el(
      "tr",
      {},
      ...HEADERS.map(([column, title, numeric]) => {
        const sorted = view.sort === column;
        const sort = sorted ? (view.descending ? "descending" : "ascending") : "none";
        const turn = (): void =>
          this.update({ sort: column, descending: sorted ? !view.descending : numeric });
        return el(
          "th",
          { scope: "col", class: numeric ? "number" : `text ${column}`, colspan: numeric ? 2 : 1, "aria-sort": sort },
          button(title, { "data-testid": `sort-${column}` }, turn),
        );
      }),
    );
    this.put(
      el(
        "table",
        { "data-testid": "top" },
        el("caption", { class: "unseen" }, `Functions by ${typeName(loaded.type)}`),
        el("thead", {}, head),
        el("tbody", {}, ...listed.map((row) => this.functionRow(row, top))),
      ),
      rows.length - listed.length,
      top.rows.length >= TOP_LIMIT ? `Only the ${count(TOP_LIMIT)} functions with most self time are listed.` : "",
    );
  }

  private functionRow(row: TopRow, top: Top): HTMLTableRowElement {
    const kind = KINDS.find(([name]) => name === row.kind)?.[1] ?? row.kind;
    const name = button(row.function, { class: "link", title: row.function }, () =>
      this.update({ search: exactly(row.function) }),
    );
    return el(
      "tr",
      { "data-testid": "top-row" },
      el("td", { class: "function" }, name),
      el("td", { class: "file", title: place(row) }, shortFile(row.file) + (row.line > 0 ? `:${row.line}` : "")),
      el("td", { class: "kind" }, el("span", { class: `swatch kind-${row.kind}` }), kind),
      el("td", { class: "number" }, human(row.self, top.unit)),
      bar(share(row.self, top.total), row.self, top.total),
      el("td", { class: "number" }, human(row.total, top.unit)),
      bar(share(row.total, top.total), row.total, top.total),
    );
  }

  private drawBreakdown(by: string, breakdown: Breakdown, loaded: Loaded, total: number): void {
    const title = DIMENSION_NAMES[by] ?? by;
    const rows = this.all ? breakdown.rows : breakdown.rows.slice(0, FIRST_ROWS);
    const inFrames = FRAME_DIMENSIONS.includes(by);
    const choose = (value: string): void => {
      if (inFrames) this.update({ search: exactly(value) });
      else if (by === "service_name") this.update({ service: value, sampler: "" });
      else if (by === "sampler") this.update({ sampler: value });
      else this.addMatch(by, value);
    };
    this.put(
      el(
        "table",
        { "data-testid": "breakdown" },
        el("caption", { class: "unseen" }, `${typeName(loaded.type)} by ${title}`),
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            el("th", { scope: "col", class: "text" }, title),
            el("th", { scope: "col", class: "number", colspan: 2 }, typeName(loaded.type)),
            el("th", { scope: "col", class: "number" }, "Samples"),
          ),
        ),
        el(
          "tbody",
          {},
          ...rows.map((row) => {
            const value = String(row[by] ?? "");
            return el(
              "tr",
              { "data-testid": "breakdown-row" },
              el(
                "td",
                { class: "function" },
                value || !inFrames
                  ? button(value || "(none)", { class: "link", title: value || "(none)" }, () => choose(value))
                  : el("span", { class: "none" }, "(none)"),
              ),
              el("td", { class: "number" }, human(row.value, breakdown.unit)),
              bar(share(row.value, total), row.value, total),
              el("td", { class: "number" }, count(row.samples)),
            );
          }),
        ),
      ),
      breakdown.rows.length - rows.length,
      "",
    );
  }

  private put(table: HTMLTableElement, left: number, note: string): void {
    const focused = document.activeElement;
    const sortFocus = this.body.contains(focused) ? focused?.getAttribute("data-testid") : null;
    const more = left > 0 ? button(`Show ${count(left)} more`, { "data-testid": "show-all" }, () => this.showAll()) : null;
    this.body.replaceChildren(table, ...(more ? [more] : []), ...(note ? [el("p", { class: "hint" }, note)] : []));
    if (sortFocus) this.body.querySelector<HTMLElement>(`[data-testid="${sortFocus}"]`)?.focus();
  }

  private showAll(): void {
    this.all = true;
    this.update({});
  }
}
