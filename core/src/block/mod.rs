//! L1: the fixed pool of blocks, and the sequences that share them.
