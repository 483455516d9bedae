//! Starts the real binary for tests, talks to it over HTTP, and ends it in every way a process can end.
//!
//! May depend on test libraries only. Must never know the product's code: what it checks, it checks from outside.

#![forbid(unsafe_code)]

mod service;

pub use service::{Answer, Service, Settings, wait_until};
