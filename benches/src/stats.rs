//! Statistics of measurements: median, percentiles, a confidence interval without assumptions, and the order of blocks.

/// Resamples for one interval; more move its ends by less than measurements of this kind differ.
const RESAMPLES: usize = 10_000;
/// The same for every run, so that the same samples give the same interval.
const SEED: u64 = 7;

/// A value with its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The median of the samples.
    pub value: f64,
    /// Lower and upper end of its 95 % bootstrap confidence interval.
    pub interval: (f64, f64),
}

/// Whose turn a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What is measured.
    A,
    /// What it is compared with.
    B,
}

/// A percentile by linear interpolation between the two nearest samples; NaN of none.
pub fn percentile(samples: &[f64], percent: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let rank = percent / 100.0 * last as f64;
    let low = (rank.floor() as usize).min(last);
    let high = (rank.ceil() as usize).min(last);
    sorted[low] + (sorted[high] - sorted[low]) * (rank - rank.floor())
}

/// The median; NaN of no samples.
pub fn median(samples: &[f64]) -> f64 {
    percentile(samples, 50.0)
}

/// The median with its interval: that of the medians of samples drawn from the samples, with replacement.
pub fn estimate(samples: &[f64]) -> Estimate {
    let mut random = fastrand::Rng::with_seed(SEED);
    let medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let drawn: Vec<f64> = samples.iter().map(|_| samples[random.usize(..samples.len())]).collect();
            median(&drawn)
        })
        .collect();
    Estimate { value: median(samples), interval: (percentile(&medians, 2.5), percentile(&medians, 97.5)) }
}

/// The order of so many pairs of blocks: ABBA, again and again, so that a drift that is steady (a cluster that fills, a
/// machine that warms up) weighs on both sides alike. Each block comes with the number of its pair.
pub fn abba(pairs: usize) -> Vec<(usize, Side)> {
    (0..pairs)
        .flat_map(|pair| {
            let order = if pair % 2 == 0 { [Side::A, Side::B] } else { [Side::B, Side::A] };
            order.map(|side| (pair, side))
        })
        .collect()
}

/// What each further unit of `x` adds to `y`: the slope of the line with the least squares.
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0 / count, y + point.1 / count));
    let (above, below) = points.iter().fold((0.0, 0.0), |(above, below), point| {
        (above + (point.0 - x) * (point.1 - y), below + (point.0 - x).powi(2))
    });
    above / below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_samples() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(percentile(&[1.0, 2.0, 3.0, 4.0, 5.0], 90.0), 4.6);
        assert_eq!(percentile(&[5.0], 99.0), 5.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn intervals_hold_the_median_and_narrow_with_agreement() {
        let wide = estimate(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(wide.interval.0 < wide.value && wide.value < wide.interval.1);
        assert_eq!(estimate(&[2.0, 2.0, 2.0]).interval, (2.0, 2.0));
    }

    #[test]
    fn blocks_mirror_each_other() {
        let sides: Vec<Side> = abba(2).iter().map(|block| block.1).collect();
        assert_eq!(sides, [Side::A, Side::B, Side::B, Side::A]);
        // In every four blocks the places of both sides have the same sum.
        let places = |wanted| abba(4).iter().enumerate().filter(|(_, b)| b.1 == wanted).map(|(n, _)| n).sum::<usize>();
        assert_eq!(places(Side::A), places(Side::B));
    }

    #[test]
    fn slopes_are_those_of_lines() {
        assert!((slope(&[(0.0, 1.0), (1.0, 3.0), (3.0, 7.0)]) - 2.0).abs() < 1e-9);
    }
}
