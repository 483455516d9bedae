//! What both APIs share at the edge: errors as problem+json, strict JSON, parameters, callers, limits on load, one
//! server with a graceful stop.
//!
//! May depend on the schema (for ids in parameters). Must never know a table, a key, a topic or a store.

#![forbid(unsafe_code)]

mod body;
mod caller;
mod limits;
mod params;
mod prefer;
mod problem;
mod routes;
mod server;

pub use body::{BodyLimit, Fields, Found, read_body, refuse_body};
pub use caller::Caller;
pub use limits::{Busy, Concurrency};
pub use params::Params;
pub use prefer::wait_preference;
pub use problem::{Fault, KINDS, Kind, Outcome, Problem, whole_seconds};
pub use routes::{Health, HealthApi, Routes, health_routes};
pub use server::{Server, trace_parent};
