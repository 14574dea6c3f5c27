//! Which flavour of the engine is tried next. Pure.
//!
//! Whether one is of use shows only in its process: it may find no device, be of another build, or lack a library and end
//! before it says a word. Then it is passed over for the next one. A device that has too little room is another matter:
//! there the governor asks for fewer layers.

use std::path::{Path, PathBuf};

/// Why a flavour is passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It finds no device. Without layers on one it would do.
    NoDevice,
    /// It is of another build, or no engine at all.
    Stranger,
    /// It ended before it said hello, which may be chance.
    Died,
}

/// What is tried next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice<'a> {
    /// The engine.
    pub binary: &'a Path,
    /// Whether it may be asked for layers on a GPU.
    pub layers: bool,
}

/// None is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exhausted {
    /// What was wrong with each.
    pub reason: String,
    /// Whether that may have been chance.
    pub by_chance: bool,
}

/// Flavours that were passed over since an engine was last needed anew.
#[derive(Debug, Default)]
pub struct Flavours {
    passed: Vec<(PathBuf, Fault, String)>,
}

impl Flavours {
    /// The first of `found` that nothing speaks against; where there is none, one that only lacks a device, without layers:
    /// the last, since the one for the CPU comes last.
    ///
    /// # Errors
    /// Where none is of any use.
    pub fn next<'a>(&self, found: &'a [PathBuf]) -> Result<Choice<'a>, Exhausted> {
        let fault =
            |binary: &Path| self.passed.iter().find(|(passed, ..)| passed == binary).map(|(_, fault, _)| *fault);
        let untried = found.iter().find(|binary| fault(binary).is_none()).map(|binary| Choice { binary, layers: true });
        let lacking = found.iter().rfind(|binary| fault(binary) == Some(Fault::NoDevice));
        let choice = untried.or_else(|| lacking.map(|binary| Choice { binary, layers: false }));
        choice.ok_or_else(|| Exhausted {
            reason: self.passed.iter().map(|(_, _, reason)| reason.as_str()).collect::<Vec<_>>().join("; "),
            by_chance: self.passed.iter().any(|(_, fault, _)| *fault == Fault::Died),
        })
    }

    /// This one is of no use; `reason` names it.
    pub fn pass_over(&mut self, binary: &Path, fault: Fault, reason: String) {
        self.passed.retain(|(passed, ..)| passed != binary);
        self.passed.push((binary.into(), fault, reason));
    }

    /// Whether any was passed over.
    #[must_use]
    pub fn passed_any(&self) -> bool {
        !self.passed.is_empty()
    }

    /// All may be tried again: drivers come, and packages are installed.
    pub fn anew(&mut self) {
        self.passed.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(names: &[&str]) -> Vec<PathBuf> {
        names.iter().map(PathBuf::from).collect()
    }

    fn next(flavours: &Flavours, found: &[PathBuf]) -> Option<(String, bool)> {
        let choice = flavours.next(found).ok()?;
        Some((choice.binary.display().to_string(), choice.layers))
    }

    #[test]
    fn the_next_one_is_tried_and_the_one_for_the_cpu_is_the_last() {
        let found = found(&["cuda", "vulkan", "cpu"]);
        let mut flavours = Flavours::default();
        assert_eq!(next(&flavours, &found), Some(("cuda".into(), true)));
        flavours.pass_over(Path::new("cuda"), Fault::Died, "cuda ended".into());
        assert_eq!(next(&flavours, &found), Some(("vulkan".into(), true)));
        flavours.pass_over(Path::new("vulkan"), Fault::NoDevice, "vulkan finds no device".into());
        assert_eq!(next(&flavours, &found), Some(("cpu".into(), true)));
        assert!(flavours.passed_any());
        flavours.anew();
        assert_eq!(next(&flavours, &found), Some(("cuda".into(), true)));
        assert!(!flavours.passed_any());
    }

    #[test]
    fn without_one_for_the_cpu_another_does_without_layers() {
        let found = found(&["cuda", "vulkan"]);
        let mut flavours = Flavours::default();
        flavours.pass_over(Path::new("cuda"), Fault::NoDevice, "cuda finds no device".into());
        flavours.pass_over(Path::new("vulkan"), Fault::Stranger, "vulkan is of another build".into());
        assert_eq!(next(&flavours, &found), Some(("cuda".into(), false)));
        flavours.pass_over(Path::new("cuda"), Fault::Stranger, "cuda is of another build".into());
        let exhausted = flavours.next(&found).expect_err("none is left");
        assert_eq!(exhausted.reason, "vulkan is of another build; cuda is of another build");
        assert!(!exhausted.by_chance);
    }

    #[test]
    fn one_that_ended_at_once_may_do_another_time() {
        let found = found(&["engine"]);
        let mut flavours = Flavours::default();
        flavours.pass_over(&found[0], Fault::Died, "it ended".into());
        assert_eq!(flavours.next(&found), Err(Exhausted { reason: "it ended".into(), by_chance: true }));
    }

    fn faults() -> impl Strategy<Value = Vec<Fault>> {
        prop::collection::vec(prop::sample::select(vec![Fault::NoDevice, Fault::Stranger, Fault::Died]), 8)
    }

    proptest! {
        /// Each is asked for layers once, whatever becomes of it, and one more without them at most.
        #[test]
        fn trying_comes_to_an_end(count in 1_usize..4, faults in faults()) {
            let found: Vec<_> = (0..count).map(|number| PathBuf::from(number.to_string())).collect();
            let mut flavours = Flavours::default();
            let mut with_layers = Vec::new();
            for fault in &faults {
                let Ok(choice) = flavours.next(&found) else { break };
                if !choice.layers {
                    break;
                }
                with_layers.push(choice.binary.to_owned());
                flavours.pass_over(choice.binary, *fault, String::new());
            }
            prop_assert_eq!(&with_layers, &found);
            let spared = faults.iter().take(count).any(|fault| *fault == Fault::NoDevice);
            prop_assert_eq!(flavours.next(&found).is_ok(), spared);
        }
    }
}
