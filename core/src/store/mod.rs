//! `BlockStore`: block key to bytes, over a stack of tiers.
