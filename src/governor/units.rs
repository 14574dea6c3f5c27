//! Units in types, so that no Celsius meets a byte.

pub use crate::units::Bytes;

/// Degrees Celsius.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Celsius(pub f64);
