//! What both APIs share at the edge: errors as problem+json, strict JSON, parameters, who calls and what they may do,
//! limits on load, TLS, one server with a graceful stop.
//!
//! May depend on the schema (for ids in parameters). Must never know a table, a key, a topic or a store.

#![forbid(unsafe_code)]

mod access;
mod address;
mod authority;
mod body;
mod caller;
mod keys;
mod limits;
mod params;
mod prefer;
mod problem;
mod pulse;
mod routes;
mod server;
mod signatures;
mod tag;
mod tls;
mod tokens;
mod unread;
mod watched;

pub use access::note_ids;
pub use address::Proxies;
pub use authority::Authority;
pub use body::{BodyLimit, Fields, Found, read_body, refuse_body};
pub use caller::{Audience, Caller};
pub use keys::{Scope, ServiceKeys};
pub use limits::{Busy, Concurrency, Turn};
pub use params::Params;
pub use prefer::wait_preference;
pub use problem::{Fault, KINDS, Kind, Outcome, Problem, whole_seconds};
pub use routes::{Health, HealthApi, Routes, health_routes};
pub use server::{Edge, Server, retry_after, trace_parent};
pub use tag::client_has;
pub use tls::Certificate;
pub use tokens::{TokenKeys, TokenRules, sign_token};

/// The machine's clock.
fn now() -> likewise_schema::Timestamp {
    let since_epoch = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    likewise_schema::Timestamp::saturating_from_millis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}
