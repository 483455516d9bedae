import { alone, once } from "./browser.js";
import { backoff } from "./backoff.js";
import { naming, uuid7 } from "./ids.js";
import type { Likes } from "./types.js";

const WATCHED_MAX = 100;
const CLOSED = 2;
/** Contents come into view one after the other; a stream that is open is not opened anew for each. */
const GATHER_MS = 100;
const GATHER_MORE_MS = 500;

/** What tabs tell each other: what one shows, a question for that, and counts. */
interface Message {
  tab?: string;
  shows?: string[];
  ask?: true;
  likes?: Likes[];
}

export interface Listener {
  /** What is to be seen of it. */
  seen(): string[];
  take(likes: Likes): void;
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

  const hear = ({ tab, shows, ask, likes }: Message) => {
    for (const { take } of listeners) likes?.forEach(take);
    if (ask) announce();
    if (shows) {
      shown.set(tab!, shows);
      if (isLeader) timer ??= setTimeout(connect, source ? GATHER_MORE_MS : GATHER_MS);
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
    for (const event of ["snapshot", "count"]) {
      stream.addEventListener(event, ({ data }) => {
        failures = 0;
        const value = JSON.parse(data);
        tell({ likes: value.items ?? [value] });
      });
    }
    stream.onerror = () => {
      if (stream.readyState !== CLOSED || stream !== source) return;
      // The browser does not open it again by itself.
      close();
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
  return { listeners, announce };
}
