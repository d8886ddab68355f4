//! Token ids at the border: what a tokenizer hands over as 64-bit integers becomes `u32`.

use crate::error::{Error, Result};

/// Replaces the contents of `narrowed` by `tokens` as `u32`, checking the range on the way: one vectorised pass.
///
/// # Errors
/// [`Error::InvalidArgument`] that names the first value outside of 0..=4294967295 and its index; `narrowed` is then empty.
pub fn narrow(tokens: &[i64], narrowed: &mut Vec<u32>) -> Result<()> {
    narrowed.clear();
    let mut seen = 0_u64;
    narrowed.extend(tokens.iter().map(|&token| {
        seen |= token as u64;
        token as u32
    }));
    if u32::try_from(seen).is_ok() {
        return Ok(());
    }
    narrowed.clear();
    let bad = tokens
        .iter()
        .enumerate()
        .find(|&(_, &token)| u32::try_from(token).is_err());
    Err(bad.map_or_else(
        || Error::invalid("a token id is out of range"),
        |(index, token)| {
            Error::invalid(format!(
                "token id {token} at index {index} is out of range; token ids are 0 to {}",
                u32::MAX
            ))
        },
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::narrow;

    proptest! {
        #[test]
        fn what_fits_comes_through(tokens in prop::collection::vec(any::<u32>(), 0..100)) {
            let wide: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
            let mut narrowed = vec![7];
            prop_assert!(narrow(&wide, &mut narrowed).is_ok());
            prop_assert_eq!(narrowed, tokens);
        }

        #[test]
        fn what_does_not_fit_is_named(
            tokens in prop::collection::vec(any::<u32>(), 0..100),
            at in 0..100_usize,
            bad in prop_oneof![i64::MIN..0, i64::from(u32::MAX) + 1..=i64::MAX],
        ) {
            let mut wide: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
            let at = at.min(wide.len());
            wide.insert(at, bad);
            wide.push(-1);
            let mut narrowed = Vec::new();
            let message = narrow(&wide, &mut narrowed).expect_err("out of range").to_string();
            prop_assert!(message.contains(&format!("token id {bad} at index {at} ")), "{}", message);
            prop_assert!(narrowed.is_empty());
        }
    }
}
