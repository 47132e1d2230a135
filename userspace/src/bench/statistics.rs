//! Order statistics: exact, from all samples.

/// The value that `per_cent` of the samples do not exceed (nearest rank). Sorts the samples.
pub fn percentile(samples: &mut [u32], per_cent: usize) -> Option<u32> {
    samples.sort_unstable();
    let rank = (samples.len() * per_cent).div_ceil(100).max(1);
    samples.get(rank - 1).copied()
}

/// The middle value, or the mean of the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(sorted[sorted.len() / 2 - 1], upper))
}

/// Smallest and largest value.
pub fn range(values: &[f64]) -> Option<(f64, f64)> {
    let least = values.iter().copied().min_by(f64::total_cmp)?;
    Some((least, values.iter().copied().max_by(f64::total_cmp)?))
}

/// How far the values lie apart: (largest − smallest) ÷ median. `None` for fewer than two, and about zero.
pub fn spread(values: &[f64]) -> Option<f64> {
    let (least, most) = range(values).filter(|_| values.len() > 1)?;
    Some((most - least) / median(values).filter(|median| *median != 0.0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let mut samples: Vec<u32> = (1..=200).rev().collect();
        assert_eq!(percentile(&mut samples, 50), Some(100));
        assert_eq!(percentile(&mut samples, 99), Some(198));
        assert_eq!(percentile(&mut samples, 100), Some(200));
        assert_eq!(percentile(&mut [7], 50), Some(7));
        assert_eq!(percentile(&mut [], 50), None);
    }

    #[test]
    fn a_median_has_as_many_values_below_as_above() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn spread_is_relative_to_the_median() {
        assert_eq!(spread(&[9.0, 10.0, 11.0]), Some(0.2));
        assert_eq!(spread(&[9.0]), None);
        assert_eq!(spread(&[0.0, 0.0]), None);
    }
}
