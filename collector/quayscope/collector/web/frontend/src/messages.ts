// What the page says where it has nothing to draw: what happened, and what to do next.
import type { ApiError } from "./api";
import { button, el } from "./dom";
import type { Update } from "./explorer";
import type { Loaded } from "./load";
import { typeName } from "./units";
import { matchText, PRESETS, type View } from "./view";

function message(testId: string, title: string, ...rest: (Node | null)[]): HTMLElement {
  return el("section", { class: "panel message", "data-testid": testId }, el("h2", {}, title), ...rest);
}

function actions(...buttons: (HTMLButtonElement | null)[]): HTMLElement {
  return el("div", { class: "buttons" }, ...buttons);
}

/** Longer ranges than the one in force, as buttons. */
function widen(view: View, update: Update): HTMLButtonElement[] {
  const { range } = view;
  const seconds = "last" in range ? range.last : 0;
  return PRESETS.filter(([, longer]) => longer > seconds).map(([label, longer]) =>
    button(`Last ${label}`, {}, () => update({ range: { last: longer } })),
  );
}

/** No service has sent anything in the range. */
export function nothingYet(view: View, update: Update): HTMLElement {
  const when = "last" in view.range ? `in the last ${Math.round(view.range.last / 60)} min` : "in this stretch of time";
  return message(
    "empty",
    `No profiles ${when}`,
    el("p", {}, "Nothing has been received for this time. Look at a longer one, or start something that sends profiles:"),
    el(
      "ul",
      {},
      el("li", {}, el("code", {}, "quayscope sidecar"), " beside Quay, Clair or Postgres"),
      el("li", {}, el("code", {}, "quayscope demo"), " for a small stack under load on this machine"),
    ),
    actions(...widen(view, update)),
    el("p", { class: "hint" }, "This page looks again every 5 s."),
  );
}

/** There are profiles, but none that match. */
export function nothingMatches(view: View, loaded: Loaded, update: Update): HTMLElement {
  const what = typeName(loaded.type) || "profile";
  const whose = loaded.service || "any service";
  return message(
    "empty",
    `No ${what} of ${whose} matches`,
    view.matches.length
      ? el("p", {}, `In force: ${view.matches.map(matchText).join(", ")}.`)
      : el("p", {}, "This service sent no such profile in this time. Choose another profile, service or time above."),
    actions(
      view.matches.length
        ? button("Remove the filters", { "data-testid": "clear-filters" }, () => update({ matches: [], zoom: "" }))
        : null,
      ...loaded.types
        .filter((type) => type.id !== loaded.type)
        .slice(0, 3)
        .map((type) => button(typeName(type.id), {}, () => update({ type: type.id, sampler: "", zoom: "" }))),
      ...widen(view, update),
    ),
  );
}

/** All services together, and one of them measured twice. */
export function mixedSamplers(loaded: Loaded, update: Update): HTMLElement {
  return message(
    "mixed",
    `${loaded.mixed} was measured by more than one sampler`,
    el("p", {}, "Their CPU must not be added up. Choose one sampler for all services, or look at one service:"),
    actions(
      ...loaded.samplers.map((sampler) => button(`sampler ${sampler}`, {}, () => update({ sampler }))),
      ...loaded.services.map((service) => button(service, {}, () => update({ service, sampler: "", zoom: "" }))),
    ),
  );
}

/** The collector refused or did not answer. */
export function failed(error: ApiError, view: View, update: Update, retry: () => void): HTMLElement {
  // A refused question may stand in the address: offer ways out that do not need it edited by hand.
  const refused = error.status >= 400 && error.status < 500;
  const afresh = { service: null, type: "", sampler: "", matches: [], range: { last: 900 }, zoom: "", by: "endpoint" };
  return message(
    "error",
    error.message,
    error.nextStep ? el("p", {}, error.nextStep) : null,
    actions(
      button("Try again", { "data-testid": "retry" }, retry),
      refused && view.matches.length
        ? button("Remove the filters", { "data-testid": "clear-filters" }, () => update({ matches: [], zoom: "" }))
        : null,
      refused ? button("Start afresh", { "data-testid": "afresh" }, () => update(afresh)) : null,
    ),
  );
}

/** The first answer is on its way. */
export function loading(): HTMLElement {
  return el("section", { class: "panel skeleton", "data-testid": "loading" }, el("p", {}, "Loading…"));
}
