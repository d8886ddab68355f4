//! What keeps data on the move between tiers from coming back after it was cleared.
//!
//! A victim between L2 and the write queue, or a run between L3 and L2, is in no tier for a moment. A clear that passes in
//! that moment would miss it, so a move that overlaps a clear in time is dropped, whatever it carries.

use crate::sync::Mutex;

#[derive(Debug, Default)]
struct State {
    clears: u64,
    active: u32,
}

/// When a move began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Born(u64);

/// Tells moves from clears that overlap them.
#[derive(Debug, Default)]
pub(super) struct Moves {
    state: Mutex<State>,
}

/// A clear under way.
pub(super) struct Clearing<'a>(&'a Moves);

impl Moves {
    /// To be called before the data is looked up or unlinked where it comes from.
    pub(super) fn born(&self) -> Born {
        Born(self.state.lock().clears)
    }

    /// Runs `settle`, told whether the data may become visible where it goes: not if a clear overlapped the move.
    pub(super) fn settle<T>(&self, born: Born, settle: impl FnOnce(bool) -> T) -> T {
        let state = self.state.lock();
        settle(state.active == 0 && state.clears == born.0)
    }

    /// To be held from before the first tier is cleared until after the last.
    pub(super) fn clearing(&self) -> Clearing<'_> {
        self.state.lock().active += 1;
        Clearing(self)
    }
}

impl Drop for Clearing<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.active -= 1;
        state.clears += 1;
    }
}
