//! What the fuzz targets of `core/fuzz` call: each takes bytes as a damaged or hostile file would hold them and panics if a
//! parser does, or if what it made of them does not hold. Checksums are put right first where bytes would not get past them.

use crate::{cost, tier::disk};

/// Headers of records.
pub fn record_header(input: &[u8]) {
    disk::fuzzing::record_header(input);
}

/// A segment file: its header page, records and table of contents.
pub fn segment(input: &[u8]) {
    disk::fuzzing::segment(input);
}

/// Rows of the index: number (1 byte), part (2), length (2) and value, one row after the other.
pub fn index_rows(input: &[u8]) {
    disk::fuzzing::index_rows(input);
}

/// The first page of an export.
pub fn export_frame(input: &[u8]) {
    disk::fuzzing::export_frame(input);
}

/// The lines of the costs file; `@` stands for this machine's setting.
pub fn costs(input: &[u8]) {
    cost::fuzz_costs(input);
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;

    type Target = (&'static str, fn(&[u8]));

    const TARGETS: [Target; 5] = [
        ("record_header", super::record_header),
        ("segment", super::segment),
        ("index_rows", super::index_rows),
        ("export_frame", super::export_frame),
        ("costs", super::costs),
    ];

    /// The inputs that are kept of a target.
    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let entries = fs::read_dir(corpus.join(target)).expect("a corpus");
        let mut paths = entries
            .map(|entry| entry.expect("readable").path())
            .collect::<Vec<_>>();
        paths.sort();
        let seeds = paths.iter().map(|path| fs::read(path).expect("readable"));
        seeds.collect()
    }

    #[test]
    fn the_corpus_holds() {
        for (target, check) in TARGETS {
            let seeds = seeds(target);
            assert!(!seeds.is_empty(), "{target} has no seeds");
            for seed in &seeds {
                check(seed);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn changed_seeds_hold(
            target in 0..TARGETS.len(),
            pick: prop::sample::Index,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut: prop::sample::Index,
            whole: bool,
        ) {
            let (name, check) = TARGETS[target];
            let seeds = seeds(name);
            let mut bytes = seeds[pick.index(seeds.len())].clone();
            for (place, byte) in changes {
                if !bytes.is_empty() {
                    let place = place.index(bytes.len());
                    bytes[place] = byte;
                }
            }
            if !whole {
                bytes.truncate(cut.index(bytes.len() + 1));
            }
            check(&bytes);
        }
    }
}
