//! How many bytes a page's numbers take, and what reading them back costs.

use crate::error::{Error, Result};

/// A way to store a page's scalars.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scheme {
    /// Its name.
    pub name: &'static str,
    /// Bytes of one scalar; scales are not counted.
    pub bytes_per_scalar: f64,
    /// Milliseconds that decoding adds to every use and every move of a page.
    pub decode_ms: f64,
}

/// The schemes that [`Scheme::by_name`] knows, the largest first. The numbers are kv-hierarchy-lab's.
pub const SCHEMES: [Scheme; 4] = [
    Scheme {
        name: "fp16",
        bytes_per_scalar: 2.0,
        decode_ms: 0.0,
    },
    Scheme {
        name: "fp8",
        bytes_per_scalar: 1.0,
        decode_ms: 0.01,
    },
    Scheme {
        name: "int4",
        bytes_per_scalar: 0.5,
        decode_ms: 0.03,
    },
    Scheme {
        name: "int2",
        bytes_per_scalar: 0.25,
        decode_ms: 0.06,
    },
];

impl Scheme {
    /// The scheme of that name.
    ///
    /// # Errors
    /// [`Error::Config`] that lists the known names.
    pub fn by_name(name: &str) -> Result<Self> {
        SCHEMES
            .into_iter()
            .find(|scheme| scheme.name == name)
            .ok_or_else(|| Error::Config {
                name: "scheme",
                value: name.to_owned(),
                remedy: format!(
                    "use one of: {}",
                    SCHEMES.map(|scheme| scheme.name).join(", ")
                ),
            })
    }

    /// Bytes of `scalars` numbers, rounded down, at least 1.
    pub fn footprint(&self, scalars: u64) -> u64 {
        ((scalars as f64 * self.bytes_per_scalar) as u64).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smaller_scheme_never_takes_more_and_nothing_takes_no_bytes() {
        for scalars in [0, 1, 3, 2047, 2048, 1 << 40] {
            let sizes = SCHEMES.map(|scheme| scheme.footprint(scalars));
            assert!(sizes.is_sorted_by(|more, less| more >= less), "{sizes:?}");
            assert!(sizes[3] >= 1);
        }
        assert_eq!(SCHEMES[2].footprint(2047), 1023);
    }

    #[test]
    fn an_unknown_scheme_is_told_the_known_ones() {
        let error = Scheme::by_name("int3").unwrap_err().to_string();
        assert!(
            error.contains("int3") && error.contains("fp16, fp8, int4, int2"),
            "{error}"
        );
    }
}
