//! A seeded simulation of the whole write path and its readers: real command, projector and query code and the real
//! memory counters, on a log and records in memory, in virtual time, with faults at every await. One seed is one run.
//!
//! May depend on every crate but the binary. Must never touch the machine's clock, disk or network.

#![forbid(unsafe_code)]

mod check;
mod faulty;
mod log;
mod records;
mod run;
mod world;

pub use self::{
    log::SimLog,
    records::SimRecords,
    run::{Report, run},
};
