//! What a simulated tier is like, and sets of tiers by name.

use crate::error::{Error, Result};

/// One tier. Tiers are listed from the fastest down.
#[derive(Clone, Debug, PartialEq)]
pub struct TierSpec {
    /// Its name, unique among the tiers of a run.
    pub name: String,
    /// Bytes of pages that fit.
    pub capacity_bytes: u64,
    /// Milliseconds to begin to read.
    pub read_ms: f64,
    /// Milliseconds to begin to write.
    pub write_ms: f64,
    /// Bytes that are moved in a millisecond; less than 1 counts as 1.
    pub bytes_per_ms: f64,
    /// How many transfers the tier takes part in at once; none is any number. Only an [`Overlap`](super::Overlap) looks at it.
    pub concurrency: Option<u32>,
}

impl TierSpec {
    fn new(
        name: &str,
        capacity_bytes: u64,
        read_ms: f64,
        write_ms: f64,
        bytes_per_ms: f64,
    ) -> Self {
        Self {
            name: name.to_owned(),
            capacity_bytes,
            read_ms,
            write_ms,
            bytes_per_ms,
            concurrency: None,
        }
    }

    /// Checks the numbers of each tier, and that there are at least two with different names.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] that names the tier, the field and the value.
    pub fn check(tiers: &[Self]) -> Result<()> {
        if tiers.len() < 2 || tiers.len() > usize::from(u8::MAX) {
            return Err(Error::invalid(format!(
                "{} tiers were given; use 2 to {}: pages come from the last and are used in the first",
                tiers.len(),
                u8::MAX
            )));
        }
        for (index, tier) in tiers.iter().enumerate() {
            if tiers[..index].iter().any(|other| other.name == tier.name) {
                return Err(Error::invalid(format!(
                    "two tiers are named {:?}; give each a name of its own",
                    tier.name
                )));
            }
            tier.check_numbers()?;
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<()> {
        let wrong = |field: &str, value: String, remedy: &str| {
            let name = &self.name;
            Err(Error::invalid(format!(
                "tier {name:?}: {field} = {value}; {remedy}"
            )))
        };
        if self.capacity_bytes == 0 {
            return wrong("capacity_bytes", "0".to_owned(), "use at least 1 byte");
        }
        if self.concurrency == Some(0) {
            return wrong(
                "concurrency",
                "0".to_owned(),
                "use at least 1, or none for no limit",
            );
        }
        for (field, value) in [("read_ms", self.read_ms), ("write_ms", self.write_ms)] {
            if !(value.is_finite() && value >= 0.0) {
                return wrong(field, value.to_string(), "use 0 or more milliseconds");
            }
        }
        if !(self.bytes_per_ms.is_finite() && self.bytes_per_ms > 0.0) {
            return wrong(
                "bytes_per_ms",
                self.bytes_per_ms.to_string(),
                "use more than 0",
            );
        }
        Ok(())
    }
}

/// The names that [`tier_preset`] knows, with what they are.
pub const TIER_PRESETS: [(&str, &str); 6] = [
    (
        "default",
        "fast and overflow GPU memory, host RAM and NVMe, as kv-hierarchy-lab has them",
    ),
    ("small", "the default tiers at a half of their capacity"),
    ("medium", "the default tiers at a third of their capacity"),
    (
        "constrained",
        "the default tiers at a quarter of their capacity",
    ),
    ("tight", "the default tiers at a sixth of their capacity"),
    (
        "cxl_like",
        "a small fast GPU tier and a small host RAM over much CXL-attached memory, and NVMe",
    ),
];

/// The tiers of that name.
///
/// # Errors
/// [`Error::Config`] that lists the known names.
pub fn tier_preset(name: &str) -> Result<Vec<TierSpec>> {
    let divisor = match name {
        "default" => 1,
        "small" => 2,
        "medium" => 3,
        "constrained" => 4,
        "tight" => 6,
        "cxl_like" => return Ok(cxl_like()),
        _ => {
            return Err(Error::Config {
                name: "tiers",
                value: name.to_owned(),
                remedy: format!(
                    "use one of: {}",
                    TIER_PRESETS.map(|(name, _)| name).join(", ")
                ),
            });
        }
    };
    let mut tiers = vec![
        TierSpec::new("gpu_fast", 128_000, 0.02, 0.02, 80_000.0),
        TierSpec::new("gpu_overflow", 256_000, 0.06, 0.06, 40_000.0),
        TierSpec::new("host_ram", 1_000_000, 0.4, 0.35, 8_000.0),
        TierSpec::new("nvme_like", 8_000_000, 2.5, 2.0, 2_000.0),
    ];
    for tier in &mut tiers {
        tier.capacity_bytes /= divisor;
    }
    Ok(tiers)
}

/// CXL memory answers some 1.5 times slower than local memory and moves two thirds as much, but there is a lot of it: it takes
/// the place of most of the RAM.
fn cxl_like() -> Vec<TierSpec> {
    vec![
        TierSpec::new("gpu_fast", 64_000, 0.02, 0.02, 80_000.0),
        TierSpec::new("host_ram", 128_000, 0.4, 0.35, 8_000.0),
        TierSpec::new("cxl_memory", 2_000_000, 0.6, 0.5, 5_000.0),
        TierSpec::new("nvme_like", 4_000_000, 2.5, 2.0, 2_000.0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_can_be_run() {
        for (name, _) in TIER_PRESETS {
            TierSpec::check(&tier_preset(name).unwrap()).unwrap();
        }
        let error = tier_preset("huge").unwrap_err().to_string();
        assert!(
            error.contains("default, small, medium, constrained, tight, cxl_like"),
            "{error}"
        );
    }

    #[test]
    fn numbers_that_cannot_be_are_refused_by_name() {
        type Spoil = fn(&mut TierSpec);
        let broken: [(&str, Spoil); 6] = [
            ("capacity_bytes", |tier| tier.capacity_bytes = 0),
            ("read_ms", |tier| tier.read_ms = -0.5),
            ("write_ms", |tier| tier.write_ms = f64::NAN),
            ("bytes_per_ms", |tier| tier.bytes_per_ms = 0.0),
            ("concurrency", |tier| tier.concurrency = Some(0)),
            ("named", |tier| tier.name = "host_ram".to_owned()),
        ];
        for (field, spoil) in broken {
            let mut tiers = tier_preset("default").unwrap();
            spoil(&mut tiers[1]);
            let error = TierSpec::check(&tiers).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
        assert!(TierSpec::check(&tier_preset("small").unwrap()[..1]).is_err());
    }
}
