import { alone, once } from "./browser.js";
import { backoff } from "./backoff.js";
import { naming, uuid7 } from "./ids.js";
import type { Likes, Reason } from "./types.js";

const WATCHED_MAX = 100;
/** Contents come into view one after the other. */
const GATHER_MS = 100;

/** An intent that was given up. */
export interface Refused {
  who: string;
  content: string;
  id: string;
  reason: Reason;
}

/** What tabs tell each other: what one shows, a question for that, counts, and what was given up. */
interface Message {
  tab?: string;
  shows?: string[];
  ask?: true;
  likes?: Likes[];
  refused?: Refused;
}

export interface Listener {
  /** What is to be seen of it. */
  seen(): string[];
  take(likes: Likes): void;
  lost(refused: Refused): void;
}

export type Live = ReturnType<typeof open>;

const known = new Map<string, Live>();

/** A name that no other page has. */
const me = uuid7();

/** The counts of `api` as they change: one stream for all tabs of the browser, opened by the one that holds the lock. */
export const liveOf = (api: string): Live => once(known, api, () => open(api));

function open(api: string) {
  const name = `likewise stream ${api}`;
  const listeners = new Set<Listener>();
  const bus = globalThis.BroadcastChannel && new BroadcastChannel(name);
  /** What each tab shows. */
  const shown = new Map<string, string[]>();
  let isLeader = false;
  let membership: AbortController | undefined;
  let source: EventSource | undefined;
  let streamed: string[] = [];
  let timer: number | undefined;
  let failures = 0;

  const hear = ({ tab, shows, ask, likes, refused }: Message) => {
    for (const listener of listeners) {
      likes?.forEach(listener.take);
      if (refused) listener.lost(refused);
    }
    if (ask) announce();
    if (shows) {
      shown.set(tab!, shows);
      if (isLeader) timer ??= setTimeout(connect, GATHER_MS);
    }
  };
  /** Tells all tabs, this one too. */
  const tell = (message: Message) => {
    bus?.postMessage(message);
    hear(message);
  };
  const announce = () => {
    const shows = document.hidden ? [] : [...listeners].flatMap((listener) => listener.seen());
    if (shows.length && !membership) {
      const { signal } = (membership = new AbortController());
      void alone(name, signal, async () => {
        isLeader = true;
        tell({ ask: true });
        await new Promise((done) => (signal.onabort = done));
        isLeader = false;
        close();
      });
    }
    tell({ tab: me, shows });
  };
  const close = () => {
    source?.close();
    source = undefined;
    clearTimeout(timer);
    timer = undefined;
  };
  const connect = () => {
    timer = undefined;
    const wanted = [...new Set([...shown.values()].flat())].slice(0, WATCHED_MAX);
    if (source && wanted.length && wanted.every((content) => streamed.includes(content))) return;
    close();
    if (!wanted.length) return;
    streamed = wanted;
    const stream = (source = new EventSource(`${api}/v1/likes/stream?${naming(streamed)}`));
    stream.addEventListener("snapshot", ({ data }) => {
      failures = 0;
      tell({ likes: JSON.parse(data).items });
    });
    stream.addEventListener("count", ({ data }) => tell({ likes: [JSON.parse(data)] }));
    stream.onerror = () => {
      if (stream.readyState !== EventSource.CLOSED || stream !== source) return;
      // The browser does not open it again by itself.
      source = undefined;
      clearTimeout(timer);
      timer = setTimeout(connect, backoff(failures++, 0));
    };
    // Tabs that ended without a word are forgotten.
    shown.clear();
    tell({ ask: true });
  };

  if (bus) bus.onmessage = ({ data }) => hear(data);
  // A page that is put aside must hold nothing, or the browser could not bring it back at once.
  addEventListener("pagehide", () => {
    tell({ tab: me, shows: [] });
    membership?.abort();
    membership = undefined;
  });
  return { listeners, announce, refuse: (refused: Refused) => tell({ refused }) };
}
