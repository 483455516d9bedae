const FIRST_MS = 1000;
const LONGEST_MS = 60_000;
const BUDGET = 5;
const REFILL_MS = 30_000;

let budget = BUDGET;
let since = 0;

/** When to try again: exponential with full jitter, and not before `retryAfter` seconds. `tries` counts from 0. */
export const backoff = (tries: number, retryAfter: number): number =>
  retryAfter * 1000 + 50 + Math.random() * Math.min(LONGEST_MS, FIRST_MS * 2 ** tries);

/** The `Retry-After` of an answer in seconds, whether it is a number or a date; 0 if there is none. */
export function retryAfterOf({ headers }: Response): number {
  const text = headers.get("Retry-After") ?? "";
  return Math.max(0, Number(text) || (Date.parse(text) - Date.now()) / 1000 || 0);
}

/**
 * Takes one repeat from the page's budget of five, which gains one in 30 s, and returns how long to wait for it, in
 * milliseconds: however many pages repeat what failed, the server that comes back gets little more than the likes themselves.
 */
export function spend(): number {
  const now = performance.now();
  budget = Math.min(BUDGET, budget + (now - since) / REFILL_MS) - 1;
  since = now;
  return Math.max(0, -budget * REFILL_MS);
}
