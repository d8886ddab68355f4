//! The one module that holds `unsafe`: page-aligned memory, vectored I/O into it, the page-cache query, and the two
//! things that processors differ in: prefetches and vector instructions.
//!
//! Its callers see safe, bounds-checked calls only.
#![expect(
    unsafe_code,
    reason = "the audited module; every block has its SAFETY note"
)]

mod checksum;
mod lent;
mod page_cache;
mod prefetch;
mod region;
mod simd;
mod vectored;

pub use checksum::Checksum;
pub use lent::WritableBuffer;
pub(crate) use lent::lend;
pub use page_cache::resident_bytes;
pub(crate) use prefetch::prefetch;
pub use region::{PAGE, Region, page_align};
pub(crate) use simd::{Work, vectorised};
pub use vectored::{Piece, Regions, Vectors, read_ranges, write_pieces};
