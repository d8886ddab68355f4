//! Parameters of a policy by name.

use crate::error::{Error, Result};

/// The parameters that were given; each is taken once.
#[derive(Debug)]
pub(super) struct Params<'a> {
    policy: &'a str,
    given: Vec<&'a (String, f64)>,
    known: Vec<&'static str>,
}

impl<'a> Params<'a> {
    pub(super) fn new(policy: &'a str, given: &'a [(String, f64)]) -> Self {
        Self {
            policy,
            given: given.iter().collect(),
            known: Vec::new(),
        }
    }

    /// A finite number.
    pub(super) fn number(&mut self, name: &'static str, default: f64) -> Result<f64> {
        self.known.push(name);
        let Some(at) = self.given.iter().position(|(given, _)| given == name) else {
            return Ok(default);
        };
        let value = self.given.remove(at).1;
        if value.is_finite() {
            Ok(value)
        } else {
            Err(wrong(name, value, "use a finite number"))
        }
    }

    /// A whole number from 1 to 2^32 - 1.
    pub(super) fn count(&mut self, name: &'static str, default: u32) -> Result<u32> {
        let value = self.number(name, f64::from(default))?;
        if value.fract() == 0.0 && (1.0..=f64::from(u32::MAX)).contains(&value) {
            Ok(value as u32)
        } else {
            Err(wrong(
                name,
                value,
                "use a whole number from 1 to 4294967295",
            ))
        }
    }

    /// Refuses what no one took.
    pub(super) fn finish(self) -> Result<()> {
        let Some((name, value)) = self.given.first() else {
            return Ok(());
        };
        let known = if self.known.is_empty() {
            "it takes none".to_owned()
        } else {
            format!("use one of: {}, each once", self.known.join(", "))
        };
        Err(Error::Config {
            name: "parameter",
            value: format!("{name}={value}"),
            remedy: format!("{} has no such parameter; {known}", self.policy),
        })
    }
}

fn wrong(name: &'static str, value: f64, remedy: &str) -> Error {
    Error::Config {
        name,
        value: value.to_string(),
        remedy: remedy.to_owned(),
    }
}
