/** How far the server's clock is ahead of this one, in milliseconds, as far as it has said so. */
let ahead = 0;
let last = 0;

/** From now on ids carry the server's time. */
export function follow(serverTime: string): void {
  ahead = Date.parse(serverTime) - Date.now() || 0;
  last = 0;
}

/** A UUID of version 7, later than any that this page made before. */
export function uuid7(): string {
  last = Math.max(Date.now() + ahead, last + 1);
  const digits = [...last.toString(16).padStart(12, "0")];
  const digit = () => digits.shift() ?? (crypto.getRandomValues(new Uint8Array(1))[0]! % 16).toString(16);
  return "xxxxxxxx-xxxx-7xxx-axxx-xxxxxxxxxxxx".replace(/x/g, digit);
}

/** What base64url stands for, a character for each byte. */
export const decode = (text: string): string => atob(text.replace(/-/g, "+").replace(/_/g, "/"));

/**
 * Whether what reflects the log up to `position` reflects the event at `mark`.
 *
 * A position is base64url of a format, a partition and an offset in network order. A content never leaves its partition,
 * and within one the bytes compare as the offsets do.
 */
export const reaches = (position: string | null, mark: string | null | undefined): boolean =>
  !mark || (!!position && decode(position) >= decode(mark));

/** `post:42`, as the server takes it. */
export const isContent = (text: string | null): text is string =>
  /^[a-z][a-z0-9_-]{0,19}:[1-9]\d{0,18}$/.test(text!) && BigInt(text!.split(":")[1]!) >> 63n === 0n;

/** The parameters that name contents. */
export const naming = (contents: string[]): URLSearchParams => new URLSearchParams(contents.map((content) => ["content", content]));
