import { attempt } from "./browser.js";
import { hubOf } from "./hub.js";
import type { Hub, Told } from "./hub.js";
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

/** In few characters. A page may say that it is in a language that there is not. */
const format = (language: string | undefined, count: number): string =>
  attempt(() => count.toLocaleString(language, { notation: "compact" })) ?? format(undefined, count);

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
  /** @internal */
  isVisible = false;
  /** What was said before it was known of which server. */
  #later: ((hub: Hub) => void) | undefined;

  connectedCallback(): void {
    if (!this.#parts) {
      this.#parts = build(this);
      this.#parts.button.onclick = () => this.toggle();
      // What a page has set before the script came.
      const own: Partial<this> = { ...this };
      for (const name in own) delete this[name];
      Object.assign(this, own);
    }
    seen.observe(this);
    this.#join();
  }

  disconnectedCallback(): void {
    seen.unobserve(this);
    this.isVisible = false;
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
  tell(event: Told): void {
    if (event !== "auth-required") this.#say(event === "error" ? "failed" : event);
    this.#emit(event);
  }

  /** @internal */
  see(isVisible: boolean): void {
    this.isVisible = isVisible;
    this.#hub?.watch();
  }

  #join(): void {
    const content = this.getAttribute("content");
    if (isContent(content)) {
      this.#content = content;
      const hub = (this.#hub = hubOf((this.getAttribute("api") ?? origin).replace(/\/+$/, ""), this.getAttribute("viewer")));
      this.#later?.(hub);
      this.#later = undefined;
      const count = parseInt(this.getAttribute("count")!);
      hub.join(content, this, count >= 0 ? { count, liked: this.hasAttribute("liked") } : undefined);
    } else if (content) {
      console.error("like-button: no content such as post:42");
    }
    this.render();
  }

  #leave(): void {
    this.#hub?.leave(this.#content, this);
    this.#hub = undefined;
  }

  #tell(say: (hub: Hub) => void): void {
    if (this.#hub) say(this.#hub);
    else this.#later = say;
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
    this.#tell((hub) => hub.setToken(token));
  }

  /**
   * Gives tokens, for all buttons of the same `api` on the page; asked again when one is refused. Another one is for the same
   * user: set null in between for another user.
   */
  set tokenProvider(provider: TokenProvider | null | undefined) {
    this.#tell((hub) => hub.setProvider(provider ?? undefined));
  }

  /** Likes (true), takes the like back (false), or does the other of the two. Does nothing if it is `readonly`. */
  async toggle(liked?: boolean): Promise<void> {
    const hub = this.#hub;
    const content = this.#content;
    if (!hub || this.hasAttribute("readonly")) return;
    const isReady = hub.isReady();
    if (!(isReady === true || (await isReady))) return this.#emit("auth-required");
    // It may have become the button of something else.
    if (hub !== this.#hub || content !== this.#content) return;
    liked ??= !this.shown?.liked;
    this.#say(liked ? "liked" : "unliked");
    hub.put(content, liked);
    this.#emit("change");
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
    this.dispatchEvent(new CustomEvent(`like-${name}`, { detail, bubbles: true, composed: true }));
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
