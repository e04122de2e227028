// Building elements. Text only ever goes in as text nodes: names of frames are not to be trusted.

type Attributes = Record<string, string | number | boolean | undefined>;
type Child = Node | string | null | false;

/** Make an element; `false` and `undefined` attributes are left out, `true` ones are empty. */
export function el<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[Tag] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child): child is Node | string => child !== null && child !== false));
  return element;
}

/** Make a button that does something; never a form's submit by accident. */
export function button(label: string, attributes: Attributes, act: () => void): HTMLButtonElement {
  const made = el("button", { type: "button", ...attributes }, label);
  made.addEventListener("click", act);
  return made;
}

/** Make a labelled select. */
export function picker(
  label: string,
  testId: string,
  change: (value: string) => void,
): { field: HTMLLabelElement; select: HTMLSelectElement } {
  const select = el("select", { "data-testid": testId });
  select.addEventListener("change", () => change(select.value));
  return { field: el("label", { class: "field" }, el("span", {}, label), select), select };
}

/** Give a select its options; what is chosen stays on the list though it may have no data. */
export function setOptions(select: HTMLSelectElement, options: [value: string, label: string][], chosen: string): void {
  const listed = options.some(([value]) => value === chosen);
  const all: [string, string][] = listed || !chosen ? options : [...options, [chosen, `${chosen} (no data)`]];
  const same =
    select.options.length === all.length &&
    all.every(([value, label], index) => {
      const option = select.options[index];
      return option?.value === value && option.textContent === label;
    });
  // Rebuilding closes a list that is open under the reader's pointer.
  if (!same) select.replaceChildren(...all.map(([value, label]) => el("option", { value }, label)));
  select.value = chosen;
}
