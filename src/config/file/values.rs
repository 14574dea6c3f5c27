//! What each type of value looks like in TOML.

use toml::de::DeValue;

use super::{Number, WordOrNumber};

/// A value of a key.
pub(super) trait FromToml: Sized {
    /// What the value must be, for an error.
    const EXPECTED: &'static str;
    /// The value, if it is one of these.
    fn from_toml(value: &DeValue<'_>) -> Option<Self>;
}

impl FromToml for String {
    const EXPECTED: &'static str = "a text in quotes";
    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        value.as_str().map(Self::from)
    }
}

impl FromToml for i64 {
    const EXPECTED: &'static str = "a whole number of at most 64 bits";
    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        let integer = value.as_integer()?;
        Self::from_str_radix(integer.as_str(), integer.radix()).ok()
    }
}

impl FromToml for Number {
    const EXPECTED: &'static str = "a number";
    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        let text = value.as_float().map(|number| number.as_str().to_owned());
        text.or_else(|| i64::from_toml(value).map(|number| number.to_string())).map(Self)
    }
}

impl FromToml for bool {
    const EXPECTED: &'static str = "true or false";
    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        value.as_bool()
    }
}

impl FromToml for WordOrNumber {
    const EXPECTED: &'static str = "a text in quotes or a whole number";
    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        String::from_toml(value).map(Self::Word).or_else(|| i64::from_toml(value).map(Self::Number))
    }
}

impl FromToml for Vec<String> {
    const EXPECTED: &'static str = "a list of texts in quotes";
    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        value.as_array()?.iter().map(|item| String::from_toml(item.get_ref())).collect()
    }
}

impl FromToml for Vec<i64> {
    const EXPECTED: &'static str = "a list of whole numbers";
    fn from_toml(value: &DeValue<'_>) -> Option<Self> {
        value.as_array()?.iter().map(|item| i64::from_toml(item.get_ref())).collect()
    }
}
