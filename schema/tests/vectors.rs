//! The test vectors in `vectors/`, which clients in other languages are checked against too.
//!
//! `LIKEWISE_WRITE_VECTORS=1 cargo test -p likewise-schema` writes the computed columns anew; the values committed
//! are the contract, so a difference is a break of it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::PathBuf};

use likewise_schema::{
    Content, ContentType, Headers, LikeToggled, Offset, Partition, PartitionCount, Position, Rejected, RequestId,
    UserId,
};
use serde_json::{Value, json};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors").join(name)
}

/// Compares a file with what this code computes from its inputs.
fn check(name: &str, compute: impl Fn(&Value) -> Value) {
    let read = fs::read_to_string(file(name)).unwrap();
    let vectors: Vec<Value> = serde_json::from_str(&read).unwrap();
    assert!(!vectors.is_empty());
    let computed: Vec<Value> = vectors.iter().map(compute).collect();
    if std::env::var_os("LIKEWISE_WRITE_VECTORS").is_some() {
        let lines: Vec<String> = computed.iter().map(|vector| format!("  {vector}")).collect();
        fs::write(file(name), format!("[\n{}\n]\n", lines.join(",\n"))).unwrap();
        return;
    }
    for (vector, computed) in vectors.iter().zip(&computed) {
        assert_eq!(vector, computed, "{name}");
    }
}

#[test]
fn ids() {
    check("ids.json", |vector| {
        let text = vector["text"].as_str().unwrap();
        let (valid, millis) = match vector["kind"].as_str().unwrap() {
            "user" => (text.parse::<UserId>().is_ok(), None),
            "contentType" => (text.parse::<ContentType>().is_ok(), None),
            "content" => (text.parse::<Content>().is_ok(), None),
            "requestId" => {
                let id = text.parse::<RequestId>();
                (id.is_ok(), id.ok().and_then(|id| id.v7_millis()))
            }
            other => panic!("no such kind: {other}"),
        };
        json!({ "kind": vector["kind"], "text": text, "valid": valid, "v7Millis": millis })
    });
}

#[test]
fn partitions() {
    check("partitions.json", |vector| {
        let content: Content = vector["content"].as_str().unwrap().parse().unwrap();
        let of = |count| PartitionCount::new(count).unwrap().partition_of(&content).get();
        json!({ "content": vector["content"], "of16": of(16), "of64": of(64), "of4096": of(4096) })
    });
}

#[test]
fn positions() {
    check("positions.json", |vector| {
        let count = PartitionCount::new(4096).unwrap();
        let partition = Partition::new(vector["partition"].as_u64().unwrap() as u32, count).unwrap();
        let offset = Offset::new(vector["offset"].as_str().unwrap().parse().unwrap()).unwrap();
        let position = Position { partition, offset };
        assert_eq!(position.to_string().parse(), Ok(position));
        json!({ "partition": vector["partition"], "offset": vector["offset"], "text": position.to_string() })
    });
    let whole =
        Position { partition: Partition::new(1, PartitionCount::DEFAULT).unwrap(), offset: Offset::ZERO }.to_string();
    for end in 0..whole.len() {
        assert!(whole[..end].parse::<Position>().is_err(), "cut at {end}");
    }
    assert!("AgAAAAAAAAAAAAA".parse::<Position>().is_err(), "another format");
    assert!(format!("{whole}=").parse::<Position>().is_err(), "padding");
}

/// Records as they are in the log, and what they are read as: an event, `malformed` or `halt`.
#[test]
fn events() {
    check("events.json", |vector| {
        let text = |name: &str| vector[name].as_str().map(|text| text.as_bytes().to_vec());
        let partition = Partition::new(vector["partition"].as_u64().unwrap() as u32, PartitionCount::DEFAULT).unwrap();
        let mut headers = Headers::default();
        if let Some(kind) = vector["ce_type"].as_str() {
            headers.push("ce_type", kind);
        }
        let (key, value) = (text("key"), text("value"));
        let read = LikeToggled::decode(partition, PartitionCount::DEFAULT, key.as_deref(), value.as_deref(), &headers);
        let (outcome, canonical) = match read {
            Ok(event) => ("event", Some(String::from_utf8(event.value()).unwrap())),
            Err(Rejected::Malformed(_)) => ("malformed", None),
            Err(Rejected::Halt(_)) => ("halt", None),
        };
        let mut computed = vector.clone();
        computed["outcome"] = json!(outcome);
        computed["canonical"] = json!(canonical);
        computed
    });
}

#[test]
fn an_event_has_its_headers() {
    let value = br#"{"requestId":"0192f0c1-1111-7111-8111-111111111111","userId":"7","contentType":"post","contentId":"42","liked":true,"receivedAt":"2026-11-23T10:00:00.120Z"}"#;
    let event: LikeToggled = serde_json::from_slice(value).unwrap();
    let headers = event.headers("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let text = |name| headers.get(name).map(|value| String::from_utf8_lossy(value).into_owned());
    let expected = [
        ("ce_specversion", "1.0"),
        ("ce_id", "0192f0c1-1111-7111-8111-111111111111"),
        ("ce_type", "LikeToggled.v1"),
        ("ce_source", "/likewise/command-api"),
        ("ce_time", "2026-11-23T10:00:00.120Z"),
        ("ce_subject", "post/42"),
        ("ce_partitionkey", "post/42"),
        ("content-type", "application/json"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ];
    for (name, value) in expected {
        assert_eq!(text(name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(headers.0.len(), expected.len());
}
