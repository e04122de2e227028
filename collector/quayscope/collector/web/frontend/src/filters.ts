// Filters by label: chips for those that hold, and a form that suggests names and values from the data.
import { values, type Selector } from "./api";
import { button, el, setOptions } from "./dom";
import type { Update } from "./explorer";
import type { Loaded } from "./load";
import { matchText, type Match, type View } from "./view";

/** These have pickers of their own. */
const PICKED = new Set(["service_name", "sampler"]);
const FIRST = "endpoint";
const MOST_SUGGESTED = 500;

export class Filters {
  private readonly chips = el("ul", { class: "chips", "aria-label": "Filters in force", "data-testid": "filters" });
  private readonly name = el("select", { "aria-label": "Label", "data-testid": "filter-name" });
  private readonly operator = el(
    "select",
    { "aria-label": "Is or is not", "data-testid": "filter-operator" },
    el("option", { value: "=" }, "is"),
    el("option", { value: "!=" }, "is not"),
  );
  private readonly suggestions = el("datalist", { id: "filter-values" });
  private readonly value = el("input", {
    type: "text",
    list: "filter-values",
    placeholder: "value",
    "aria-label": "Value",
    "data-testid": "filter-value",
    autocomplete: "off",
    spellcheck: "false",
    required: true,
  });
  readonly element: HTMLElement;
  private view: View | null = null;
  private loaded: Loaded | null = null;
  private asked = new AbortController();
  private suggestedFor = "";

  constructor(private readonly update: Update) {
    const form = el(
      "form",
      { class: "filter-form", "aria-label": "Add a filter" },
      this.name,
      this.operator,
      this.value,
      this.suggestions,
      el("button", { type: "submit", "data-testid": "filter-add" }, "Add filter"),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.add(this.name.value, this.value.value.trim(), this.operator.value === "=");
      this.value.value = "";
    });
    this.name.addEventListener("change", () => {
      this.value.value = "";
      void this.suggest();
    });
    this.value.addEventListener("focus", () => void this.suggest());
    this.element = el("div", { class: "filters" }, el("span", { class: "caption" }, "Filters"), this.chips, form);
  }

  /** Add a filter; one that already holds is not added twice. An empty value means "has none". */
  add(name: string, value: string, equal = true): void {
    if (!this.view || !name) return;
    const match: Match = { name, value, equal };
    const held = this.view.matches.some((other) => matchText(other) === matchText(match));
    if (!held) this.update({ matches: [...this.view.matches, match], zoom: "" });
  }

  render(view: View, loaded: Loaded | null): void {
    this.view = view;
    this.loaded = loaded;
    this.chips.replaceChildren(
      ...view.matches.map((match) =>
        el(
          "li",
          { class: "chip", "data-testid": "filter-chip" },
          el("span", { class: "chip-name" }, match.name),
          el("span", { class: "chip-operator" }, match.equal ? "=" : "≠"),
          el("span", { class: "chip-value", title: match.value }, match.value || "(none)"),
          button("×", { "aria-label": `Remove the filter ${matchText(match)}`, "data-testid": "filter-remove" }, () =>
            this.update({ matches: view.matches.filter((other) => other !== match), zoom: "" }),
          ),
        ),
      ),
    );
    const names = (loaded?.labels ?? []).filter((name) => !PICKED.has(name));
    names.sort((a, b) => Number(b === FIRST) - Number(a === FIRST));
    if (names.length) {
      const chosen = names.includes(this.name.value) ? this.name.value : (names[0] ?? "");
      setOptions(this.name, names.map((name) => [name, name]), chosen);
    }
    this.element.hidden = !loaded?.services.length;
  }

  private async suggest(): Promise<void> {
    const { view, loaded } = this;
    const name = this.name.value;
    if (!view || !loaded || !name) return;
    const match = view.matches.filter((held) => held.name !== name).map(matchText);
    if (loaded.service) match.unshift(`service_name=${loaded.service}`);
    const selector: Selector = { from: loaded.from, to: loaded.to, match };
    const key = JSON.stringify([name, selector]);
    if (key === this.suggestedFor) return;
    this.asked.abort();
    this.asked = new AbortController();
    const { signal } = this.asked;
    try {
      const found = await values(signal, name, selector);
      this.suggestions.replaceChildren(
        ...found.slice(0, MOST_SUGGESTED).map((value) => el("option", { value })),
      );
      this.suggestedFor = key;
    } catch {
      // Suggestions are a convenience: a value may be typed all the same.
      if (!signal.aborted) this.suggestions.replaceChildren();
    }
  }
}
