//! What an operator pins, checked. Pure.

use std::{fmt::Display, ops::RangeInclusive};

use crate::{
    governor::{Admit, Pin},
    request::RequestError,
    wire::v1,
};

/// Least context, as in the configuration.
const LEAST_CONTEXT: u32 = 256;
/// Most GPU layers, as in the configuration: how many a model has is known only once it was loaded.
const MOST_LAYERS: u32 = 1000;

/// What is configured, which a pin can only lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Configured {
    /// Tokens.
    pub context: u32,
    /// Sequences.
    pub parallel: u32,
}

/// The pin that a request describes; nothing is pinned where it is empty.
///
/// # Errors
/// `invalid_request`, naming the element and its limits.
pub fn parse(pin: &v1::Pin, configured: Configured) -> Result<Pin, RequestError> {
    let admit = match pin.admit.as_deref() {
        None => None,
        Some("run") => Some(Admit::Run),
        Some("hold") => Some(Admit::Hold),
        Some("unload") => Some(Admit::Unload),
        Some(_) => return Err(invalid("admit", "must be \"run\", \"hold\" or \"unload\"")),
    };
    let pace = pin.pace.map(f64::from);
    if pace.is_some_and(|pace| pace.is_nan() || pace <= 0.0 || pace > 1.0) {
        return Err(invalid("pace", "must be over 0, up to 1"));
    }
    Ok(Pin {
        context: within("context", pin.context, LEAST_CONTEXT.min(configured.context)..=configured.context)?,
        gpu_layers: within("gpu_layers", pin.gpu_layers, 0..=MOST_LAYERS)?,
        parallel: within("parallel", pin.parallel, 1..=configured.parallel)?,
        pace,
        admit,
    })
}

fn within(field: &str, value: Option<u32>, range: RangeInclusive<u32>) -> Result<Option<u32>, RequestError> {
    match value {
        Some(value) if !range.contains(&value) => {
            Err(invalid(field, format_args!("is {value}, must be {} to {}", range.start(), range.end())))
        }
        value => Ok(value),
    }
}

fn invalid(field: &str, message: impl Display) -> RequestError {
    RequestError::invalid(&format!("operating_point.{field}"), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIGURED: Configured = Configured { context: 4096, parallel: 8 };

    #[test]
    fn what_is_absent_is_not_pinned() {
        assert_eq!(parse(&v1::Pin::default(), CONFIGURED), Ok(Pin::default()));
        let all = v1::Pin {
            context: Some(4096),
            gpu_layers: Some(0),
            parallel: Some(1),
            pace: Some(0.5),
            admit: Some("hold".into()),
        };
        let pin = parse(&all, CONFIGURED).expect("within all limits");
        assert_eq!((pin.context, pin.gpu_layers, pin.parallel), (Some(4096), Some(0), Some(1)));
        assert_eq!((pin.pace, pin.admit), (Some(0.5), Some(Admit::Hold)));
    }

    #[test]
    fn every_element_has_its_limits() {
        let none = v1::Pin::default;
        for (pin, expected) in [
            (v1::Pin { context: Some(255), ..none() }, "operating_point.context: is 255, must be 256 to 4096"),
            (v1::Pin { context: Some(4097), ..none() }, "operating_point.context: is 4097, must be 256 to 4096"),
            (v1::Pin { gpu_layers: Some(1001), ..none() }, "operating_point.gpu_layers: is 1001, must be 0 to 1000"),
            (v1::Pin { parallel: Some(0), ..none() }, "operating_point.parallel: is 0, must be 1 to 8"),
            (v1::Pin { pace: Some(0.0), ..none() }, "operating_point.pace: must be over 0, up to 1"),
            (v1::Pin { pace: Some(f32::NAN), ..none() }, "operating_point.pace: must be over 0, up to 1"),
            (v1::Pin { admit: Some("stop".into()), ..none() }, "operating_point.admit: must be \"run\""),
        ] {
            let error = parse(&pin, CONFIGURED).expect_err("out of its limits");
            assert!(error.message.starts_with(expected), "{}", error.message);
            assert_eq!(error.param.as_deref(), expected.split(':').next());
        }
    }
}
