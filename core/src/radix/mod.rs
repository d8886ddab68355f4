//! The radix tree over L1 blocks: longest cached prefix, path locks, leaf eviction.
