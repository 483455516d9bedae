import { backoff, retryAfterOf } from "./backoff.js";
import { attempt, once, pause } from "./browser.js";
import { decode, naming, reaches, uuid7 } from "./ids.js";
import { liveOf } from "./live.js";
import { forgetOthers, isPassing, openOutbox } from "./outbox.js";
import type { Outbox } from "./outbox.js";
import type { Intent, Likes, Reason, Shown, TokenProvider } from "./types.js";

const READ_MAX = 100;
const ANSWER_MS = 10_000;
/** How long the server may wait until it can show what the log has accepted, in seconds. */
const WAIT_S = "2";
/** A like that the stream has not shown by then is asked for. */
const SHOWN_BY_MS = 1000;
/** After so long out of sight a page asks whether the viewer has liked elsewhere. */
const OUT_OF_SIGHT_MS = 30_000;

/** What a button is told. */
export type Told = "queued" | "error" | "auth-required";

/** A button on the page. */
export interface View {
  isVisible: boolean;
  render(): void;
  tell(event: Told): void;
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

/** Who a token is about; where it does not tell, each token is about somebody else. */
const subject = (token: string): string =>
  encodeURIComponent(attempt(() => JSON.parse(decode(token.split(".")[1]!)).sub) ?? uuid7());

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
  const render = ({ views }: Item, told?: Told) =>
    views.forEach((view) => {
      view.render();
      if (told) view.tell(told);
    });

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
    for (const [content, { views, truth }] of items) {
      // What the page knew of nobody was of the one who is now known.
      const item: Item = { views, accepted: [], truth: who ? truth && { ...truth, liked: false, likedAt: null } : truth };
      items.set(content, item);
      render(item);
    }
    who = next;
    if (next) outbox = openOutbox(api, next, named, { call, changed, queued, unauthorized });
    refresh();
  };
  const call = async (path: string, signal?: AbortSignal, init: RequestInit = {}): Promise<Response> => {
    for (let isFirst = true; ; isFirst = false) {
      const asked = token;
      const known = await asked;
      const headers = { ...init.headers, ...(known && { Authorization: `Bearer ${known}` }) };
      const ends = [AbortSignal.timeout(ANSWER_MS), signal ?? []].flat();
      const response = await fetch(api + path, { credentials: "omit", ...init, headers, signal: AbortSignal.any(ends) });
      if (response.status !== 401 || !isFirst || !provider) return response;
      if (asked === token) await use(ask());
    }
  };

  // What the outbox tells

  const changed = (content: string, intent: Intent | undefined) => {
    const item = itemOf(content);
    const { held, accepted } = item;
    const { id, liked = false, position, failure } = intent ?? {};
    const isNews = failure !== item.failure;
    item.failure = failure;
    if (position) {
      if (item.intent?.id === id) item.intent = undefined;
      item.isQueued = false;
      accepted.push({ position, liked });
      setTimeout(() => item.accepted.length && item.views.size && want(content), SHOWN_BY_MS);
      item.held = undefined;
      if (held) take(held);
      prune(content, item);
    } else {
      item.intent = failure ? undefined : intent;
    }
    if (failure) {
      item.held = undefined;
      want(content);
    }
    render(item, failure && isNews ? "error" : undefined);
  };
  const queued = (content: string) => {
    const item = itemOf(content);
    if (item.isQueued) return;
    item.isQueued = true;
    render(item, "queued");
  };
  const unauthorized = () => {
    for (const [content, item] of items) {
      if (!item.intent) continue;
      queued(content);
      render(item, "auth-required");
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
    const contents = [...wanted].slice(0, READ_MAX);
    contents.forEach((content) => wanted.delete(content));
    await pause(await readThese(contents));
    isReading = false;
    wanted.forEach(want);
  };
  /** Returns how long to wait before another try is worth it; 0 if there was an answer. */
  const readThese = async (contents: string[]) => {
    const asked = who;
    const query = naming(contents);
    if (named && !(await token)) query.set("viewer", named);
    for (const position of new Set(contents.flatMap((content) => itemOf(content).accepted.at(-1)?.position ?? []))) {
      query.append("after", position);
      query.set("wait", WAIT_S);
    }
    let retryAfter = 0;
    try {
      let response = await call(`/v1/likes?${query}`);
      // Whoever the token is of: what everybody may see is still to be seen.
      if (response.status === 401) response = await fetch(`${api}/v1/likes?${naming(contents)}`, { credentials: "omit" });
      if (response.ok) {
        const read: { items: Likes[] } = await response.json();
        failures = 0;
        if (asked === who) read.items.forEach(take);
        return 0;
      }
      if (!isPassing(response.status)) return 0;
      retryAfter = retryAfterOf(response);
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
    if (!item.accepted.length) outbox?.settle(content);
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
  const seen = () => [...items].flatMap(([content, { views }]) => ([...views].some((view) => view.isVisible) ? content : []));

  live.listeners.add({ seen, take });
  document.addEventListener("visibilitychange", () => {
    watch();
    if (document.hidden) hiddenAt = Date.now();
    else if (Date.now() - hiddenAt > OUT_OF_SIGHT_MS) refresh();
  });
  identify(named);

  return {
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
      const item = itemOf(content);
      item.views.delete(view);
      // A button that is moved comes again at once.
      setTimeout(() => item.views.size || item.intent || item.accepted.length || items.delete(content));
      watch();
    },
    shown(content: string): Shown {
      const { truth, intent, accepted, isQueued, failure } = itemOf(content);
      const liked = (intent ?? accepted.at(-1) ?? truth)?.liked ?? false;
      const count = truth && Math.max(0, truth.count + +liked - +truth.liked);
      const state = intent ? (isQueued ? "queued" : "pending") : failure ? "failed" : truth ? "ready" : "loading";
      return { count, liked, state, failure };
    },
    /** Whether somebody is signed in; a promise while that is not known, or may have changed. */
    isReady: () => !!outbox || (provider && who === null ? use(ask()) : token).then(() => !!outbox),
    /** Sets what the viewer wants. */
    put(content: string, liked: boolean) {
      itemOf(content).isQueued = false;
      outbox?.put(content, liked);
      if (!navigator.onLine) queued(content);
    },
    setToken(next: string | null) {
      provider = undefined;
      void use(Promise.resolve(next));
    },
    setProvider(next: TokenProvider | undefined) {
      const before = provider;
      provider = next;
      if (!before || !next) void use(next ? ask() : Promise.resolve(null));
    },
  };
}
