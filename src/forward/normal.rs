//! The normal distribution: shares of values that lie below a bound.

/// The share of normally distributed values that lie below `x` standard deviations from the mean.
pub(super) fn below(x: f64) -> f64 {
    // A normal number in `f32` is that of more than 13 deviations.
    if x.abs() > 14.0 {
        return if x < 0.0 { 0.0 } else { 1.0 };
    }
    // Φ(x) is ½ + φ(x) (x + x³/3 + x⁵/(3·5) + …), whose terms all have the sign of x.
    let (mut term, mut sum, mut n) = (x, x, 1.0);
    while term.abs() > 1e-17 * sum.abs() {
        n += 2.0;
        term *= x * x / n;
        sum += term;
    }
    (0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()).clamp(0.0, 1.0)
}

/// What a share `p` of normally distributed values lies below, in standard deviations from the mean; `p` within 0 and 1.
pub(super) fn quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-14.0, 14.0);
    for _ in 0..80 {
        let middle = f64::midpoint(low, high);
        if below(middle) < p { low = middle } else { high = middle }
    }
    f64::midpoint(low, high)
}

#[cfg(test)]
mod tests {
    use super::{below, quantile};

    #[test]
    fn quantiles_are_those_of_a_normal_distribution() {
        for (share, expected) in [
            (0.5, 0.0),
            (0.95, 1.644_853_626_951_472_2),
            (0.05, -1.644_853_626_951_472_2),
            (0.6, 0.253_347_103_135_799_7),
            (0.975, 1.959_963_984_540_054),
            (0.999_999, 4.753_424_308_817_088),
            (1e-6, -4.753_424_308_817_088),
        ] {
            let got = quantile(share);
            assert!((got - expected).abs() < 1e-9, "{share}: {got}, expected {expected}");
            // What a file has of it, in `f32`, is read back as near as that says.
            let read = below(f64::from(got as f32));
            assert!((read - share).abs() < 1e-7, "{got}: {read}");
        }
        assert_eq!([f64::NEG_INFINITY, f64::INFINITY].map(below), [0.0, 1.0]);
        assert!(below(f64::NAN).is_nan());
    }
}
