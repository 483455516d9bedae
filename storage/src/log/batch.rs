//! How the embedded log stores a batch: the records of one commit, one after the other, and the ends after it.
//!
//! A record is its partition, its offset, the length of the rest, and the rest: timestamp, key, value, headers.

use likewise_schema::{Offset, Partition, Timestamp};

use super::{
    LogRecord, NewRecord, headers,
    leb128::{put, put_bytes, take, take_bytes, take_exactly},
};

/// Everything of a record but its place.
pub(super) fn encode_rest(record: &NewRecord) -> Vec<u8> {
    let values = record.key.as_ref().map_or(0, Vec::len) + record.value.as_ref().map_or(0, Vec::len);
    let mut out = Vec::with_capacity(values + 176);
    put(&mut out, u64::try_from(record.timestamp.millis()).unwrap_or_default());
    for optional in [&record.key, &record.value] {
        match optional {
            Some(bytes) => {
                put(&mut out, bytes.len() as u64 + 1);
                out.extend_from_slice(bytes);
            }
            None => put(&mut out, 0),
        }
    }
    headers::encode(&mut out, &record.headers, record.key.as_deref());
    out
}

/// Adds a record to a batch.
pub(super) fn put_record(out: &mut Vec<u8>, partition: Partition, offset: i64, rest: &[u8]) {
    put(out, u64::from(partition.get()));
    put(out, offset.unsigned_abs());
    put_bytes(out, rest);
}

/// A record of a batch that is not decoded yet.
pub(super) struct Stored<'a> {
    pub(super) partition: u64,
    pub(super) offset: i64,
    rest: &'a [u8],
}

/// Takes the next record of a batch. None: the batch is damaged.
pub(super) fn take_record<'a>(input: &mut &'a [u8]) -> Option<Stored<'a>> {
    let partition = take(input)?;
    let offset = i64::try_from(take(input)?).ok()?;
    Some(Stored { partition, offset, rest: take_bytes(input)? })
}

impl Stored<'_> {
    /// None: the batch is damaged.
    pub(super) fn decode(&self) -> Option<LogRecord> {
        decode_rest(self.offset, self.rest)
    }
}

/// The record at `offset` from what [`encode_rest`] wrote. None: it is damaged.
pub(super) fn decode_rest(offset: i64, mut rest: &[u8]) -> Option<LogRecord> {
    let timestamp = Timestamp::saturating_from_millis(i64::try_from(take(&mut rest)?).ok()?);
    let key = take_optional(&mut rest)?;
    let value = take_optional(&mut rest)?;
    let headers = headers::decode(rest, key.as_deref())?;
    Some(LogRecord { offset: Offset::new(offset).ok()?, timestamp, key, value, headers })
}

fn take_optional(input: &mut &[u8]) -> Option<Option<Vec<u8>>> {
    match take(input)? {
        0 => Some(None),
        length => Some(Some(take_exactly(input, usize::try_from(length - 1).ok()?)?.to_vec())),
    }
}

pub(super) fn encode_ends(ends: &[i64]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 * ends.len());
    ends.iter().for_each(|end| put(&mut out, end.unsigned_abs()));
    out
}

/// The ends of all partitions, in order. None: they are damaged.
pub(super) fn decode_ends(mut stored: &[u8]) -> Option<Vec<i64>> {
    let mut ends = Vec::with_capacity(stored.len());
    while !stored.is_empty() {
        ends.push(i64::try_from(take(&mut stored)?).ok()?);
    }
    Some(ends)
}

#[cfg(test)]
mod tests {
    use likewise_schema::{Headers, PartitionCount};

    use super::*;

    #[test]
    fn a_batch_comes_back_as_it_was_and_damage_is_noticed() {
        let partition = Partition::new(7, PartitionCount::DEFAULT).unwrap();
        let mut headers = Headers::default();
        headers.push("ce_id", "key");
        let timestamp = Timestamp::saturating_from_millis(1_700_000_000_000);
        let value = Some(b"value".to_vec());
        let new = NewRecord { partition, timestamp, key: None, value, headers };
        let mut batch = Vec::new();
        put_record(&mut batch, partition, 300, &encode_rest(&new));
        put_record(&mut batch, partition, 301, &encode_rest(&NewRecord { key: Some(b"key".to_vec()), ..new.clone() }));
        let mut input = batch.as_slice();
        let first = take_record(&mut input).unwrap();
        assert_eq!((first.partition, first.offset), (7, 300));
        let first = first.decode().unwrap();
        assert_eq!((first.key, first.value, &first.headers), (None, new.value, &new.headers));
        assert_eq!(take_record(&mut input).unwrap().decode().unwrap().key.as_deref(), Some(&b"key"[..]));
        assert!(input.is_empty());
        assert!(take_record(&mut &batch[..10]).is_none());
        assert_eq!(decode_ends(&encode_ends(&[0, 127, 128, i64::MAX])), Some(vec![0, 127, 128, i64::MAX]));
        assert_eq!(decode_ends(&[200]), None);
    }
}
