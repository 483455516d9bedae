//! What all stores agree on: the digest, and the bytes of a ring.

use likewise_schema::{RequestId, Timestamp};
use sha2::{Digest as _, Sha256};

use super::{Digest, LikeRecord};

/// Builds a [`Digest`] from rows sorted by (type, content, user).
///
/// Per row: type length (1 byte) and text, content id, user id, state (1 if active), created_at, updated_at, liked_at
/// (-1 if never), ring length (1 byte) and ids, floor present (1 byte) and id. Numbers are 8 bytes in network order,
/// times in Unix milliseconds. Offsets are not part of it.
#[derive(Debug, Default)]
pub struct DigestBuilder {
    hash: Sha256,
    rows: u64,
    active: u64,
}

impl DigestBuilder {
    /// Adds the next row.
    pub fn add(&mut self, row: &LikeRecord) {
        let kind = row.pair.content.content_type.as_str();
        let mut bytes = Vec::with_capacity(128);
        bytes.push(kind.len() as u8);
        bytes.extend_from_slice(kind.as_bytes());
        bytes.extend_from_slice(&row.pair.content.content_id.get().to_be_bytes());
        bytes.extend_from_slice(&row.pair.user.get().to_be_bytes());
        bytes.push(u8::from(!row.is_canceled));
        for time in [Some(row.created_at), Some(row.updated_at), row.liked_at] {
            bytes.extend_from_slice(&time.map_or(-1, Timestamp::millis).to_be_bytes());
        }
        bytes.push(row.ring.len() as u8);
        bytes.extend_from_slice(&ring_bytes(&row.ring));
        bytes.push(u8::from(row.floor.is_some()));
        bytes.extend(row.floor.iter().flat_map(|id| id.as_bytes()));
        self.hash.update(&bytes);
        self.rows += 1;
        self.active += u64::from(!row.is_canceled);
    }

    /// The digest of the rows added.
    pub fn finish(self) -> Digest {
        Digest { sha256: self.hash.finalize().into(), rows: self.rows, active: self.active }
    }
}

pub(super) fn ring_bytes(ring: &[RequestId]) -> Vec<u8> {
    ring.iter().flat_map(|id| *id.as_bytes()).collect()
}

/// None if the bytes are not whole ids.
pub(super) fn ring_from_bytes(bytes: &[u8]) -> Option<Vec<RequestId>> {
    let (ids, rest) = bytes.as_chunks::<16>();
    rest.is_empty().then(|| ids.iter().map(|id| RequestId::from_bytes(*id)).collect())
}
