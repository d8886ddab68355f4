//! Seconds as a sum of non-negative parts, learnt robustly from observations.
//!
//! Observations of like size share a cell, which remembers its last few and stands for their median. A least-absolute-deviation
//! fit goes through the cells. So a size that is seen often cannot crowd out one that is seen rarely, and a slow outlier moves the
//! estimate as far as its rank goes, not as far as its seconds do.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;

/// Observations that a cell remembers; its median survives outliers in fewer than half of them.
const CELL_OBSERVATIONS: usize = 9;
/// Cells that are remembered; the one that was not seen for the longest time goes first.
const MAX_CELLS: usize = 24;
/// Observations before an estimate counts as learnt: one spike must not decide.
const ENOUGH: usize = 3;
/// An observation counts half after so many later ones: what changed is believed soon.
const HALF_LIFE: f64 = 16.0;
/// What the oldest observation still counts, where nothing newer contradicts it.
const LEAST_WEIGHT: f64 = 0.02;
/// What an assumed point counts: it decides only what no observation does.
const ASSUMED_WEIGHT: f64 = 0.002;

/// Anything else is a clock's mistake: a nanosecond to eleven days.
const POSSIBLE_SECONDS: RangeInclusive<f64> = 1e-9..=1e6;
/// Bytes, or tokens times tokens, beyond what any machine has.
const MOST_FEATURE: f64 = 1e18;

/// Something that took time: how much of each feature it had, and the seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Observation<const P: usize> {
    /// Which observations are alike.
    pub(super) cell: u32,
    /// Non-negative, 1 or more together.
    pub(super) features: [f64; P],
    pub(super) seconds: f64,
}

/// What is believed before anything was seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prior<const P: usize> {
    /// Seconds per feature, all positive.
    pub(super) costs: [f64; P],
    /// Where the proportions between the parts hold until observations tell them apart.
    pub(super) anchors: &'static [[f64; P]],
}

#[derive(Clone, Debug)]
struct Seen<const P: usize> {
    observation: Observation<P>,
    at: u64,
}

/// A point that the fit should go through.
#[derive(Clone, Copy, Debug)]
struct Point<const P: usize> {
    features: [f64; P],
    seconds: f64,
    weight: f64,
}

/// The estimate of one kind of work.
#[derive(Clone, Debug)]
pub(super) struct Estimator<const P: usize> {
    prior: Prior<P>,
    cells: BTreeMap<u32, VecDeque<Seen<P>>>,
    /// Observations so far.
    clock: u64,
    /// The fit, until the next observation.
    fitted: Option<[f64; P]>,
}

impl<const P: usize> Estimator<P> {
    pub(super) fn new(prior: Prior<P>) -> Self {
        Self {
            prior,
            cells: BTreeMap::new(),
            clock: 0,
            fitted: None,
        }
    }

    /// Takes an observation in; what no work can have taken is left out.
    pub(super) fn observe(&mut self, observation: Observation<P>) {
        let features = &observation.features;
        if !POSSIBLE_SECONDS.contains(&observation.seconds)
            || !features
                .iter()
                .all(|each| (0.0..=MOST_FEATURE).contains(each))
            || features.iter().sum::<f64>() < 1.0
        {
            return;
        }
        self.clock += 1;
        let cell = self.cells.entry(observation.cell).or_default();
        if cell.len() == CELL_OBSERVATIONS {
            cell.pop_front();
        }
        cell.push_back(Seen {
            observation,
            at: self.clock,
        });
        if self.cells.len() > MAX_CELLS {
            let stale = self
                .cells
                .iter()
                .min_by_key(|(_, cell)| cell.back().map(|seen| seen.at));
            if let Some(&stale) = stale.map(|(cell, _)| cell) {
                self.cells.remove(&stale);
            }
        }
        self.fitted = None;
    }

    /// Observations remembered.
    pub(super) fn observations(&self) -> usize {
        self.cells.values().map(VecDeque::len).sum()
    }

    /// Whether enough was seen to decide by it.
    pub(super) fn is_learnt(&self) -> bool {
        self.observations() >= ENOUGH
    }

    /// Seconds per feature: the prior until enough was seen.
    pub(super) fn costs(&mut self) -> [f64; P] {
        if !self.is_learnt() {
            return self.prior.costs;
        }
        *self
            .fitted
            .get_or_insert_with(|| fit(&self.prior, &self.cells, self.clock))
    }

    /// Seconds for so much of each feature.
    pub(super) fn predict(&mut self, features: &[f64; P]) -> f64 {
        dot(&self.costs(), features)
    }

    /// Everything remembered, oldest first.
    pub(super) fn history(&self) -> Vec<Observation<P>> {
        let mut seen = self.cells.values().flatten().collect::<Vec<_>>();
        seen.sort_by_key(|seen| seen.at);
        seen.into_iter().map(|seen| seen.observation).collect()
    }
}

fn dot<const P: usize>(a: &[f64; P], b: &[f64; P]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn fit<const P: usize>(
    prior: &Prior<P>,
    cells: &BTreeMap<u32, VecDeque<Seen<P>>>,
    clock: u64,
) -> [f64; P] {
    let mut points = cells
        .values()
        .filter_map(|cell| stand_for(prior, cell, clock))
        .collect::<Vec<_>>();
    let ratios = points.iter().map(|point| {
        (
            point.seconds / dot(&prior.costs, &point.features),
            point.weight,
        )
    });
    let Some(scale) = weighted_median(ratios.collect()) else {
        return prior.costs;
    };
    let scaled = prior.costs.map(|cost| cost * scale);
    points.extend(prior.anchors.iter().map(|features| Point {
        features: *features,
        seconds: dot(&scaled, features),
        weight: ASSUMED_WEIGHT,
    }));
    // Deviations count relative to what is expected there, so that long work does not outvote short work.
    for point in &mut points {
        point.weight /= dot(&scaled, &point.features);
    }
    least_deviation(&points, scaled)
}

/// The observation of median seconds, relative to what the prior expects; the lower one of two.
fn stand_for<const P: usize>(
    prior: &Prior<P>,
    cell: &VecDeque<Seen<P>>,
    clock: u64,
) -> Option<Point<P>> {
    let mut ranked = cell
        .iter()
        .map(|seen| {
            let Observation {
                features, seconds, ..
            } = seen.observation;
            (seconds / dot(&prior.costs, &features), features, seconds)
        })
        .collect::<Vec<_>>();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (_, features, seconds) = *ranked.get(ranked.len().checked_sub(1)? / 2)?;
    let weight = cell
        .iter()
        .map(|seen| (-((clock - seen.at) as f64) / HALF_LIFE).exp2())
        .sum::<f64>();
    Some(Point {
        features,
        seconds,
        weight: weight.max(LEAST_WEIGHT),
    })
}

fn weighted_median(mut values: Vec<(f64, f64)>) -> Option<f64> {
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut left = values.iter().map(|(_, weight)| weight).sum::<f64>() / 2.0;
    for (value, weight) in &values {
        left -= weight;
        if left <= 0.0 {
            return Some(*value);
        }
    }
    values.last().map(|(value, _)| *value)
}

/// The non-negative costs with the least weighted sum of absolute deviations. Some optimum goes through as many points as it
/// has costs that are not zero, so trying all of those finds it: at most a few thousand for three costs and `MAX_CELLS`.
fn least_deviation<const P: usize>(points: &[Point<P>], start: [f64; P]) -> [f64; P] {
    let deviation = |costs: &[f64; P]| {
        points
            .iter()
            .map(|point| point.weight * (dot(costs, &point.features) - point.seconds).abs())
            .sum::<f64>()
    };
    let mut best = (deviation(&start), start);
    let mut chosen = Vec::with_capacity(P);
    for support in 1..1_usize << P {
        let parts = (0..P)
            .filter(|part| support >> part & 1 == 1)
            .collect::<Vec<_>>();
        each_choice(points.len(), parts.len(), &mut chosen, &mut |chosen| {
            let Some(costs) = through(points, chosen, &parts) else {
                return;
            };
            let cost = deviation(&costs);
            if cost < best.0 {
                best = (cost, costs);
            }
        });
    }
    best.1
}

/// Calls `visit` with every set of `size` numbers below `count`.
fn each_choice(
    count: usize,
    size: usize,
    chosen: &mut Vec<usize>,
    visit: &mut dyn FnMut(&[usize]),
) {
    if chosen.len() == size {
        visit(chosen);
        return;
    }
    for next in chosen.last().map_or(0, |last| last + 1)..count {
        chosen.push(next);
        each_choice(count, size, chosen, visit);
        chosen.pop();
    }
}

/// The costs of `parts` (the others being 0) that meet the chosen points exactly, by Gaussian elimination; none if the points
/// do not tell the parts apart, or if a cost would be negative.
fn through<const P: usize>(
    points: &[Point<P>],
    chosen: &[usize],
    parts: &[usize],
) -> Option<[f64; P]> {
    let size = parts.len();
    let mut rows = [[0.0; P]; P];
    let mut right = [1.0; P];
    for (row, &index) in rows.iter_mut().zip(chosen) {
        let point = points.get(index)?;
        for (cell, &part) in row.iter_mut().zip(parts) {
            *cell = point.features[part] / point.seconds;
        }
    }
    for column in 0..size {
        let pivot = (column..size)
            .max_by(|a, b| rows[*a][column].abs().total_cmp(&rows[*b][column].abs()))?;
        rows.swap(column, pivot);
        right.swap(column, pivot);
        let largest = rows[column]
            .iter()
            .fold(0.0_f64, |max, cell| max.max(cell.abs()));
        if rows[column][column].abs() <= 1e-12 * largest || largest == 0.0 {
            return None;
        }
        for row in 0..size {
            if row != column {
                let factor = rows[row][column] / rows[column][column];
                let pivot = rows[column];
                for (cell, above) in rows[row].iter_mut().zip(pivot).skip(column) {
                    *cell -= factor * above;
                }
                right[row] -= factor * right[column];
            }
        }
    }
    let mut costs = [0.0; P];
    for (row, &part) in parts.iter().enumerate() {
        let cost = right[row] / rows[row][row];
        if !(cost.is_finite() && cost >= 0.0) {
            return None;
        }
        costs[part] = cost;
    }
    Some(costs)
}
