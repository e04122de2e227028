// The page: one view, loaded and drawn again whenever it changes. The address always says what is shown.
import { ApiError, health } from "./api";
import { Controls } from "./controls";
import { el } from "./dom";
import { Explorer } from "./explorer";
import { Filters } from "./filters";
import { load, type Loaded } from "./load";
import { failed, loading, mixedSamplers, nothingMatches, nothingYet } from "./messages";
import { Tables } from "./tables";
import { Totals } from "./totals";
import { typeName } from "./units";
import { formatView, parseView, type View } from "./view";
import "./page.css";

const WAITING_RELOAD_S = 5;
/** A change of any of these needs other data; of the rest, another drawing. */
const LOADED_BY: (keyof View)[] = ["service", "type", "sampler", "matches", "range", "by"];
/** A change of any of these is a step that the browser's back button undoes. */
const STEPS: (keyof View)[] = [...LOADED_BY, "zoom", "rootOnTop"];

class Page {
  private view = parseView(location.search);
  private loaded: Loaded | null = null;
  private failure: ApiError | null = null;
  private request = new AbortController();
  private timer = 0;
  private busy = false;

  private readonly update = (patch: Partial<View>): void => this.change(patch);
  private readonly controls = new Controls(this.update, () => void this.reload());
  private readonly filters = new Filters(this.update);
  private readonly totals = new Totals();
  private readonly explorer = new Explorer(this.update);
  private readonly tables = new Tables(this.update, (name, value) => this.filters.add(name, value));
  private readonly content = el("main", { id: "content" });
  private readonly status = el("div", { class: "unseen", role: "status", "data-testid": "status" });
  private readonly version = el("span", { "data-testid": "version" });

  start(): void {
    document.body.append(
      el("div", { class: "progress", "aria-hidden": "true" }),
      el("div", { class: "top" }, this.controls.element, this.filters.element),
      this.content,
      el(
        "footer",
        {},
        this.version,
        el("span", {}, "The same data for programs: ", el("a", { href: "api/v1/status" }, "/api/v1/")),
      ),
      this.status,
    );
    window.addEventListener("popstate", () => {
      this.view = parseView(location.search);
      void this.reload();
    });
    document.addEventListener("keydown", (event) => this.key(event));
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.period()) void this.reload();
    });
    void this.greet();
    void this.reload();
  }

  private async greet(): Promise<void> {
    try {
      const { version } = await health(new AbortController().signal);
      this.version.textContent = `Quayscope ${version}`;
    } catch {
      this.version.textContent = "Quayscope"; // the load beside this one says what is wrong
    }
  }

  private change(patch: Partial<View>): void {
    const before = this.view;
    this.view = { ...before, ...patch };
    const changed = (names: (keyof View)[]): boolean => names.some((name) => before[name] !== this.view[name]);
    const address = formatView(this.view);
    if (address !== (location.search || location.pathname)) {
      if (changed(STEPS)) history.pushState(null, "", address);
      else history.replaceState(null, "", address);
    }
    if (changed(LOADED_BY)) void this.reload();
    else this.draw();
    if (changed(["refresh"])) this.schedule();
  }

  private async reload(): Promise<void> {
    window.clearTimeout(this.timer);
    this.request.abort();
    const request = (this.request = new AbortController());
    this.setBusy(true);
    this.draw();
    try {
      this.loaded = await load(request.signal, this.view);
      this.failure = null;
    } catch (error) {
      if (request.signal.aborted) return;
      if (!(error instanceof ApiError)) throw error;
      this.failure = error;
    }
    if (request.signal.aborted) return;
    this.setBusy(false);
    this.draw();
    this.schedule();
  }

  private setBusy(busy: boolean): void {
    this.busy = busy;
    this.content.setAttribute("aria-busy", String(busy));
    document.body.classList.toggle("busy", busy);
  }

  /** Seconds until the page reloads by itself, 0: not at all. */
  private period(): number {
    if ("from" in this.view.range) return 0;
    const waiting = this.loaded !== null && !this.loaded.services.length;
    return this.view.refresh || (waiting ? WAITING_RELOAD_S : 0);
  }

  private schedule(): void {
    window.clearTimeout(this.timer);
    const seconds = this.period();
    if (!seconds || this.busy) return;
    this.timer = window.setTimeout(() => {
      if (!document.hidden) void this.reload();
    }, seconds * 1000);
  }

  private draw(): void {
    const { view, loaded } = this;
    this.controls.render(view, loaded);
    this.filters.render(view, loaded);
    const whose = loaded?.service || "all services";
    document.title = loaded?.type ? `${typeName(loaded.type)} · ${whose} · Quayscope` : "Quayscope";
    const retry = (): void => void this.reload();
    if (this.failure) {
      this.put("failed", failed(this.failure, view, this.update, retry));
    } else if (!loaded) {
      this.put("loading", loading());
    } else if (!loaded.services.length) {
      this.put("no profiles", nothingYet(view, this.update));
    } else if (loaded.mixed) {
      this.put("samplers to choose from", mixedSamplers(loaded, this.update));
    } else if (!loaded.profiled) {
      this.put("nothing matches", nothingMatches(view, loaded, this.update));
    } else {
      // In the document before they are drawn: the graph needs its width.
      this.put("shown", this.totals.element, this.explorer.element, this.tables.element);
      this.totals.render(loaded, loaded.profiled, view.matches.length > 0);
      this.explorer.render(view, loaded.profiled.graph);
      this.tables.render(view, loaded, loaded.profiled);
    }
  }

  private put(state: string, ...elements: HTMLElement[]): void {
    const same = elements.length === this.content.children.length &&
      elements.every((element, index) => element === this.content.children[index]);
    if (!same) this.content.replaceChildren(...elements);
    this.status.textContent = this.busy ? "loading" : state;
  }

  private key(event: KeyboardEvent): void {
    const target = event.target instanceof HTMLElement ? event.target : null;
    const typing = target?.matches("input, select, textarea") ?? false;
    if (event.key === "/" && !typing && this.content.contains(this.explorer.element)) {
      event.preventDefault();
      this.explorer.searchBox.focus();
    } else if (event.key === "Escape" && target === this.explorer.searchBox && this.view.search) {
      this.change({ search: "" });
    } else if (event.key === "Escape" && (!typing || target === this.explorer.searchBox) && this.view.zoom) {
      this.explorer.reset();
    }
  }
}

new Page().start();
