//! The one module that holds `unsafe`: page-aligned memory, vectored I/O into it, and the page-cache query.
//!
//! Its callers see safe, bounds-checked calls only.
#![expect(
    unsafe_code,
    reason = "the audited module; every block has its SAFETY note"
)]

mod page_cache;
mod prefetch;
mod region;
mod vectored;

pub use page_cache::resident_bytes;
pub(crate) use prefetch::prefetch;
pub use region::{PAGE, Region, page_align};
pub use vectored::{Piece, Regions, Vectors, read_pieces, write_pieces};
