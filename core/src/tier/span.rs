//! Where records lie on a medium, and which of them are read together.

/// The range of a medium (a segment file) that a record takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// The medium.
    pub medium: u64,
    /// Where the record starts.
    pub start: u64,
    /// The first byte behind it.
    pub end: u64,
}

/// The most bytes between two records that are read together: reading past so many takes less than asking a second time.
const GAP_BYTES: u64 = 64 << 10;
/// The most bytes that records read together take, gaps included: a disk does not get faster with longer reads, and longer ones
/// would keep other readers waiting.
pub const TOGETHER_BYTES: u64 = 3 << 19;

impl Span {
    /// Whether another record follows this one, with a small gap at most.
    pub fn is_near(&self, next: &Self) -> bool {
        let gap = next.start.checked_sub(self.end);
        self.medium == next.medium && gap.is_some_and(|gap| gap <= GAP_BYTES)
    }
}

/// Which of these records are read together: groups of indices, each in the order of the medium, of [`TOGETHER_BYTES`] at most
/// unless a single one is longer. What has no span is a group of its own.
pub(crate) fn neighbours(spans: &[Option<Span>]) -> Vec<Vec<usize>> {
    let mut order = (0..spans.len()).collect::<Vec<_>>();
    order.sort_by_key(|&index| (spans[index], index));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    // Where the last group starts, and its last record.
    let mut open: Option<(u64, Span)> = None;
    for index in order {
        let span = spans[index];
        let joins = |(start, last): (u64, Span)| {
            span.filter(|span| last.is_near(span) && span.end - start <= TOGETHER_BYTES)
        };
        if let (Some(span), Some(group)) = (open.and_then(joins), groups.last_mut()) {
            group.push(index);
            open = open.map(|(start, _)| (start, span));
        } else {
            groups.push(vec![index]);
            open = span.map(|span| (span.start, span));
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{GAP_BYTES, Span, TOGETHER_BYTES, neighbours};

    fn span(medium: u64, start: u64, len: u64) -> Span {
        let end = start + len;
        Span { medium, start, end }
    }

    #[test]
    fn what_lies_side_by_side_is_read_together() {
        let spans = [
            Some(span(1, 2000, 1000)),
            None,
            Some(span(1, 0, 1000)),
            Some(span(2, 1000, 1000)),
            // Behind a gap that is too wide, and one that is not.
            Some(span(1, 3001 + GAP_BYTES, 10)),
            Some(span(1, 3011 + 2 * GAP_BYTES, 10)),
        ];
        let groups = [vec![1], vec![2, 0], vec![4, 5], vec![3]];
        assert_eq!(neighbours(&spans), groups);
        let half = TOGETHER_BYTES / 2;
        let spans = [(0, half), (half, half), (2 * half, 1)];
        let spans = spans.map(|(start, len)| Some(span(1, start, len)));
        assert_eq!(neighbours(&spans), [vec![0, 1], vec![2]]);
        assert_eq!(
            neighbours(&[Some(span(1, 0, 9)); 2]).len(),
            2,
            "the same one twice"
        );
    }

    proptest! {
        #[test]
        fn each_is_in_one_group_and_groups_keep_to_their_limits(
            records in prop::collection::vec((0..2_u64, 0..40_u64, 1..20_u64), 0..40)
        ) {
            let page = 16 << 10;
            let spans = records.iter().map(|&(medium, start, len)| Some(span(medium, start * page, len * page)));
            let spans = spans.collect::<Vec<_>>();
            let groups = neighbours(&spans);
            let mut all = groups.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..spans.len()).collect::<Vec<_>>());
            for group in groups {
                let of = |index: &usize| spans[*index].expect("all have one");
                prop_assert!(group.iter().zip(&group[1..]).all(|(a, b)| of(a).is_near(&of(b))));
                let (first, last) = (of(&group[0]), of(&group[group.len() - 1]));
                prop_assert!(group.len() == 1 || last.end - first.start <= TOGETHER_BYTES);
            }
        }
    }
}
