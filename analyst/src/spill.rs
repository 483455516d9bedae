//! More than fits into memory: values in buckets, in one temporary file that nobody else sees and that is gone with the
//! process, however it ends.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    marker::PhantomData,
    sync::Mutex,
};

use serde::{Serialize, de::DeserializeOwned};

use crate::Error;

/// Bytes that wait in memory, of all buckets together.
const WAITING_BYTES: usize = 16 * 1024 * 1024;
/// Bytes of a block, at most and at least.
const BLOCK_BYTES: (usize, usize) = (256 * 1024, 4 * 1024);

/// Values by bucket. Within a bucket they keep the order in which one caller gave them.
pub(crate) struct Spill<T> {
    inner: Mutex<Inner>,
    block_bytes: usize,
    values: PhantomData<fn(T) -> T>,
}

struct Inner {
    file: File,
    /// Where the next block goes.
    end: u64,
    buckets: Vec<Bucket>,
}

#[derive(Default)]
struct Bucket {
    waiting: Vec<u8>,
    /// Place and length of each block.
    blocks: Vec<(u64, usize)>,
}

impl<T: Serialize + DeserializeOwned> Spill<T> {
    /// With so many buckets, at least one.
    pub(crate) fn new(buckets: usize) -> Result<Self, Error> {
        let file = tempfile::tempfile()
            .map_err(|e| Error::file("no temporary file can be made; TMPDIR names another place", e))?;
        let buckets = buckets.max(1);
        let (most, least) = BLOCK_BYTES;
        let block_bytes = (WAITING_BYTES / buckets).clamp(least, most);
        let buckets = (0..buckets).map(|_| Bucket::default()).collect();
        Ok(Self { inner: Mutex::new(Inner { file, end: 0, buckets }), block_bytes, values: PhantomData })
    }

    /// How many buckets there are.
    pub(crate) fn buckets(&self) -> usize {
        self.lock().buckets.len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Adds values, each with the number from which its bucket follows.
    pub(crate) fn put(&self, values: impl IntoIterator<Item = (u64, T)>) -> Result<(), Error> {
        let mut inner = self.lock();
        let count = inner.buckets.len() as u64;
        for (number, value) in values {
            let index = (number % count) as usize;
            let bucket = &mut inner.buckets[index];
            let waiting = std::mem::take(&mut bucket.waiting);
            bucket.waiting =
                postcard::to_extend(&value, waiting).map_err(|e| Error::file("a value cannot be kept", e))?;
            if bucket.waiting.len() >= self.block_bytes {
                inner.write(index)?;
            }
        }
        Ok(())
    }

    /// Gives the values of a bucket, one block after the other.
    pub(crate) fn each(&self, bucket: usize, mut take: impl FnMut(T) -> Result<(), Error>) -> Result<(), Error> {
        let blocks = {
            let mut inner = self.lock();
            inner.write(bucket)?;
            inner.buckets[bucket].blocks.clone()
        };
        let mut block = Vec::new();
        for (place, length) in blocks {
            block.resize(length, 0);
            {
                let file = &mut self.lock().file;
                let read = file.seek(SeekFrom::Start(place)).and_then(|_| file.read_exact(&mut block));
                read.map_err(|e| Error::file("a temporary file cannot be read", e))?;
            }
            let mut rest = block.as_slice();
            while !rest.is_empty() {
                let (value, after) =
                    postcard::take_from_bytes(rest).map_err(|e| Error::file("a temporary file is damaged", e))?;
                rest = after;
                take(value)?;
            }
        }
        Ok(())
    }
}

impl Inner {
    fn write(&mut self, index: usize) -> Result<(), Error> {
        let block = std::mem::take(&mut self.buckets[index].waiting);
        if block.is_empty() {
            return Ok(());
        }
        let written = self.file.seek(SeekFrom::Start(self.end)).and_then(|_| self.file.write_all(&block));
        written.map_err(|e| Error::file("a temporary file cannot be written; TMPDIR names another place", e))?;
        self.buckets[index].blocks.push((self.end, block.len()));
        self.end += block.len() as u64;
        let mut waiting = block;
        waiting.clear();
        self.buckets[index].waiting = waiting;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_what_it_took_in_order_whatever_does_not_fit_into_memory() {
        let spill = Spill::<(u64, String)>::new(7).unwrap();
        let value = |number: u64| (number, "x".repeat((number % 300) as usize));
        for first in (0..100_000).step_by(1000) {
            spill.put((first..first + 1000).map(|number| (number, value(number)))).unwrap();
        }
        for bucket in 0..7 {
            let mut expected = (0..100_000).filter(|number| number % 7 == bucket as u64);
            spill
                .each(bucket, |found| {
                    assert_eq!(Some(&found), expected.next().map(value).as_ref());
                    Ok(())
                })
                .unwrap();
            assert_eq!(expected.next(), None);
        }
        assert!(spill.lock().end > 10_000_000, "it was written to the file");
    }
}
