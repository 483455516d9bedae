import { backoff, retryAfterOf, spend } from "./backoff.js";
import { alone, attempt, forget, keep, keys, pause, recall } from "./browser.js";
import { follow, isContent, uuid7 } from "./ids.js";
import type { Intent, Reason } from "./types.js";

const PREFIX = "likewise ";
const PAUSED = "likewise-paused ";
const VERSION = 1;
const LIFE_MS = 24 * 3600_000;
const BATCH_MAX = 100;
/** A credential that was refused is tried again after this time. */
const LOCKED_MS = 60_000;
/** How late one tab may hear of another. */
const LATE_MS = 3000;
/** What got no answer may be at work on the server for so long: nothing is sent that could overtake it. */
const AT_WORK_S = 2;

/** Whom an outbox tells, and what it needs. */
export interface Owner {
  /** Sends a request with the viewer's credential, unless `signal` comes first. */
  call(path: string, signal: AbortSignal, init: RequestInit): Promise<Response>;
  /** What is wanted of a content from now on; with a position, what was accepted; with a failure, what was given up. */
  changed(content: string, intent: Intent | undefined): void;
  /** It was sent in vain, and will be sent again. */
  queued(content: string): void;
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

/** An intent as it is kept; undefined if it is none of ours, or nothing that is still of interest. */
const parse = (text: string | null): Intent | undefined =>
  attempt(() => {
    const intent: Intent = JSON.parse(text!);
    const { v, id, liked, at, tries, next, position, failure } = intent;
    const left = LIFE_MS + Date.now();
    const isSound =
      v === VERSION && typeof liked === "boolean" && [at, tries, next].every((n) => n < left) && /^[\da-f-]{36}$/.test(id) &&
      (position === undefined || /^[\w-]{15}$/.test(position)) &&
      (at > left - 2 * LIFE_MS || !(position || failure));
    return isSound ? intent : undefined;
  });

/** Forgets what other viewers of this API wanted. */
export function forgetOthers(api: string, who: string | null): void {
  for (const key of keys()) {
    const [, of, by] = key.split(" ");
    if (key.startsWith(PREFIX) && of === api && by !== who) forget(key);
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
  /** Contents of which something is on its way, or may be. */
  let flying: string[] = [];
  let wake = () => {};

  const know = (content: string, intent: Intent | undefined) => {
    if (intent) intents.set(content, intent);
    else intents.delete(content);
    owner.changed(content, intent);
  };
  const set = (content: string, intent?: Intent) => {
    if (intent) keep(prefix + content, JSON.stringify(intent));
    else forget(prefix + content);
    know(content, intent);
  };
  /** Takes what the storage has; false if it is not of this outbox, or not sound. */
  const learn = (key: string, text: string | null): boolean => {
    const content = key.split(prefix)[1] ?? null;
    const intent = parse(text);
    if (!isContent(content) || (text && !intent)) return false;
    const mine = intents.get(content);
    // Tabs hear of each other late: one that did not know yet what was wanted last must not undo it.
    if (mine && !mine.position && mine.at > (intent?.at ?? Date.now() - LATE_MS)) set(content, mine);
    else know(content, intent);
    return true;
  };
  const refuse = (content: string, intent: Intent, failure: Reason) => set(content, { ...intent, at: Date.now(), failure });
  /** What is not accepted yet, oldest first. What is too old is given up. */
  const unsent = () =>
    [...intents]
      .filter(([content, intent]) => {
        const { at, position, failure } = intent;
        const isOpen = !position && !failure;
        const isOld = Date.now() - at > LIFE_MS;
        if (isOpen && isOld) refuse(content, intent, "expired");
        return isOpen && !isOld;
      })
      .sort(([, a], [, b]) => a.at - b.at);
  /** How long nothing is to be sent, in milliseconds. Nobody ever meant more than a day. */
  const left = () => {
    const waits = [until, Number(recall(PAUSED + api))].map((time) => time - Date.now());
    return Math.max(0, ...waits.filter((wait) => wait < LIFE_MS));
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
      if (wait > 0) {
        await Promise.race([pause(wait), new Promise<void>((woken) => (wake = woken))]);
      } else {
        const due = all.filter(([, { next }]) => next <= Date.now()).slice(0, batch);
        flying = due.map(([content]) => content);
        await post(due);
        if (!isUnreached) flying = [];
      }
    }
  };
  /**
   * The page may end at any moment: what waits for its turn goes now, unless it could overtake what is on its way. When a page
   * is left, what is on its way fails there, and arrives all the same.
   */
  const flush = () => {
    const waiting = unsent().filter(([content, { next }]) => next <= Date.now() && !flying.includes(content));
    if (waiting.length && (isUnreached || !left())) void post(waiting.slice(0, BATCH_MAX));
  };

  const post = async (due: [string, Intent][]) => {
    const commands = due.map(([content, { id, liked }]) => {
      const [contentType, contentId] = content.split(":");
      return { requestId: id, userId: named ?? undefined, contentType, contentId, liked };
    });
    let answer: Answer = {};
    try {
      const response = await owner.call("/v1/likes/batch", signal, {
        method: "POST",
        keepalive: true,
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ commands }),
      });
      answer = { status: response.status, retryAfter: retryAfterOf(response) };
      answer = { ...(await response.json()), ...answer };
    } catch {
      // No answer, or none that can be read: the outcome is not known.
    }
    // Another viewer has no part in it.
    if (signal.aborted) return;
    const { results, status = 503, retryAfter = AT_WORK_S } = answer;
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
    const isWanted = intent?.id === sent.id && !intent.position && !intent.failure;
    if (position) {
      const accepted = { ...sent, position };
      if (isWanted) set(content, accepted);
      else owner.changed(content, accepted);
    } else if (isWanted) {
      if (serverTime) follow(serverTime);
      if (serverTime || isPassing(status)) {
        const next = isAlone ? Date.now() + backoff(intent.tries, retryAfter) : 0;
        set(content, { ...intent, id: serverTime ? uuid7() : intent.id, tries: intent.tries + 1, next });
        owner.queued(content);
      } else {
        refuse(content, intent, type.split("/").at(-1) || String(status));
      }
    }
  };

  // Without locks whoever had an intent sends it.
  addEventListener("storage", ({ key, newValue }) => key && learn(key, newValue) && navigator.locks && send(), { signal });
  addEventListener("online", () => isUnreached && rest(0), { signal });
  document.addEventListener("visibilitychange", () => document.hidden && flush(), { signal });
  for (const key of keys()) {
    if (key.startsWith(prefix) && !learn(key, recall(key))) forget(key);
  }
  send();
  return {
    /** What the viewer wants from now on. */
    put(content: string, liked: boolean) {
      set(content, { v: VERSION, id: uuid7(), liked, at: Date.now(), tries: 0, next: 0 });
      send();
    },
    /** What was accepted is shown: there is nothing left to remember. */
    settle: (content: string) => intents.get(content)?.position && set(content),
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
