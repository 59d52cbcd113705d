//! Amounts with units: `512GB`, `96GiB`, `10s`; and back.

use std::time::Duration;

const BYTE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1000),
    ("B", 1),
];
/// In milliseconds.
const TIME_UNITS: [(&str, u64); 5] = [("h", 3_600_000), ("min", 60_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// What [`bytes`] reads, as a regular expression.
pub(super) const BYTES: &str = r"^ *[0-9]+(\.[0-9]+)? *([kKmMgGtT][iI]?)?[bB] *$|^[0-9]+$";
/// What [`duration`] reads, as a regular expression.
pub(super) const DURATION: &str = r"^ *[0-9]+(\.[0-9]+)? *(h|min|m|s|ms)? *$";

/// `512GB`, `1.5 TiB`, `1073741824`.
pub(super) fn bytes(text: &str) -> Option<u64> {
    amount(text, &BYTE_UNITS, 1)
}

/// `10s`, `500ms`, `1.5min`, `10`; whole milliseconds.
pub(super) fn duration(text: &str) -> Option<Duration> {
    amount(text, &TIME_UNITS, 1000).map(Duration::from_millis)
}

fn amount(text: &str, units: &[(&str, u64)], without: u64) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..end], text[end..].trim_start());
    let known = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, scale)| *scale);
    let scale = if unit.is_empty() { without } else { known? };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale);
    }
    let product =
        number.parse::<f64>().ok().filter(|_| number.starts_with(|c: char| c.is_ascii_digit()))? * scale as f64;
    // above this a float no longer tells whole numbers apart
    (product.is_finite() && product < (1_u64 << 53) as f64).then_some(product.round() as u64)
}

/// The shortest text that [`bytes`] reads as this number.
pub(super) fn bytes_text(bytes: u64) -> String {
    match BYTE_UNITS.iter().find(|(_, scale)| bytes.is_multiple_of(*scale)) {
        Some((unit, scale)) if *scale > 1 => format!("{}{unit}", bytes / scale),
        _ => bytes.to_string(),
    }
}

/// A text that [`duration`] reads as this one, to the millisecond.
pub(super) fn duration_text(duration: Duration) -> String {
    let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    match TIME_UNITS.iter().find(|(_, scale)| milliseconds.is_multiple_of(*scale)) {
        Some((unit, scale)) => format!("{}{unit}", milliseconds / scale),
        None => format!("{milliseconds}ms"),
    }
}
