// What browsers have, or fail to have: storage that may be full or forbidden, and locks that some pages have not.

export const pause = (ms: number) => new Promise<void>((done) => setTimeout(done, ms));

/** Does something with the storage; undefined if there is none or it is full. */
export function stored<T>(use: (storage: Storage) => T): T | undefined {
  try {
    return use(localStorage);
  } catch {
    return undefined;
  }
}

/** Keeps a value; an empty one is forgotten. What cannot be kept is known to this page alone. */
export const keep = (key: string, value?: string): void =>
  stored((storage) => {
    // First, so that an old value does not outlive one that there is no room for.
    storage.removeItem(key);
    if (value) storage.setItem(key, value);
  });

/** The names of all that is kept. */
export const keys = (): string[] => stored(Object.keys) ?? [];

/** The value of `key`, made if there is none yet. */
export function once<Key, Value>(known: Map<Key, Value>, key: Key, make: () => Value): Value {
  let value = known.get(key);
  if (!value) known.set(key, (value = make()));
  return value;
}

/**
 * Does `work` in one tab at a time. Pages outside secure contexts have no locks: there each tab works for itself, which
 * costs requests and has no other effect.
 */
export const alone = (name: string, signal: AbortSignal, work: () => Promise<void>): Promise<void> =>
  navigator.locks ? navigator.locks.request(name, { signal }, work).catch(() => {}) : work();
