// The tables under the graph: functions by value, and the total broken down by a label.
import type { Top, TopRow } from "./api";
import { button, el, setOptions } from "./dom";
import type { Update } from "./explorer";
import { exactly, KINDS, place, shortFile } from "./frames";
import { TOP_LIMIT, type Loaded, type Profiled } from "./load";
import { count, human, share, typeName } from "./units";
import type { Column, View } from "./view";

const FIRST_FUNCTIONS = 50;
const FIRST_PARTS = 8;
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

/** A table in its own panel, cut to its first rows until the reader asks for all. */
class Panel {
  private readonly body = el("div", { class: "table-box" });
  readonly element: HTMLElement;
  private all = false;
  private shownFor = "";

  constructor(
    label: string,
    private readonly first: number,
    ...heading: Node[]
  ) {
    this.element = el(
      "section",
      { class: "panel", "aria-label": label },
      el("div", { class: "heading" }, ...heading),
      this.body,
    );
  }

  /** Show `rows` under `head`; `subject` is what they are about: another one is cut again. */
  show<Row>(
    subject: string,
    table: { testId: string; caption: string; head: HTMLTableRowElement; note?: string },
    rows: Row[],
    draw: (row: Row) => HTMLTableRowElement,
  ): void {
    if (subject !== this.shownFor) this.all = false;
    this.shownFor = subject;
    const listed = this.all ? rows : rows.slice(0, this.first);
    const left = rows.length - listed.length;
    const focused = this.body.contains(document.activeElement)
      ? document.activeElement?.getAttribute("data-testid")
      : null;
    this.body.replaceChildren(
      el(
        "table",
        { "data-testid": table.testId },
        el("caption", { class: "unseen" }, table.caption),
        el("thead", {}, table.head),
        el("tbody", {}, ...listed.map(draw)),
      ),
      ...(left
        ? [
            button(`Show ${count(left)} more`, { "data-testid": "show-all" }, () => {
              this.all = true;
              this.show(subject, table, rows, draw);
            }),
          ]
        : []),
      ...(table.note ? [el("p", { class: "hint" }, table.note)] : []),
    );
    // Drawing again must not take the focus from the header that was just pressed.
    if (focused) this.body.querySelector<HTMLElement>(`[data-testid="${focused}"]`)?.focus();
  }
}

export class Tables {
  private readonly by = el("select", { "data-testid": "breakdown-by", "aria-label": "Break the total down by" });
  private readonly functions = new Panel("Functions", FIRST_FUNCTIONS, el("h2", {}, "Functions"));
  private readonly parts = new Panel("Breakdown", FIRST_PARTS, el("h2", {}, "Breakdown"), this.by);
  readonly element = el("div", { class: "tables" }, this.parts.element, this.functions.element);

  constructor(
    private readonly update: Update,
    private readonly addMatch: (name: string, value: string) => void,
  ) {
    this.by.addEventListener("change", () => this.update({ by: this.by.value }));
  }

  render(view: View, loaded: Loaded, profiled: Profiled): void {
    const dimensions = [...loaded.labels.filter((name) => !NOT_DIMENSIONS.has(name)), ...FRAME_DIMENSIONS];
    setOptions(
      this.by,
      dimensions.map((name) => [name, `by ${DIMENSION_NAMES[name] ?? name}`]),
      view.by,
    );
    this.drawFunctions(view, loaded, profiled.top);
    this.drawBreakdown(loaded, profiled);
  }

  private drawFunctions(view: View, loaded: Loaded, top: Top): void {
    const rows = [...top.rows].sort(compare(view.sort, view.descending));
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
    this.functions.show(
      `${loaded.service} ${loaded.type}`,
      {
        testId: "top",
        caption: `Functions by ${typeName(loaded.type)}`,
        head,
        note: rows.length >= TOP_LIMIT ? `Only the ${count(TOP_LIMIT)} with most self time are listed.` : "",
      },
      rows,
      (row) => this.functionRow(row, top),
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

  private drawBreakdown(loaded: Loaded, { breakdown, by, graph }: Profiled): void {
    const title = DIMENSION_NAMES[by] ?? by;
    const inFrames = FRAME_DIMENSIONS.includes(by);
    const choose = (value: string): void => {
      if (inFrames) this.update({ search: exactly(value) });
      else if (by === "service_name") this.update({ service: value, sampler: "", zoom: "" });
      else if (by === "sampler") this.update({ sampler: value, zoom: "" });
      else this.addMatch(by, value);
    };
    const head = el(
      "tr",
      {},
      el("th", { scope: "col", class: "text" }, title),
      el("th", { scope: "col", class: "number", colspan: 2 }, typeName(loaded.type)),
      el("th", { scope: "col", class: "number" }, "Samples"),
    );
    this.parts.show(
      `${loaded.service} ${loaded.type} ${by}`,
      { testId: "breakdown", caption: `${typeName(loaded.type)} by ${title}`, head },
      breakdown.rows,
      (row) => {
        const value = String(row[by] ?? "");
        const name = value || "(none)";
        return el(
          "tr",
          { "data-testid": "breakdown-row" },
          el(
            "td",
            { class: "function" },
            value || !inFrames
              ? button(name, { class: "link", title: name }, () => choose(value))
              : el("span", { class: "none" }, name),
          ),
          el("td", { class: "number" }, human(row.value, breakdown.unit)),
          bar(share(row.value, graph.total), row.value, graph.total),
          el("td", { class: "number" }, count(row.samples)),
        );
      },
    );
  }
}
