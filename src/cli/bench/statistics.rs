//! Means, quantiles, and whether two samples differ.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// The mean, and the standard deviation of a sample (n − 1); that of a single value is 0.
pub(super) fn mean_and_sd(values: &[f64]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    (mean, variance(values, mean).sqrt())
}

fn variance(values: &[f64], mean: f64) -> f64 {
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    squares / (values.len() as f64 - 1.0).max(1.0)
}

/// The value below which `share` of the sorted values lie: the one at the place (n − 1) · share, rounded down.
pub(super) fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

/// The two-sided p-value of Welch's t-test: how likely means that far apart are where both samples come from normal
/// distributions of one mean. `None` if a sample has fewer than two values.
pub(super) fn welch(a: &[f64], b: &[f64]) -> Option<f64> {
    if a.len() < 2 || b.len() < 2 {
        return None;
    }
    let part = |values: &[f64]| {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        (mean, variance(values, mean) / values.len() as f64, values.len() as f64 - 1.0)
    };
    let ((mean_a, error_a, free_a), (mean_b, error_b, free_b)) = (part(a), part(b));
    let error = error_a + error_b;
    // without any spread a difference is certain
    if error == 0.0 {
        return Some(if mean_a == mean_b { 1.0 } else { 0.0 });
    }
    let free = error.powi(2) / (error_a.powi(2) / free_a + error_b.powi(2) / free_b);
    let t = (mean_a - mean_b).abs() / error.sqrt();
    Some(2.0 * StudentsT::new(0.0, 1.0, free).ok()?.sf(t))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(value: f64, reference: f64) {
        assert!((value - reference).abs() <= 1e-9 * reference.abs(), "{value} is not {reference}");
    }

    #[test]
    fn means_and_deviations_are_those_of_numpy() {
        // numpy 2.4.6: mean(x), std(x, ddof=1)
        let cases: [(&[f64], f64, f64); 4] = [
            (&[60.1, 60.7, 61.2, 59.9, 60.4], 60.46, 0.5128352561983249),
            (&[62.3, 61.9, 62.8, 62.0, 62.5], 62.3, 0.3674234614174761),
            (&[20.0, 25.0, 15.0, 30.0], 22.5, 6.454972243679028),
            (&[1.5, 3.7], 2.6, 1.5556349186104046),
        ];
        for (values, mean, sd) in cases {
            let (own_mean, own_sd) = mean_and_sd(values);
            near(own_mean, mean);
            near(own_sd, sd);
        }
        assert_eq!(mean_and_sd(&[7.0]), (7.0, 0.0));
    }

    #[test]
    fn p_values_are_those_of_scipy() {
        // scipy 1.17.1: stats.ttest_ind(a, b, equal_var=False).pvalue
        let cases: [(&[f64], &[f64], f64); 5] = [
            (&[60.1, 60.7, 61.2, 59.9, 60.4], &[62.3, 61.9, 62.8, 62.0, 62.5], 0.00028188981298813543),
            (&[100.0, 102.0, 98.0, 101.0], &[99.5, 100.5, 103.0, 97.0, 104.0, 101.5], 0.6313844993472555),
            (&[10.0, 10.1, 9.9], &[20.0, 25.0, 15.0, 30.0], 0.030444095126496),
            (&[1.0, 2.0], &[1.5, 3.5], 0.49313270812084714),
            (&[8.01, 8.02, 8.00, 7.99, 8.03], &[4.00, 4.01, 3.99, 4.02, 3.98], 1.6748860292887254e-18),
        ];
        for (a, b, p) in cases {
            // one tail of the distribution is computed here as a difference, and loses digits
            let own = welch(a, b).unwrap();
            assert!((own - p).abs() <= 1e-7 * p + 1e-15, "{own} is not {p}");
            assert_eq!(welch(b, a), Some(own));
        }
    }

    #[test]
    fn samples_without_spread_and_single_values_are_told_apart() {
        assert_eq!(welch(&[2.0, 2.0], &[2.0, 2.0, 2.0]), Some(1.0));
        assert_eq!(welch(&[2.0, 2.0], &[3.0, 3.0]), Some(0.0));
        assert_eq!(welch(&[2.0], &[3.0, 4.0]), None);
        assert_eq!(welch(&[2.0, 4.0], &[]), None);
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let sorted: Vec<f64> = (1..=2000).map(f64::from).collect();
        assert_eq!((quantile(&sorted, 0.5), quantile(&sorted, 0.99)), (1000.0, 1980.0));
        assert_eq!((quantile(&[7.0], 0.99), quantile(&[7.0, 8.0], 1.0)), (7.0, 8.0));
    }
}
