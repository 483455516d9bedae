//! One Parquet file: the schema, writing and reading.
//!
//! Rows are in the order of offsets, without gaps. Where a record is no event of the contract, the columns of events are
//! null, and `problem` says why. `record` holds the record itself, as a line of JSON, wherever the other columns do not
//! give it back byte for byte.

use std::{
    io::Write,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use likewise_schema::{LikeToggled, Offset, Partition, Timestamp};
use likewise_storage::log::LogRecord;
use parquet::{
    basic::{Compression, Encoding, ZstdLevel},
    column::{reader::ColumnReader, writer::ColumnWriter},
    data_type::{BoolType, ByteArray, ByteArrayType, DataType, Int32Type},
    errors::ParquetError,
    file::{
        metadata::{KeyValue, ParquetMetaData, ParquetMetaDataReader, SortingColumn},
        properties::{EnabledStatistics, WriterProperties},
        reader::{FileReader, SerializedFileReader},
        writer::SerializedFileWriter,
    },
    schema::{parser::parse_message_type, types::TypePtr},
};

use crate::{Error, line::RawLine, stream::Entry};

/// The version of the schema. A new column is a new minor version, which older readers ignore; anything else that changes
/// is a new major version and another message name.
pub const SCHEMA_VERSION: &str = "1.0";

/// The columns, as Parquet writes them down. Analysts find them described in `docs/analysts.md`.
pub const SCHEMA: &str = "message likewise_event_v1 {
    REQUIRED INT32 log_partition;
    REQUIRED INT64 log_offset;
    REQUIRED INT64 log_timestamp (TIMESTAMP(MILLIS, true));
    OPTIONAL BYTE_ARRAY request_id (STRING);
    OPTIONAL INT64 user_id;
    OPTIONAL BYTE_ARRAY content_type (STRING);
    OPTIONAL INT64 content_id;
    OPTIONAL BOOLEAN liked;
    OPTIONAL INT64 occurred_at (TIMESTAMP(MILLIS, true));
    OPTIONAL INT64 received_at (TIMESTAMP(MILLIS, true));
    OPTIONAL BYTE_ARRAY traceparent (STRING);
    OPTIONAL BYTE_ARRAY problem (STRING);
    OPTIONAL BYTE_ARRAY record (STRING);
}";

/// Rows of a row group.
const GROUP_ROWS: usize = 131_072;
/// Bytes of a row group's traces and whole records at most: what is no event can be large.
const GROUP_BYTES: usize = 32 * 1024 * 1024;
/// Rows of a file: some 25 to 40 MB.
pub(super) const FILE_ROWS: usize = 524_288;
/// Names in a file's metadata.
const KEYS: [&str; 6] = [
    "likewise.schema",
    "likewise.log",
    "likewise.partition",
    "likewise.from",
    "likewise.until",
    "likewise.greatest_received_at",
];

static MESSAGE: LazyLock<Option<TypePtr>> = LazyLock::new(|| parse_message_type(SCHEMA).ok().map(Arc::new));

fn message() -> Result<TypePtr, ParquetError> {
    MESSAGE.clone().ok_or_else(|| ParquetError::General("the schema cannot be read".into()))
}

/// What a file says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// Which log its records are of.
    pub log: String,
    /// Which partition.
    pub partition: Partition,
    /// The first offset.
    pub from: Offset,
    /// The offset after the last.
    pub until: Offset,
    /// The greatest `receivedAt` of the partition up to its end.
    pub greatest_received_at: Timestamp,
}

/// Rows of a file that is being made.
#[derive(Default)]
struct Rows {
    partitions: Vec<i32>,
    offsets: Vec<i64>,
    timestamps: Vec<i64>,
    requests: Texts,
    users: Vec<i64>,
    kinds: Texts,
    contents: Vec<i64>,
    liked: Vec<bool>,
    occurred: Nullable<i64>,
    received: Vec<i64>,
    /// Whether each row is an event: what the columns of events have.
    events: Vec<i16>,
    traces: Nullable<ByteArray>,
    problems: Nullable<ByteArray>,
    records: Nullable<ByteArray>,
    /// Bytes of what can be of any length.
    bytes: usize,
}

type Texts = Vec<ByteArray>;

/// Values and which rows have one.
#[derive(Default)]
struct Nullable<T> {
    values: Vec<T>,
    levels: Vec<i16>,
}

impl<T> Nullable<T> {
    fn push(&mut self, value: Option<T>) {
        self.levels.push(i16::from(value.is_some()));
        self.values.extend(value);
    }
}

fn text(text: impl AsRef<str>) -> ByteArray {
    ByteArray::from(text.as_ref().as_bytes().to_vec())
}

impl Rows {
    fn len(&self) -> usize {
        self.offsets.len()
    }

    fn push(&mut self, entry: &Entry) {
        let Entry { partition, record, event } = entry;
        self.partitions.push(partition.get().into());
        self.offsets.push(record.offset.get());
        self.timestamps.push(record.timestamp.millis());
        self.events.push(i16::from(event.is_ok()));
        let trace = record.headers.get("traceparent").and_then(|trace| std::str::from_utf8(trace).ok());
        let mut is_given_back = false;
        match event {
            Ok(event) => {
                self.requests.push(text(event.request_id.to_string()));
                self.users.push(event.user_id.get());
                self.kinds.push(text(event.content_type.as_str()));
                self.contents.push(event.content_id.get());
                self.liked.push(event.liked);
                self.occurred.push(event.occurred_at.map(Timestamp::millis));
                self.received.push(event.received_at.millis());
                is_given_back = trace.is_some_and(|trace| is_given_back_by(record, event, trace));
            }
            Err(_) => self.occurred.push(None),
        }
        self.traces.push(trace.map(text));
        self.problems.push(event.as_ref().err().map(|reason| text(reason.to_string())));
        let raw = || serde_json::to_string(&RawLine::of(*partition, record)).unwrap_or_default();
        let raw = (!is_given_back).then(raw);
        self.bytes += raw.as_ref().map_or(0, String::len) + trace.map_or(0, str::len);
        self.records.push(raw.map(text));
    }

    fn write<W: Write + Send>(&self, file: &mut SerializedFileWriter<W>) -> Result<(), ParquetError> {
        let mut group = file.next_row_group()?;
        let mut number = 0;
        while let Some(mut column) = group.next_column()? {
            let written = match (number, column.untyped()) {
                (0, ColumnWriter::Int32ColumnWriter(to)) => to.write_batch(&self.partitions, None, None),
                (1, ColumnWriter::Int64ColumnWriter(to)) => to.write_batch(&self.offsets, None, None),
                (2, ColumnWriter::Int64ColumnWriter(to)) => to.write_batch(&self.timestamps, None, None),
                (3, ColumnWriter::ByteArrayColumnWriter(to)) => {
                    to.write_batch(&self.requests, Some(&self.events), None)
                }
                (4, ColumnWriter::Int64ColumnWriter(to)) => to.write_batch(&self.users, Some(&self.events), None),
                (5, ColumnWriter::ByteArrayColumnWriter(to)) => to.write_batch(&self.kinds, Some(&self.events), None),
                (6, ColumnWriter::Int64ColumnWriter(to)) => to.write_batch(&self.contents, Some(&self.events), None),
                (7, ColumnWriter::BoolColumnWriter(to)) => to.write_batch(&self.liked, Some(&self.events), None),
                (8, ColumnWriter::Int64ColumnWriter(to)) => {
                    to.write_batch(&self.occurred.values, Some(&self.occurred.levels), None)
                }
                (9, ColumnWriter::Int64ColumnWriter(to)) => to.write_batch(&self.received, Some(&self.events), None),
                (10, ColumnWriter::ByteArrayColumnWriter(to)) => {
                    to.write_batch(&self.traces.values, Some(&self.traces.levels), None)
                }
                (11, ColumnWriter::ByteArrayColumnWriter(to)) => {
                    to.write_batch(&self.problems.values, Some(&self.problems.levels), None)
                }
                (12, ColumnWriter::ByteArrayColumnWriter(to)) => {
                    to.write_batch(&self.records.values, Some(&self.records.levels), None)
                }
                _ => Err(ParquetError::General("the columns are not those of the schema".into())),
            };
            written?;
            column.close()?;
            number += 1;
        }
        group.close().map(drop)
    }
}

/// Whether a record can be made anew from its event and its `traceparent`, byte for byte.
fn is_given_back_by(record: &LogRecord, event: &LikeToggled, trace: &str) -> bool {
    record.timestamp == event.received_at
        && record.key.as_ref().is_some_and(|key| *key == event.key())
        && record.value.as_ref().is_some_and(|value| *value == event.value())
        && record.headers == event.headers(trace)
}

/// A file that is being made; what is not written yet is one row group.
pub struct Making<W: Write + Send> {
    file: SerializedFileWriter<W>,
    /// Of the next row group.
    rows: Rows,
    written: usize,
}

impl<W: Write + Send> Making<W> {
    /// Into `to`.
    pub fn new(to: W) -> Result<Self, Error> {
        let making = message().and_then(|message| SerializedFileWriter::new(to, message, Arc::new(properties())));
        Ok(Self { file: making.map_err(unmade)?, rows: Rows::default(), written: 0 })
    }

    /// How many rows it has.
    pub(super) fn len(&self) -> usize {
        self.written + self.rows.len()
    }

    /// Adds a row.
    pub fn push(&mut self, entry: &Entry) -> Result<(), Error> {
        self.rows.push(entry);
        if self.rows.len() >= GROUP_ROWS || self.rows.bytes >= GROUP_BYTES {
            self.write().map_err(unmade)
        } else {
            Ok(())
        }
    }

    fn write(&mut self) -> Result<(), ParquetError> {
        let rows = std::mem::take(&mut self.rows);
        self.written += rows.len();
        if rows.len() > 0 { rows.write(&mut self.file) } else { Ok(()) }
    }

    /// Ends the file. `about` is what a part of an export says of itself; a file of anything else says its log only.
    pub fn finish(mut self, log: &str, about: Option<&About>) -> Result<W, Error> {
        let mut values = vec![SCHEMA_VERSION.to_owned(), log.to_owned()];
        if let Some(About { partition, from, until, greatest_received_at, .. }) = about {
            values.extend([
                partition.to_string(),
                from.to_string(),
                until.to_string(),
                greatest_received_at.to_string(),
            ]);
        }
        for (key, value) in KEYS.iter().zip(values) {
            self.file.append_key_value_metadata(KeyValue::new((*key).to_owned(), value));
        }
        self.write().and_then(|()| self.file.into_inner()).map_err(unmade)
    }
}

fn unmade(error: ParquetError) -> Error {
    match error {
        ParquetError::External(inner) => Error::file("the file cannot be written", inner),
        other => Error::file("the file cannot be made", other),
    }
}

fn properties() -> WriterProperties {
    let by_offset = SortingColumn { column_idx: 1, descending: false, nulls_first: false };
    let mut properties = WriterProperties::builder()
        .set_created_by("likewise".to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_sorting_columns(Some(vec![by_offset]));
    // Numbers that rise take few bits as differences; ids and traces are all different.
    for column in ["log_offset", "log_timestamp", "received_at", "occurred_at"] {
        properties = properties
            .set_column_dictionary_enabled(column.into(), false)
            .set_column_encoding(column.into(), Encoding::DELTA_BINARY_PACKED);
    }
    for column in ["request_id", "traceparent", "record"] {
        properties = properties.set_column_dictionary_enabled(column.into(), false);
    }
    properties.build()
}

/// Why a file is none of this export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NotOurs(pub(super) String);

impl From<ParquetError> for NotOurs {
    fn from(error: ParquetError) -> Self {
        let _may_hold_anything = error;
        Self("is no whole Parquet file".into())
    }
}

/// What a file says of itself, from its end alone: `Err(Ok(n))` where the last `n` bytes are needed for that.
pub(super) fn about(end: &Bytes, file_size: u64) -> Result<About, Result<usize, NotOurs>> {
    let mut reader = ParquetMetaDataReader::new();
    match reader.try_parse_sized(end, file_size) {
        Ok(()) => about_of(&reader.finish().map_err(|e| Err(e.into()))?).map_err(Err),
        Err(ParquetError::NeedMoreData(needed)) if needed > end.len() => Err(Ok(needed)),
        Err(error) => Err(Err(error.into())),
    }
}

/// Checks that the footer is one of this export, and that it has as many rows as it says.
fn about_of(metadata: &ParquetMetaData) -> Result<About, NotOurs> {
    let metadata = metadata.file_metadata();
    let pairs = metadata.key_value_metadata();
    let value = |key: &str| {
        let found = pairs.into_iter().flatten().find(|pair| pair.key == key);
        found.and_then(|pair| pair.value.clone()).ok_or_else(|| NotOurs("was not written by likewise export".into()))
    };
    let version = value(KEYS[0])?;
    if version.split('.').next() != SCHEMA_VERSION.split('.').next() {
        return Err(NotOurs(format!("has schema {version}, this program knows {SCHEMA_VERSION}")));
    }
    let unknown = || NotOurs("has metadata that no export writes".into());
    let wrong = |_| unknown();
    let number = |key: &str| value(key)?.parse::<i64>().map_err(|_| unknown());
    let about = About {
        log: value(KEYS[1])?,
        partition: u16::try_from(number(KEYS[2])?).ok().and_then(Partition::unbounded).ok_or_else(unknown)?,
        from: Offset::new(number(KEYS[3])?).map_err(wrong)?,
        until: Offset::new(number(KEYS[4])?).map_err(wrong)?,
        greatest_received_at: Timestamp::parse(&value(KEYS[5])?).map_err(wrong)?,
    };
    if metadata.num_rows() != about.until.get() - about.from.get() {
        let (rows, About { from, until, .. }) = (metadata.num_rows(), &about);
        return Err(NotOurs(format!("has {rows} rows for offsets {from} to {until}")));
    }
    Ok(about)
}

/// The hash of a whole file, which its name carries: 16 hexadecimal digits of XXH3.
pub(super) fn hash(file: &[u8]) -> String {
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(file))
}

/// A file, read whole.
pub(super) struct Opened {
    reader: SerializedFileReader<Bytes>,
    pub(super) about: About,
}

impl Opened {
    /// Fails unless it has the hash that its name carries.
    pub(super) fn new(file: Bytes, name: &str) -> Result<Self, NotOurs> {
        if !name.strip_suffix(".parquet").is_some_and(|stem| stem.ends_with(&hash(&file))) {
            return Err(NotOurs("is not as it was written".into()));
        }
        let reader = SerializedFileReader::new(file)?;
        let about = about_of(reader.metadata())?;
        Ok(Self { reader, about })
    }

    /// Reads every column, and checks that offsets have no gap.
    pub(super) fn check(&self) -> Result<(), NotOurs> {
        let mut expected = self.about.from.get();
        for group in 0..self.reader.num_row_groups() {
            let group = self.reader.get_row_group(group)?;
            let rows = group.metadata().num_rows().max(0) as usize;
            for column in 0..group.num_columns() {
                match group.get_column_reader(column)? {
                    ColumnReader::Int64ColumnReader(mut reader) => {
                        let (mut values, mut levels) = (Vec::new(), Vec::new());
                        reader.read_records(rows, Some(&mut levels), None, &mut values)?;
                        if column == 1 {
                            let found = values.iter().zip(expected..).position(|(offset, wanted)| *offset != wanted);
                            if values.len() != rows || found.is_some() {
                                return Err(NotOurs("lacks an offset".into()));
                            }
                            expected += rows as i64;
                        }
                    }
                    ColumnReader::Int32ColumnReader(reader) => skim::<Int32Type>(reader, rows)?,
                    ColumnReader::BoolColumnReader(reader) => skim::<BoolType>(reader, rows)?,
                    ColumnReader::ByteArrayColumnReader(reader) => skim::<ByteArrayType>(reader, rows)?,
                    _ => return Err(NotOurs("has columns of other types".into())),
                }
            }
        }
        Ok(())
    }
}

/// Reads a column, for nothing but that it can be read.
fn skim<T: DataType>(mut reader: parquet::column::reader::ColumnReaderImpl<T>, rows: usize) -> Result<(), NotOurs> {
    let (mut values, mut levels) = (Vec::new(), Vec::new());
    let (records, ..) = reader.read_records(rows, Some(&mut levels), None, &mut values)?;
    if records == rows { Ok(()) } else { Err(NotOurs("lacks rows of a column".into())) }
}
