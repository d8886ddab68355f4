use std::mem::size_of_val;

/// Bytes that come from memory together.
const LINE: usize = 64;

/// Asks for the memory `ahead` items behind the start of `items`, as much as `items` takes up; it need not exist.
#[inline]
pub(crate) fn prefetch<T>(items: &[T], ahead: usize) {
    #[cfg(target_arch = "x86_64")]
    for offset in (0..size_of_val(items)).step_by(LINE) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let at = items.as_ptr().wrapping_add(ahead).wrapping_byte_add(offset);
        // SAFETY: a prefetch is a hint that reads nothing and never faults, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (items, ahead);
}
