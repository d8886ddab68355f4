//! Time and category of the request at hand, as far as a policy is told.

/// What the owner said of the request at hand.
#[derive(Debug, Default)]
pub(super) struct Time {
    request: Option<(u64, u32)>,
    uses: u64,
}

impl Time {
    /// A request begins. A time before that of the last request counts as that time.
    pub(super) fn request(&mut self, now_ms: u64, category: u32) {
        self.request = Some((now_ms.max(self.told_ms()), category));
    }

    /// The time of the request at hand, in milliseconds; 0 if nobody tells of requests.
    pub(super) fn told_ms(&self) -> u64 {
        self.request.map_or(0, |(now_ms, _)| now_ms)
    }

    /// Counts a use and gives its time: that of the request at hand or, where nobody tells of requests, the number of uses.
    pub(super) fn count_use(&mut self) -> u64 {
        self.uses += 1;
        self.now()
    }

    /// The time of the last use or of the request at hand, whichever is later.
    pub(super) fn now(&self) -> u64 {
        self.request.map_or(self.uses, |(now_ms, _)| now_ms)
    }

    /// The category of the request at hand; `otherwise` where nobody tells of requests.
    pub(super) fn category(&self, otherwise: u32) -> u32 {
        self.request.map_or(otherwise, |(_, category)| category)
    }
}
