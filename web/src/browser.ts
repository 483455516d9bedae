// What browsers have, or fail to have: storage that may be full or forbidden, and locks that some pages have not.

export const pause = (ms: number) => new Promise<void>((done) => setTimeout(done, ms));

/** What `work` gives; undefined if it fails. */
export function attempt<T>(work: () => T): T | undefined {
  try {
    return work();
  } catch {
    return undefined;
  }
}

/** What is kept under a name. There is nothing where there is no storage. */
export const recall = (key: string): string | null => attempt(() => localStorage.getItem(key)) ?? null;

export const forget = (key: string): void => attempt(() => localStorage.removeItem(key));

/** Keeps a value. If there is no room for it the old one goes too, and this page alone knows it. */
export const keep = (key: string, value: string): void => {
  if (!attempt(() => [localStorage.setItem(key, value)])) forget(key);
};

/** The names of all that is kept. */
export const keys = (): string[] => attempt(() => Object.keys(localStorage)) ?? [];

/** The value of `key`, made if there is none yet. */
export function once<Key, Value>(known: Map<Key, Value>, key: Key, make: () => Value): Value {
  let value = known.get(key);
  if (!value) known.set(key, (value = make()));
  return value;
}

/**
 * Does `work` in one tab at a time, unless `signal` comes first. Pages outside secure contexts have no locks, and some may
 * not use them: there each tab works for itself, which costs requests and has no other effect.
 */
export const alone = (name: string, signal: AbortSignal, work: () => Promise<void>): Promise<void> =>
  navigator.locks
    ? navigator.locks.request(name, { signal }, work).catch(() => (signal.aborted ? undefined : work()))
    : work();
