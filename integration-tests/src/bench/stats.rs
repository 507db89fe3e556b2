//! Medians and ratios.

/// The middle value, or the mean of the two in the middle.
///
/// # Panics
///
/// When there is no value, or one is not a number: there is no median of that.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).expect("measurements are numbers"));
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

/// How the ratios of the repetitions lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// Their median.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Ratio {
    /// Ratios of values of the same repetition. None when a divisor is nothing: then no ratio says anything.
    pub fn pairwise(values: &[f64], divisors: &[f64]) -> Option<Self> {
        if values.is_empty()
            || values.len() != divisors.len()
            || divisors.iter().any(|divisor| *divisor <= 0.0)
        {
            return None;
        }
        let ratios: Vec<f64> = values.iter().zip(divisors).map(|(value, divisor)| value / divisor).collect();
        Some(Self {
            median: median(&ratios),
            min: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            max: ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_the_mean_of_the_two_middle_values() {
        for (values, expected) in [
            (vec![7.0], 7.0),
            (vec![3.0, 1.0], 2.0),
            (vec![9.0, 1.0, 5.0], 5.0),
            (vec![4.0, 1.0, 2.0, 100.0], 3.0),
        ] {
            assert_eq!(median(&values), expected, "{values:?}");
        }
    }

    #[test]
    fn ratios_pair_the_values_of_the_same_repetition() {
        // The ratio of the medians would be 1: only pairs show that it was always the half or the double.
        let ratio = Ratio::pairwise(&[1.0, 2.0, 4.0], &[2.0, 4.0, 2.0]).expect("a ratio");
        assert_eq!(ratio, Ratio { median: 0.5, min: 0.5, max: 2.0 });
    }

    #[test]
    fn there_is_no_ratio_to_nothing() {
        assert_eq!(Ratio::pairwise(&[1.0], &[0.0]), None);
        assert_eq!(Ratio::pairwise(&[1.0, 2.0], &[1.0]), None);
        assert_eq!(Ratio::pairwise(&[], &[]), None);
    }
}
