/// Work that is worth compiling for the vector instructions of the processor it runs on. Only what is inlined profits:
/// [`Work::run`] and all that it calls must be `#[inline(always)]`.
pub(crate) trait Work {
    /// Does it.
    fn run(self);
}

/// Does the work with the vector instructions that this processor has.
#[inline]
pub(crate) fn vectorised(work: impl Work) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the feature that the function is compiled for; it has no other condition.
        return unsafe { with_avx2(work) };
    }
    work.run();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2(work: impl Work) {
    work.run();
}
