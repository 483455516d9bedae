import { backoff, spend } from "./backoff.js";
import { alone, keep, keys, pause, stored } from "./browser.js";
import { follow, isContent, uuid7 } from "./ids.js";
import type { Intent, Reason } from "./types.js";

const PREFIX = "likewise ";
const PAUSED = "likewise-paused ";
const VERSION = 1;
const LIFE_MS = 24 * 3600_000;
const BATCH_MAX = 100;
const ANSWER_MS = 10_000;
/** A wait for longer than this is none that was ever meant. */
const WAIT_MAX_MS = 3600_000;
const IDS_MAX = 3;
/** A credential that was refused is tried again after this time. */
const LOCKED_MS = 60_000;

/** Whom an outbox tells, and what it needs. */
export interface Owner {
  /** Sends a request with the viewer's credential. */
  call(path: string, init: RequestInit): Promise<Response>;
  /** What is wanted of a content from now on; with a position, what was accepted. */
  changed(content: string, intent: Intent | undefined): void;
  /** It was sent in vain, and will be sent again. */
  queued(content: string): void;
  refused(content: string, id: string, reason: Reason): void;
  unauthorized(): void;
}

export type Outbox = ReturnType<typeof openOutbox>;

/** A problem, or what became of a command. */
interface Answer {
  type?: string;
  status?: number;
  retryAfter?: number;
  serverTime?: string;
  position?: string;
  results?: Answer[];
}

/** What may be different the next time. */
export const isPassing = (status: number): boolean => status < 400 || status >= 500 || [408, 409, 429].includes(status);

function parse(text: string | null): Intent | undefined {
  try {
    const { v, id, liked, at, tries, next, position } = JSON.parse(text!);
    const isSound =
      v === VERSION && typeof liked === "boolean" && [at, tries, next].every((n) => n < Date.now() + LIFE_MS) && /^[\da-f-]{36}$/.test(id);
    return isSound && /^[\w-]{15}$|^undefined$/.test(position) ? { id, liked, at, tries, next, position } : undefined;
  } catch {
    return undefined;
  }
}

const recall = (key: string) => stored((storage) => storage.getItem(key)) ?? null;

/** Forgets what other viewers of this API wanted. */
export function forgetOthers(api: string, who: string | null): void {
  for (const key of keys()) {
    const [, of, by] = key.split(" ");
    if (key.startsWith(PREFIX) && of === api && by !== who) keep(key);
  }
}

/** What one viewer wants, in the browser's storage, and what sends it: one tab at a time, oldest first, in batches. */
export function openOutbox(api: string, who: string, named: string | null, owner: Owner) {
  const prefix = `${PREFIX}${api} ${who} `;
  const intents = new Map<string, Intent>();
  const closed = new AbortController();
  const { signal } = closed;
  /** No request before this time. Other tabs are told by the storage, unless it is about this page's credential. */
  let until = 0;
  let isUnreached = false;
  let failures = 0;
  let batch = BATCH_MAX;
  let isQueueing = false;
  let ids = 0;
  let flying: string[] = [];
  let wake = () => {};

  const know = (content: string, intent: Intent | undefined) => {
    if (intent) intents.set(content, intent);
    else intents.delete(content);
    owner.changed(content, intent);
  };
  const set = (content: string, intent?: Intent) => {
    keep(prefix + content, intent && JSON.stringify({ v: VERSION, ...intent }));
    know(content, intent);
  };
  /** Takes what the storage has; true if it is of this outbox and sound. */
  const learn = (key: string, text: string | null): boolean => {
    const content = key.split(prefix)[1] ?? null;
    const intent = parse(text);
    const isOwn = isContent(content) && !!(intent || !text);
    if (isOwn) know(content, intent);
    return isOwn;
  };
  /** What is not accepted yet, oldest first. What is too old is given up. */
  const unsent = () =>
    [...intents]
      .filter(([content, { at, id, position }]) => {
        const isOld = !position && Date.now() - at > LIFE_MS;
        if (isOld) {
          set(content);
          owner.refused(content, id, "expired");
        }
        return !position && !isOld;
      })
      .sort(([, a], [, b]) => a.at - b.at);
  /** How long nothing is to be sent, in milliseconds. */
  const left = () => {
    const wait = Math.max(until, Number(recall(PAUSED + api))) - Date.now();
    return wait < WAIT_MAX_MS ? Math.max(0, wait) : 0;
  };
  const rest = (wait: number) => {
    until = Date.now() + wait;
    keep(PAUSED + api, String(until));
    wake();
  };

  const send = () => {
    wake();
    if (isQueueing || signal.aborted || !unsent().length) return;
    isQueueing = true;
    void alone(prefix, signal, sendAll).then(() => {
      isQueueing = false;
      send();
    });
  };
  const sendAll = async () => {
    for (;;) {
      const all = unsent();
      if (!all.length || signal.aborted) return;
      const wait = Math.max(left(), Math.min(...all.map(([, { next }]) => next - Date.now())));
      if (wait > 0) await Promise.race([pause(Math.min(wait, WAIT_MAX_MS)), new Promise<void>((woken) => (wake = woken))]);
      else await post(all.filter(([, { next }]) => next <= Date.now()).slice(0, batch));
    }
  };
  /** The page may end at any moment: what waits for its turn goes now. Twice sent is still once done. */
  const flush = () => {
    const waiting = unsent().filter(([, { next, id }]) => next <= Date.now() && !flying.includes(id));
    if (waiting.length && !left()) void post(waiting.slice(0, BATCH_MAX));
  };

  const post = async (due: [string, Intent][]) => {
    const commands = due.map(([content, { id, liked }]) => {
      const [contentType, contentId] = content.split(":");
      return { requestId: id, userId: named ?? undefined, contentType, contentId, liked };
    });
    let answer: Answer = {};
    flying = commands.map(({ requestId }) => requestId);
    try {
      const response = await owner.call("/v1/likes/batch", {
        method: "POST",
        keepalive: true,
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ commands }),
        signal: AbortSignal.timeout(ANSWER_MS),
      });
      answer = { status: response.status, retryAfter: Number(response.headers.get("Retry-After")) };
      answer = { ...(await response.json()), ...answer };
    } catch {
      // No answer, or none that can be read: the outcome is not known.
    }
    flying = [];
    const { results, status = 503, retryAfter = 0 } = answer;
    isUnreached = !answer.status;
    if (results) {
      failures = 0;
      batch = BATCH_MAX;
    } else if (isPassing(status)) {
      // The whole server: nothing at all until it may be there again.
      rest(Math.max(backoff(failures++, retryAfter), spend()));
    } else if (status === 401) {
      until = Date.now() + LOCKED_MS;
      return owner.unauthorized();
    } else if (due.length > 1) {
      // One of them spoils all: each on its own.
      batch = 1;
      return;
    }
    due.forEach(([content, sent], index) => judge(content, sent, results?.[index] ?? answer, !!results));
  };
  /** What became of one intent, which may have been replaced meanwhile. */
  const judge = (content: string, sent: Intent, answer: Answer, isAlone: boolean) => {
    const { status = 503, position, type = "", retryAfter = 0, serverTime } = answer;
    const intent = intents.get(content);
    const isWanted = intent?.id === sent.id && !intent.position;
    if (position) {
      const accepted = { ...sent, position };
      if (isWanted) set(content, accepted);
      else owner.changed(content, accepted);
    } else if (isWanted) {
      if (isPassing(status)) {
        const next = isAlone ? Date.now() + backoff(intent.tries, retryAfter) : 0;
        set(content, { ...intent, tries: intent.tries + 1, next });
        owner.queued(content);
      } else if (serverTime && ids++ < IDS_MAX) {
        follow(serverTime);
        set(content, { ...intent, id: uuid7() });
      } else {
        set(content);
        owner.refused(content, intent.id, type.split("/").at(-1) || String(status));
      }
    }
  };

  // Without locks whoever had an intent sends it.
  addEventListener("storage", ({ key, newValue }) => key && learn(key, newValue) && navigator.locks && send(), { signal });
  addEventListener("online", () => isUnreached && rest(0), { signal });
  addEventListener("pagehide", flush, { signal });
  document.addEventListener("visibilitychange", () => document.hidden && flush(), { signal });
  for (const key of keys()) {
    if (key.startsWith(prefix) && !learn(key, recall(key))) keep(key);
  }
  return {
    intents,
    send,
    /** What the viewer wants from now on. */
    put(content: string, liked: boolean) {
      set(content, { id: uuid7(), liked, at: Date.now(), tries: 0, next: 0 });
      send();
    },
    /** What was accepted is shown: there is nothing left to remember. */
    settle: (content: string) => set(content),
    /** There is a credential again. */
    resume() {
      until = 0;
      send();
    },
    close() {
      closed.abort();
      wake();
    },
  };
}
