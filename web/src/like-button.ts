import { once } from "./browser.js";
import { hubOf } from "./hub.js";
import type { Hub, View } from "./hub.js";
import { isContent } from "./ids.js";
import type { Shown, TokenProvider } from "./types.js";
import { build } from "./view.js";

export type { Reason, Shown, State, TokenProvider } from "./types.js";

/** What `like-change`, `like-queued`, `like-error` and `like-auth-required` tell. All bubble, out of shadow roots too. */
export interface LikeDetail extends Shown {
  /** `post:42` */
  content: string;
}

/** What buttons say. */
export interface Strings {
  /** The button's name where it has no attribute `label`. */
  like: string;
  /** Follows a number, for those who do not see the heart. */
  likes(count: number): string;
  /** Said after a like. */
  liked: string;
  /** Said after it was taken back. */
  unliked: string;
  /** Shown and said while a like waits for the network or the server. */
  queued: string;
  /** Shown and said when a like was given up. */
  failed: string;
}

const origin = new URL(import.meta.url).origin;
/** Buttons are kept up to date shortly before they come into view. */
const NEAR = "200px";

const formats = new Map<string, Intl.NumberFormat>();
const format = (language: string, count: number): string =>
  once(formats, language, () => new Intl.NumberFormat(language, { notation: "compact" })).format(count);

const seen = new IntersectionObserver(
  (entries) => entries.forEach(({ target, isIntersecting }) => (target as LikeButton).see(isIntersecting)),
  { rootMargin: NEAR },
);

/**
 * A like button for one content of a Likewise server.
 *
 * `<like-button content="post:42" api="https://likes.example"></like-button>`
 */
export class LikeButton extends HTMLElement {
  static readonly observedAttributes = ["content", "api", "viewer", "label", "count", "liked", "readonly", "hide-count-below"];

  /** What all buttons say; set members before the first button is made, or call `render()` on those that are there. */
  static strings: Strings = {
    like: "Like",
    likes: (count) => (count === 1 ? "like" : "likes"),
    liked: "Liked",
    unliked: "Like removed",
    queued: "Will be sent",
    failed: "Not sent",
  };

  #parts: ReturnType<typeof build> | undefined;
  #hub: Hub | undefined;
  #content = "";
  #isVisible = false;
  readonly #view: View = {
    isVisible: () => this.#isVisible,
    render: () => this.render(),
    tell: (event) => {
      if (event !== "like-auth-required") this.#say(event === "like-error" ? "failed" : "queued");
      this.#emit(event);
    },
  };

  connectedCallback(): void {
    if (!this.#parts) {
      this.#parts = build(this);
      this.#parts.button.onclick = () => this.toggle();
    }
    seen.observe(this);
    this.#join();
  }

  disconnectedCallback(): void {
    seen.unobserve(this);
    this.#isVisible = false;
    this.#leave();
  }

  attributeChangedCallback(name: string): void {
    if (!this.isConnected || !this.#parts) return;
    if (name < "b" || name === "content" || name === "viewer") {
      this.#leave();
      this.#join();
    } else {
      this.render();
    }
  }

  /** @internal */
  see(isVisible: boolean): void {
    this.#isVisible = isVisible;
    this.#hub?.watch();
  }

  #join(): void {
    const content = this.getAttribute("content");
    if (isContent(content)) {
      this.#content = content;
      this.#hub = this.#ownHub;
      const count = parseInt(this.getAttribute("count")!);
      this.#hub.join(content, this.#view, count >= 0 ? { count, liked: this.hasAttribute("liked") } : undefined);
    } else if (content) {
      console.error("<like-button>: content must be like post:42");
    }
    this.render();
  }

  #leave(): void {
    this.#hub?.leave(this.#content, this.#view);
    this.#hub = undefined;
  }

  get #ownHub(): Hub {
    return hubOf((this.getAttribute("api") ?? origin).replace(/\/+$/, ""), this.getAttribute("viewer"));
  }

  /** What it shows; undefined if it has no valid `content`. */
  get shown(): Shown | undefined {
    return this.#hub?.shown(this.#content);
  }

  /**
   * The signed-in user's token, for all buttons of the same `api` on the page; null signs out: what that user wanted and
   * was not sent is forgotten. It is kept in memory only.
   */
  set token(token: string | null) {
    this.#ownHub.setToken(token);
  }

  /** Gives tokens, for all buttons of the same `api` on the page; asked again when one is refused. */
  set tokenProvider(provider: TokenProvider | undefined) {
    this.#ownHub.setProvider(provider);
  }

  /** Likes (true), takes the like back (false), or does the other of the two. Does nothing if it is `readonly`. */
  async toggle(liked?: boolean): Promise<void> {
    const hub = this.#hub;
    if (!hub || this.hasAttribute("readonly")) return;
    const isReady = hub.isReady();
    if (!(isReady === true || (await isReady))) return this.#emit("like-auth-required");
    liked ??= !this.shown?.liked;
    this.#parts!.button.className = liked ? "pop" : "";
    this.#say(liked ? "liked" : "unliked");
    hub.put(this.#content, liked);
    this.#emit("like-change");
  }

  /** Asks the server again, for all buttons of the same `api` on the page. */
  refresh(): void {
    this.#hub?.refresh();
  }

  #say(what: "liked" | "unliked" | "queued" | "failed"): void {
    this.#parts!.status.textContent = LikeButton.strings[what];
  }

  #emit(name: string): void {
    const detail = { content: this.#content, ...this.shown };
    this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true }));
  }

  /** Shows what is known. Needed only after `LikeButton.strings` changed. */
  render(): void {
    const { strings } = LikeButton;
    const { button, label, number, noun, hint } = this.#parts!;
    const { liked = false, count = -1, state = "", failure = "" } = this.shown ?? {};
    const isCounted = count >= Number(this.getAttribute("hide-count-below"));
    button.ariaPressed = String(liked);
    button.disabled = !this.#hub || this.hasAttribute("readonly");
    button.part.toggle("liked", liked);
    const language = this.closest<HTMLElement>("[lang]")?.lang || navigator.language;
    for (const [part, text] of [
      [label, this.getAttribute("label") ?? strings.like],
      [number, isCounted ? format(language, count) : ""],
      [noun, isCounted ? ` ${strings.likes(count)}` : ""],
      [hint, state === "queued" || state === "failed" ? strings[state] : ""],
    ] as const) {
      if (part.textContent !== text) part.textContent = text;
    }
    hint.title = failure;
  }
}

declare global {
  interface HTMLElementTagNameMap {
    "like-button": LikeButton;
  }
  interface HTMLElementEventMap {
    "like-change": CustomEvent<LikeDetail>;
    "like-queued": CustomEvent<LikeDetail>;
    "like-error": CustomEvent<LikeDetail>;
    "like-auth-required": CustomEvent<LikeDetail>;
  }
}

if (!customElements.get("like-button")) customElements.define("like-button", LikeButton);
