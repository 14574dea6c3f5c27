//! A board in virtual time, and what runs it: shared by `tests/governor.rs` and `benches/governor`.
//!
//! Nothing of it is measured on an Orin but what says so. It is a set of assumptions to sweep: the governor has to hold
//! its promises over all of them.
#![allow(dead_code, reason = "the test and the bench each use a part of it")]

pub mod board;
pub mod plant;
pub mod policy;
pub mod run;
pub mod scenario;
