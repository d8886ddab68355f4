//! The prompts that the tree's benches share: those of the comparison with SGLang's trees.

/// A small generator, so that every machine measures the same prompts.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn between(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low) as u64) as usize
    }

    pub(crate) fn tokens(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| (self.next() % 150_000) as u32).collect()
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for index in (1..items.len()).rev() {
            items.swap(index, self.between(0, index + 1));
        }
    }
}

/// 1,000 prompts of 2,000 to 8,000 tokens, cut to whole blocks, in random order: 50 groups that share a prefix of 500 to 1,500
/// tokens, each with 4 branches of 256 to 1,000 more, each with 5 prompts.
pub(crate) fn prompts(block_tokens: usize) -> Vec<Vec<u32>> {
    let mut rng = Rng::new(1);
    let mut prompts = Vec::new();
    for _ in 0..50 {
        let len = rng.between(500, 1500);
        let group = rng.tokens(len);
        for _ in 0..4 {
            let len = rng.between(256, 1000);
            let branch = [&group[..], &rng.tokens(len)].concat();
            for _ in 0..5 {
                let len = rng.between(2000, 8000).max(branch.len());
                let rest = rng.tokens(len - branch.len());
                let mut prompt = [&branch[..], &rest].concat();
                prompt.truncate(prompt.len() / block_tokens * block_tokens);
                prompts.push(prompt);
            }
        }
    }
    rng.shuffle(&mut prompts);
    prompts
}
