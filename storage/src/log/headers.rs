//! How the embedded log stores headers: well-known names and values as one byte, the rest as they are.
//!
//! `count`, then per header a name and a value. A name is its index in [`NAMES`], or 255, length, bytes. A value is a
//! tag: 0 length bytes; 1 "equals the record's key"; 2+i the i-th of [`VALUES`]. Lengths are LEB128.

use std::borrow::Cow;

use likewise_schema::{CONTENT_TYPE_JSON, Headers, LIKE_TOGGLED};

use super::leb128::{put, put_bytes, take, take_bytes, take_exactly};

// Both tables are a storage format: add at the end only.
const NAMES: [&str; 9] = [
    "ce_specversion",
    "ce_id",
    "ce_type",
    "ce_source",
    "ce_time",
    "ce_subject",
    "ce_partitionkey",
    "content-type",
    "traceparent",
];
const VALUES: [&str; 4] = ["1.0", LIKE_TOGGLED, "/likewise/command-api", CONTENT_TYPE_JSON];
const OTHER_NAME: u8 = 255;
const PLAIN: u8 = 0;
const SAME_AS_KEY: u8 = 1;
const FIRST_KNOWN: u8 = 2;

pub(super) fn encode(out: &mut Vec<u8>, headers: &Headers, key: Option<&[u8]>) {
    put(out, headers.0.len() as u64);
    for (name, value) in &headers.0 {
        match NAMES.iter().position(|known| known == name) {
            Some(index) => out.push(index as u8),
            None => {
                out.push(OTHER_NAME);
                put_bytes(out, name.as_bytes());
            }
        }
        if key == Some(value.as_ref()) {
            out.push(SAME_AS_KEY);
        } else if let Some(index) = VALUES.iter().position(|known| known.as_bytes() == value.as_ref()) {
            out.push(FIRST_KNOWN + index as u8);
        } else {
            out.push(PLAIN);
            put_bytes(out, value);
        }
    }
}

/// None if the bytes are not what [`encode`] writes: the file is damaged.
pub(super) fn decode(stored: &[u8], key: Option<&[u8]>) -> Option<Headers> {
    let mut input = stored;
    let count = usize::try_from(take(&mut input)?).ok()?;
    let mut headers = Headers(Vec::with_capacity(count.min(64)));
    for _ in 0..count {
        let name = match take_exactly(&mut input, 1)?[0] {
            OTHER_NAME => Cow::Owned(String::from_utf8(take_bytes(&mut input)?.to_vec()).ok()?),
            index => Cow::Borrowed(*NAMES.get(usize::from(index))?),
        };
        let value = match take_exactly(&mut input, 1)?[0] {
            PLAIN => Cow::Owned(take_bytes(&mut input)?.to_vec()),
            SAME_AS_KEY => Cow::Owned(key?.to_vec()),
            tag => Cow::Borrowed(VALUES.get(usize::from(tag - FIRST_KNOWN))?.as_bytes()),
        };
        headers.0.push((name, value));
    }
    input.is_empty().then_some(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_as_they_were_and_damage_is_noticed() {
        let mut headers = Headers::default();
        headers.push("ce_id", "the key");
        headers.push("ce_type", LIKE_TOGGLED);
        headers.push("x-other", vec![0_u8; 300]);
        headers.push("ce_id", "another");
        let mut stored = Vec::new();
        encode(&mut stored, &headers, Some(b"the key"));
        assert_eq!(decode(&stored, Some(b"the key")), Some(headers));
        assert_eq!(decode(&stored[..stored.len() - 1], Some(b"the key")), None);
        assert_eq!(decode(&stored, None), None, "a value that stood for the key is lost with it");
    }
}
