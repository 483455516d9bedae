/** What the server says of a content: an item of `GET /v1/likes` and of the stream. */
export interface Likes {
    contentType: string;
    contentId: string;
    count: number;
    /** The viewer's state at `position`; null where nobody asked for it. */
    liked: boolean | null;
    /** The last event of its partition that this reflects; null before the first. */
    position: string | null;
}
/** What a viewer wants. One for each viewer and content; the last one counts. */
export interface Intent {
    /** The version of what is kept. */
    v: number;
    /** The requestId: a UUID, version 7. Every repeat keeps it. */
    id: string;
    liked: boolean;
    /** When it was had, or given up, in milliseconds of this browser's clock. */
    at: number;
    /** How often it was sent in vain. */
    tries: number;
    /** Not to be sent before this time. */
    next: number;
    /** Where the log has it; none until it was accepted. */
    position?: string;
    /** Why it was given up. Kept, so that whoever looks next is told. */
    failure?: Reason;
}
/** Why a like was given up: the last part of the problem's type, such as `forbidden`; or `expired` after 24 hours. */
export type Reason = string;
/** Gives a token for the signed-in user, or null if there is none. It is asked again when the server refuses a token. */
export type TokenProvider = () => string | null | undefined | Promise<string | null | undefined>;
/** `loading`: nothing is known yet. `pending`: being sent. `queued`: will be sent. `failed`: the last like was given up. */
export type State = "loading" | "ready" | "pending" | "queued" | "failed";
/** What a button shows: what the viewer wants counts before the server has it. */
export interface Shown {
    /** Undefined while it is not known. */
    count: number | undefined;
    liked: boolean;
    state: State;
    /** Why the last like was given up. */
    failure: Reason | undefined;
}
