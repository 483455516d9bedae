// The parts of a button, and how they look unless a page says otherwise.

const CSS = `:host{display:inline-flex;position:relative;align-items:center;gap:.3em;height:var(--like-button-size,2.25rem);white-space:nowrap;vertical-align:middle}
:host([hidden]){display:none}
button{all:unset;display:grid;place-items:center;width:var(--like-button-size,2.25rem);height:100%;border-radius:50%}
button:enabled:hover{background:#8882;cursor:pointer}
button:focus-visible{outline:2px solid;outline-offset:1px}
[aria-pressed=true]{color:var(--like-button-color,#d81b60)}
svg,::slotted(*){width:60%;height:60%;fill:none;stroke:currentColor;stroke-width:2}
[aria-pressed=true] svg{fill:currentColor}
button:active svg{scale:.8}
[part=count]{min-width:var(--like-button-count-width,4ch);font-variant-numeric:tabular-nums}
[part=hint]{position:absolute;top:90%;font-size:.7em}
i{position:absolute;clip-path:inset(50%);width:1px;overflow:hidden}`;

const HEART = "M12 20C5 15 3 12 3 8.5A4.5 4.5 0 0 1 12 7A4.5 4.5 0 0 1 21 8.5C21 12 19 15 12 20z";

let sheet: CSSStyleSheet | undefined;

function add<T extends Element>(to: Node, element: T, attributes: Record<string, string> = {}): T {
  for (const name in attributes) element.setAttribute(name, attributes[name]!);
  return to.appendChild(element);
}

/** Builds the parts without any text that a script or a style could be made of. */
export function build(host: HTMLElement) {
  const shadow = host.attachShadow({ mode: "open", delegatesFocus: true });
  if (!sheet) {
    sheet = new CSSStyleSheet();
    sheet.replaceSync(CSS);
  }
  shadow.adoptedStyleSheets = [sheet];
  const make = (to: Node, name: string, attributes?: Record<string, string>) => add(to, document.createElement(name), attributes);
  const draw = (to: Node, name: string, attributes: Record<string, string>) =>
    add(to, document.createElementNS("http://www.w3.org/2000/svg", name), attributes);
  const button = make(shadow, "button", { part: "button" }) as HTMLButtonElement;
  draw(draw(make(button, "slot", { name: "icon" }), "svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }), "path", { d: HEART });
  const label = make(button, "i");
  const count = make(shadow, "span", { part: "count" });
  return {
    button,
    label,
    number: make(count, "span"),
    noun: make(count, "i"),
    hint: make(shadow, "span", { part: "hint" }),
    status: make(shadow, "i", { role: "status" }),
  };
}
