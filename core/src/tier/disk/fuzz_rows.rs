//! Entry point of the fuzz target for rows of the index.
#![allow(clippy::expect_used, reason = "a target that cannot work stops")]

use super::super::fuzzing::INDEX;
use super::super::record::{Fields, MAX_HEADER_BYTES};
use super::Index;
use crate::run::{MAX_RUN_BLOCKS, MAX_RUN_SLICES};

/// Rows as `input` says are read; those that make sense are written again and read as the same.
pub(crate) fn index_rows(input: &[u8]) {
    INDEX.with_borrow_mut(|made| {
        let (index, _) = made.get_or_insert_with(|| {
            let directory = tempfile::tempdir().expect("a directory");
            (Index::open(directory.path()).expect("opened"), directory)
        });
        index.rows.clear().expect("cleared");
        let mut fields = Fields(input);
        while let (Some([serial]), Some(part), Some(len)) =
            (fields.take(), fields.u16(), fields.u16())
        {
            let (value, rest) = fields.0.split_at(fields.0.len().min(usize::from(len)));
            fields.0 = rest;
            let mut key = u64::from(serial).to_be_bytes().to_vec();
            key.extend(part.to_be_bytes());
            index.rows.insert(key, value).expect("inserted");
        }
        let mut loaded = index.load().expect("no panic");
        for row in &loaded.rows {
            row.header.validate().expect("a header that holds");
            assert!(row.header.keys.len() <= MAX_RUN_BLOCKS);
            assert!(row.header.slices.len() <= MAX_RUN_SLICES);
            assert!(row.header_bytes as usize <= MAX_HEADER_BYTES);
            assert!(row.extent().end() >= row.extent().len);
        }
        index.rows.clear().expect("cleared");
        for row in &loaded.rows {
            index.insert(row).expect("inserted");
        }
        let again = index.load().expect("no panic");
        assert!(again.damaged.is_empty());
        loaded.rows.sort_by_key(|row| row.serial);
        assert_eq!(again.rows, loaded.rows);
    });
}
