//! How large a KV cache is, and where it outgrows the weights.
