import type { Shown, TokenProvider } from "./types.js";
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
/**
 * A like button for one content of a Likewise server.
 *
 * `<like-button content="post:42" api="https://likes.example"></like-button>`
 */
export declare class LikeButton extends HTMLElement {
    #private;
    static readonly observedAttributes: string[];
    /** What all buttons say; set members before the first button is made, or call `render()` on those that are there. */
    static strings: Strings;
    connectedCallback(): void;
    disconnectedCallback(): void;
    attributeChangedCallback(name: string): void;
    /** What it shows; undefined if it has no valid `content`. */
    get shown(): Shown | undefined;
    /**
     * The signed-in user's token, for all buttons of the same `api` on the page; null signs out: what that user wanted and
     * was not sent is forgotten. It is kept in memory only.
     */
    set token(token: string | null);
    /**
     * Gives tokens, for all buttons of the same `api` on the page; asked again when one is refused. Another one is for the same
     * user: set null in between for another user.
     */
    set tokenProvider(provider: TokenProvider | null | undefined);
    /** Likes (true), takes the like back (false), or does the other of the two. Does nothing if it is `readonly`. */
    toggle(liked?: boolean): Promise<void>;
    /** Asks the server again, for all buttons of the same `api` on the page. */
    refresh(): void;
    /** Shows what is known. Needed only after `LikeButton.strings` changed. */
    render(): void;
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
