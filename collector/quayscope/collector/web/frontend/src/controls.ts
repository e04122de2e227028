// The top bar: which service, type and sampler, over which time, reloaded how often.
import { button, el, picker, setOptions } from "./dom";
import type { Update } from "./explorer";
import type { Loaded } from "./load";
import { typeName } from "./units";
import { PRESETS, REFRESHES, resolveRange, type View } from "./view";

/** The form of a `datetime-local` input: local time, to the second. */
function localTime(unixSeconds: number): string {
  const at = new Date(unixSeconds * 1000);
  return new Date(at.getTime() - at.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
}

function timeInput(label: string, testId: string): HTMLInputElement {
  return el("input", { type: "datetime-local", step: 1, "aria-label": label, "data-testid": testId, required: true });
}

export class Controls {
  private readonly service = picker("Service", "service", (service) =>
    this.update({ service, sampler: "", zoom: "" }),
  );
  private readonly type = picker("Profile", "type", (type) => this.update({ type, sampler: "", zoom: "" }));
  private readonly sampler = picker("Sampler", "sampler", (sampler) => this.update({ sampler, zoom: "" }));
  private readonly refresh = picker("Auto refresh", "refresh", (value) => this.update({ refresh: Number(value) }));
  private readonly presets: [seconds: number, HTMLButtonElement][];
  private readonly custom: HTMLButtonElement;
  private readonly from = timeInput("From", "range-from");
  private readonly to = timeInput("To", "range-to");
  private readonly stretch: HTMLFormElement;
  private range: View["range"] = { last: 0 };
  readonly element: HTMLElement;

  constructor(
    private readonly update: Update,
    reload: () => void,
  ) {
    this.presets = PRESETS.map(([label, seconds]) => [
      seconds,
      button(label, { "data-testid": `range-${seconds}` }, () => this.update({ range: { last: seconds } })),
    ]);
    this.custom = button("Custom", { "data-testid": "range-custom", title: "Keep to the stretch shown now, or set one" }, () =>
      this.pin(),
    );
    this.stretch = el(
      "form",
      { class: "stretch", hidden: true, "aria-label": "Custom time range" },
      this.from,
      el("span", {}, "to"),
      this.to,
      el("button", { type: "submit", "data-testid": "range-apply" }, "Apply"),
    );
    this.stretch.addEventListener("submit", (event) => {
      event.preventDefault();
      this.apply();
    });
    setOptions(
      this.refresh.select,
      REFRESHES.map((seconds) => [String(seconds), seconds ? `every ${seconds} s` : "off"]),
      "0",
    );
    this.element = el(
      "header",
      { class: "bar" },
      el("h1", {}, el("img", { src: "icon.svg", alt: "", width: 20, height: 20 }), "Quayscope"),
      this.service.field,
      this.type.field,
      this.sampler.field,
      el(
        "div",
        { class: "field time" },
        el("span", { id: "range-label" }, "Time"),
        el(
          "div",
          { class: "segments", role: "group", "aria-labelledby": "range-label" },
          ...this.presets.map(([, preset]) => preset),
          this.custom,
        ),
      ),
      this.refresh.field,
      button("Refresh", { "data-testid": "reload" }, reload),
      this.stretch,
    );
  }

  render(view: View, loaded: Loaded | null): void {
    const service = view.service ?? loaded?.service ?? "";
    const services = (loaded?.services ?? []).map((name): [string, string] => [name, name]);
    setOptions(this.service.select, [...services, ["", "all services"]], service);
    setOptions(
      this.type.select,
      (loaded?.types ?? []).map((type) => [type.id, typeName(type.id)]),
      loaded?.type ?? view.type,
    );
    const samplers = (loaded?.samplers ?? []).map((name): [string, string] => [name, name]);
    const choice = samplers.length > 1 || (view.sampler !== "" && !loaded?.samplers.includes(view.sampler));
    this.sampler.field.hidden = !choice;
    setOptions(this.sampler.select, service ? samplers : [["", "each its own"], ...samplers], loaded?.sampler ?? "");
    this.drawRange(view);
    this.refresh.select.value = String(view.refresh);
    this.refresh.select.disabled = "from" in view.range;
  }

  private drawRange(view: View): void {
    const { range } = view;
    for (const [seconds, preset] of this.presets) {
      preset.setAttribute("aria-pressed", String("last" in range && range.last === seconds));
    }
    this.custom.setAttribute("aria-pressed", String("from" in range));
    this.stretch.hidden = !("from" in range);
    if ("from" in range && JSON.stringify(range) !== JSON.stringify(this.range)) {
      this.from.value = localTime(range.from);
      this.to.value = localTime(range.to);
    }
    this.range = range;
  }

  /** Turn "the last so long" into the stretch it means now: the link then always shows the same. */
  private pin(): void {
    const { from, to } = resolveRange(this.range);
    this.update({ range: { from: Math.floor(from), to: Math.ceil(to) } });
    this.from.focus();
  }

  private apply(): void {
    const from = new Date(this.from.value).getTime() / 1000;
    const to = new Date(this.to.value).getTime() / 1000;
    const sound = Number.isFinite(from) && Number.isFinite(to) && to > from;
    this.to.setCustomValidity(sound ? "" : "The end must be later than the start.");
    if (sound) this.update({ range: { from, to } });
    else this.to.reportValidity();
    this.to.setCustomValidity("");
  }
}
