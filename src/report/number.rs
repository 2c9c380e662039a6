//! Numbers as people read them: grouped thousands, no trailing noise, a proper minus sign.

use evaluation::spread::three_digits;

/// `46000` as `46 000`, with narrow no-break spaces.
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() * 2);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// A score: three decimals below 100, one above; an em dash for what is not a number.
pub fn score(value: f64) -> String {
    match value {
        v if !v.is_finite() => "–".into(),
        v if v.abs() < 100.0 => minus(&three_digits(v)),
        v => minus(&format!("{v:.1}")),
    }
}

/// A value of a curve: four significant digits, in powers of ten where the number would be long.
pub fn significant(value: f64) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    let magnitude = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    if value != 0.0 && !(-3..6).contains(&magnitude) {
        return power(value, 2);
    }
    trimmed(&format!("{value:.*}", (3 - magnitude).clamp(0, 6) as usize))
}

/// A label of an axis whose ticks are `step` apart: exactly the decimals the step needs, `k` and `M` for thousands.
pub fn tick(value: f64, step: f64) -> String {
    if value.abs() < step * 1e-6 {
        return "0".into();
    }
    let decimals = |step: f64| (-(step * 1.000_001).log10().floor()).clamp(0.0, 12.0) as usize;
    match value.abs() {
        v if v < 1e-3 => power(value, 2),
        v if v >= 1e6 => trimmed(&format!("{:.*}", decimals(step / 1e6), value / 1e6)) + "M",
        v if v >= 1e4 => trimmed(&format!("{:.*}", decimals(step / 1e3), value / 1e3)) + "k",
        _ => minus(&format!("{value:.*}", decimals(step))),
    }
}

/// `0.00025` as `2.5e−4`, with up to `decimals` decimals.
fn power(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    format!("{}e{}", trimmed(mantissa), minus(exponent))
}

/// Without the zeros at the end of the decimals.
fn trimmed(text: &str) -> String {
    minus(if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text })
}

fn minus(text: &str) -> String {
    text.replace('-', "\u{2212}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(46_000), "46\u{202f}000");
        assert_eq!(grouped(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(score(0.81249), "0.812");
        assert_eq!(score(-0.5), "−0.500");
        assert_eq!(score(123.45), "123.5");
        assert_eq!(score(f64::NAN), "–");
        assert_eq!(significant(11.09035), "11.09");
        assert_eq!(significant(0.0), "0");
        assert_eq!(significant(2.5e-7), "2.5e−7");
        assert_eq!(significant(0.996), "0.996");
        assert_eq!(significant(120_000.0), "120000");
    }

    #[test]
    fn ticks_have_the_decimals_of_their_step() {
        assert_eq!(tick(0.30000000000000004, 0.1), "0.3");
        assert_eq!(tick(11.0904, 0.0002), "11.0904");
        assert_eq!(tick(2500.0, 500.0), "2500");
        assert_eq!(tick(15_000.0, 5_000.0), "15k");
        assert_eq!(tick(12_500.0, 500.0), "12.5k");
        assert_eq!(tick(1.5e6, 5e5), "1.5M");
        assert_eq!(tick(5e-4, 1e-4), "5e−4");
        assert_eq!(tick(1e-17, 0.2), "0");
    }
}
