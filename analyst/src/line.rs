//! Records as lines of JSON: as CloudEvents, and byte for byte.

use base64::{Engine, engine::general_purpose::STANDARD};
use likewise_schema::{LikeToggled, Partition};
use likewise_storage::log::LogRecord;
use serde::Serialize;
use serde_json::{Map, Value, value::RawValue};

use crate::stream::Entry;

/// The `type` of the CloudEvent that stands for a record which is no event.
pub const UNREADABLE: &str = "UnreadableRecord.v1";

/// A record byte for byte. Bytes that cannot stand in JSON as they are come as base64.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RawLine<'a> {
    partition: u16,
    offset: i64,
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    /// The event, byte for byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    headers: Vec<(&'a str, String)>,
}

impl<'a> RawLine<'a> {
    /// The line of a record.
    pub fn of(partition: Partition, record: &'a LogRecord) -> Self {
        let key = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
        let value = record.value.as_deref().filter(|value| !value.contains(&b'\n'));
        let value = value.and_then(|value| serde_json::from_slice::<&RawValue>(value).ok());
        let value = value.filter(|raw| Some(raw.get().as_bytes()) == record.value.as_deref());
        Self {
            partition: partition.get(),
            offset: record.offset.get(),
            timestamp: record.timestamp.to_string(),
            key,
            key_base64: record.key.as_ref().filter(|_| key.is_none()).map(|key| STANDARD.encode(key)),
            value,
            value_base64: record.value.as_ref().filter(|_| value.is_none()).map(|value| STANDARD.encode(value)),
            headers: record.headers.0.iter().map(|(name, value)| (name.as_ref(), header_text(value))).collect(),
        }
    }
}

/// A header's value; one that is not text as `base64:…`.
fn header_text(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) if !text.starts_with("base64:") => text.to_owned(),
        _ => format!("base64:{}", STANDARD.encode(value)),
    }
}

/// An entry as a CloudEvent 1.0 in structured mode, with its place as the extensions `partition` and `offset`. A record
/// that is no event comes as one of type [`UNREADABLE`], whose data are the record and the reason.
pub fn cloud_event(entry: &Entry) -> Value {
    let Entry { partition, record, event } = entry;
    let mut line = Map::new();
    let mut put = |name: &str, value: Value| {
        line.insert(name.to_owned(), value);
    };
    put("specversion", "1.0".into());
    match event {
        Ok(event) => {
            // As the headers of the record say it, in the order of the standard.
            for (name, header) in [
                ("id", "ce_id"),
                ("source", "ce_source"),
                ("type", "ce_type"),
                ("subject", "ce_subject"),
                ("time", "ce_time"),
            ] {
                if let Some(value) = record.headers.get(header) {
                    put(name, String::from_utf8_lossy(value).into_owned().into());
                }
            }
            for (name, value) in defaults(event) {
                line.entry(name).or_insert_with(|| value.into());
            }
            let mut put = |name: &str, value: Value| line.insert(name.to_owned(), value);
            for (name, header) in [("partitionkey", "ce_partitionkey"), ("traceparent", "traceparent")] {
                if let Some(value) = record.headers.get(header) {
                    put(name, String::from_utf8_lossy(value).into_owned().into());
                }
            }
            put("datacontenttype", likewise_schema::CONTENT_TYPE_JSON.into());
            let value = record.value.as_deref().and_then(|value| serde_json::from_slice(value).ok());
            put("data", value.unwrap_or_default());
        }
        Err(reason) => {
            put("id", format!("{partition}-{}", record.offset).into());
            put("source", "/likewise/log".into());
            put("type", UNREADABLE.into());
            put("time", record.timestamp.to_string().into());
            put("datacontenttype", likewise_schema::CONTENT_TYPE_JSON.into());
            let raw = serde_json::to_value(RawLine::of(*partition, record)).unwrap_or_default();
            put("data", serde_json::json!({ "reason": reason.to_string(), "record": raw }));
        }
    }
    line.insert("partition".to_owned(), partition.get().into());
    line.insert("offset".to_owned(), record.offset.get().to_string().into());
    Value::Object(line)
}

/// What a CloudEvent must have, for a record that lacks a header which only carries it.
fn defaults(event: &LikeToggled) -> [(&'static str, String); 4] {
    [
        ("id", event.request_id.to_string()),
        ("source", "/likewise".to_owned()),
        ("subject", event.content().subject()),
        ("time", event.received_at.to_string()),
    ]
}
