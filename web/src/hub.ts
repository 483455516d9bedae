import { backoff } from "./backoff.js";
import { once, pause } from "./browser.js";
import { decode, naming, reaches } from "./ids.js";
import { liveOf } from "./live.js";
import type { Refused } from "./live.js";
import { forgetOthers, isPassing, openOutbox } from "./outbox.js";
import type { Outbox } from "./outbox.js";
import type { Intent, Likes, Reason, Shown, TokenProvider } from "./types.js";

const READ_MAX = 100;
/** How long the server may wait until it can show what the log has accepted, in seconds. */
const WAIT_S = "2";
/** A like that the stream has not shown by then is asked for. */
const SHOWN_BY_MS = 1000;
/** After so long out of sight a page asks whether the viewer has liked elsewhere. */
const OUT_OF_SIGHT_MS = 30_000;

/** A button on the page. */
export interface View {
  isVisible(): boolean;
  render(): void;
  tell(event: "like-queued" | "like-error" | "like-auth-required"): void;
}

/** What the server has said. */
interface Truth {
  count: number;
  /** What the count reflects. */
  position: string | null;
  liked: boolean;
  /** What the viewer's state reflects. Nothing of theirs is between the two, unless it was done elsewhere. */
  likedAt: string | null;
}

/** What is known of a content. */
interface Item {
  views: Set<View>;
  truth?: Truth | undefined;
  /** A count that came without the viewer's state, while it is open whether it contains their like. */
  held?: Likes | undefined;
  /** What the viewer wants and the log has not accepted yet. */
  intent?: Intent | undefined;
  /** What the log has accepted and the truth does not show yet, in order. */
  accepted: { position: string; liked: boolean }[];
  isQueued?: boolean;
  failure?: Reason | undefined;
}

export type Hub = ReturnType<typeof openHub>;

const hubs = new Map<string, Hub>();

/** The hub of an API, and of a viewer where no token tells who it is. */
export const hubOf = (api: string, viewer: string | null): Hub => once(hubs, `${api} ${viewer}`, () => openHub(api, viewer));

/** Who a token is about. */
function subject(token: string): string {
  try {
    return encodeURIComponent(JSON.parse(decode(token.split(".")[1]!)).sub);
  } catch {
    return "?";
  }
}

/** All buttons of a page that show the same viewer's likes on the same API: what they read, know and send. */
function openHub(api: string, named: string | null) {
  const live = liveOf(api);
  const items = new Map<string, Item>();
  const wanted = new Set<string>();
  let isReading = false;
  let failures = 0;
  let provider: TokenProvider | undefined;
  let token: Promise<string | null | undefined> = Promise.resolve(null);
  /** The viewer; null is nobody, undefined not known yet. */
  let who: string | null | undefined;
  let outbox: Outbox | undefined;
  let isAnnouncing = false;
  let hiddenAt = 0;

  const itemOf = (content: string): Item => once(items, content, () => ({ views: new Set(), accepted: [] }));
  const render = ({ views }: Item) => views.forEach((view) => view.render());

  // Who

  /** Undefined where the provider failed: nobody has signed out. */
  const ask = async () => {
    try {
      return (await provider?.()) || null;
    } catch {
      return undefined;
    }
  };
  const use = async (next: typeof token) => {
    token = next;
    who ??= undefined;
    const known = await next;
    if (token !== next) return;
    if (known) identify(named ?? subject(known));
    else if (known === null || !who) identify(named);
    outbox?.resume();
  };
  /** From now on it is this viewer. What another one wanted is forgotten. */
  const identify = (next: string | null) => {
    if (who === next) return;
    outbox?.close();
    outbox = undefined;
    if (!named && (next || who)) forgetOthers(api, next);
    who = next;
    for (const [content, { views, truth }] of items) {
      const item: Item = { views, accepted: [], truth: truth && { ...truth, liked: false, likedAt: null } };
      items.set(content, item);
      render(item);
    }
    if (next) {
      outbox = openOutbox(api, next, named, { call, changed, queued, refused, unauthorized });
      outbox.send();
    }
    refresh();
  };
  const call = async (path: string, init: RequestInit = {}): Promise<Response> => {
    for (let isFirst = true; ; isFirst = false) {
      const asked = token;
      const known = await asked;
      const headers = { ...init.headers, ...(known && { Authorization: `Bearer ${known}` }) };
      const response = await fetch(api + path, { credentials: "omit", ...init, headers });
      if (response.status !== 401 || !isFirst || !provider) return response;
      if (asked === token) await use(ask());
    }
  };

  // What the outbox tells

  const changed = (content: string, intent: Intent | undefined) => {
    const item = itemOf(content);
    const { held, accepted } = item;
    const position = intent?.position;
    if (!position) {
      item.intent = intent;
    } else {
      if (item.intent?.id === intent.id) item.intent = undefined;
      item.isQueued = false;
      accepted.push({ position, liked: intent.liked });
      setTimeout(() => item.accepted.length && want(content), SHOWN_BY_MS);
      item.held = undefined;
      if (held) take(held);
      prune(content, item);
    }
    render(item);
  };
  const queued = (content: string) => {
    const item = itemOf(content);
    if (item.isQueued) return;
    item.isQueued = true;
    render(item);
    item.views.forEach((view) => view.tell("like-queued"));
  };
  const refused = (content: string, id: string, reason: Reason) => live.refuse({ who: who!, content, id, reason });
  const lost = ({ who: whose, content, id, reason }: Refused) => {
    const item = items.get(content);
    if (whose !== who || !item || (item.intent?.id ?? id) !== id) return;
    item.failure = reason;
    item.intent = item.held = undefined;
    want(content);
    render(item);
    item.views.forEach((view) => view.tell("like-error"));
  };
  const unauthorized = () => {
    for (const [content, { intent, views }] of items) {
      if (!intent) continue;
      queued(content);
      views.forEach((view) => view.tell("like-auth-required"));
    }
  };

  // Reading

  const refresh = () => items.forEach(({ views }, content) => views.size && want(content));
  const want = (content: string) => {
    wanted.add(content);
    if (isReading) return;
    isReading = true;
    setTimeout(read);
  };
  const read = async () => {
    await token;
    const asked = [...wanted];
    wanted.clear();
    const parts = [];
    while (asked.length) parts.push(readPart(asked.splice(0, READ_MAX)));
    await pause(Math.max(...(await Promise.all(parts))));
    isReading = false;
    for (const next of wanted) want(next);
  };
  /** Returns how long to wait before another try is worth it; 0 if there was an answer. */
  const readPart = async (contents: string[]) => {
    const asked = who;
    const query = naming(contents);
    if (named && !(await token)) query.set("viewer", named);
    for (const position of new Set(contents.flatMap((content) => itemOf(content).accepted.at(-1)?.position ?? []))) {
      query.append("after", position);
      query.set("wait", WAIT_S);
    }
    let retryAfter = 0;
    try {
      const response = await call(`/v1/likes?${query}`);
      const { status } = response;
      if (response.ok) {
        const read: { items: Likes[] } = await response.json();
        failures = 0;
        if (asked === who) read.items.forEach(take);
        return 0;
      }
      // A token that is not accepted: what everybody may see is still to be seen.
      if (status === 401) void use(Promise.resolve(null));
      if (!isPassing(status)) return 0;
      retryAfter = Number(response.headers.get("Retry-After"));
    } catch {
      // Nobody answered.
    }
    contents.forEach((content) => wanted.add(content));
    return backoff(failures++, retryAfter);
  };
  /** Takes what the server says, as far as it is not older than what is known. */
  const take = (value: Likes) => {
    const content = `${value.contentType}:${value.contentId}`;
    const item = items.get(content);
    if (!item) return;
    const { count, liked, position } = value;
    const truth = (item.truth ??= { count, position: null, liked: false, likedAt: null });
    const isNewer = reaches(position, truth.position);
    if (liked === null && item.intent) {
      // It may or may not contain what is on its way.
      if (isNewer && reaches(position, item.held?.position)) item.held = value;
      return;
    }
    if (liked !== null && reaches(position, truth.likedAt)) {
      truth.liked = liked;
      truth.likedAt = position;
    }
    if (isNewer) {
      truth.count = count;
      truth.position = position;
    }
    prune(content, item);
    render(item);
  };
  /** What the truth contains is no longer to be added to it. */
  const prune = (content: string, item: Item) => {
    const { truth, accepted } = item;
    if (!truth || !accepted.length) return;
    item.accepted = accepted.filter(({ position, liked }) => {
      const isOpen = !reaches(truth.position, position);
      if (!isOpen && reaches(position, truth.likedAt)) {
        truth.liked = liked;
        truth.likedAt = position;
      }
      return isOpen;
    });
    if (!item.accepted.length && outbox?.intents.get(content)?.position) outbox.settle(content);
  };

  // Buttons

  /** What is in view may have changed. */
  const watch = () => {
    if (isAnnouncing) return;
    isAnnouncing = true;
    setTimeout(() => {
      isAnnouncing = false;
      live.announce();
    });
  };
  const seen = () => [...items].flatMap(([content, { views }]) => ([...views].some((view) => view.isVisible()) ? content : []));

  live.listeners.add({ seen, take, lost });
  document.addEventListener("visibilitychange", () => {
    watch();
    if (document.hidden) hiddenAt = Date.now();
    else if (Date.now() - hiddenAt > OUT_OF_SIGHT_MS) refresh();
  });
  identify(named);

  return {
    api,
    named,
    watch,
    refresh,
    join(content: string, view: View, known?: { count: number; liked: boolean }) {
      const item = itemOf(content);
      item.views.add(view);
      if (known) item.truth ??= { ...known, position: null, likedAt: null };
      want(content);
      watch();
    },
    leave(content: string, view: View) {
      const { views, intent, accepted } = itemOf(content);
      views.delete(view);
      if (!views.size && !intent && !accepted.length) items.delete(content);
      watch();
    },
    shown(content: string): Shown {
      const { truth, intent, accepted, isQueued, failure } = itemOf(content);
      const liked = (intent ?? accepted.at(-1) ?? truth)?.liked ?? false;
      const count = truth && Math.max(0, truth.count + Number(liked) - Number(truth.liked));
      const state = intent ? (isQueued ? "queued" : "pending") : failure ? "failed" : truth ? "ready" : "loading";
      return { count, liked, state, failure };
    },
    /** Whether somebody is signed in; a promise while that is not known yet. */
    isReady: () => (who === undefined ? token.then(() => !!outbox) : !!outbox),
    /** Sets what the viewer wants. */
    put(content: string, liked: boolean) {
      const item = itemOf(content);
      item.failure = undefined;
      item.isQueued = false;
      outbox?.put(content, liked);
      if (!navigator.onLine) queued(content);
    },
    setToken(next: string | null) {
      provider = undefined;
      void use(Promise.resolve(next));
    },
    setProvider(next: TokenProvider | undefined) {
      if (next === provider) return;
      provider = next;
      void use(next ? ask() : Promise.resolve(null));
    },
  };
}
