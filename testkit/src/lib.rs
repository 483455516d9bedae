//! Starts the real binary and real servers for tests, talks to the binary over HTTP, and ends both in every way a
//! process can end.
//!
//! May depend on test libraries only. Must never know the product's code: what it checks, it checks from outside.

#![forbid(unsafe_code)]

pub mod audit;
pub mod certificates;
pub mod load;
pub mod proxy;
pub mod rig;
pub mod servers;
mod service;
pub mod tokens;

pub use service::{Answer, Client, Service, Settings, at_once, like, wait_until};
