//! Durations as users write them: one number and one unit.

use thiserror::Error;

/// A text that is no duration.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is not a duration such as 20s, 90m, 36h or 7d")]
pub struct BadDuration(pub String);

/// Seconds of a duration such as `7d`.
///
/// # Errors
/// [`BadDuration`] when the text is none: a number of at most six digits, not zero, then one of s, m, h, d.
pub fn seconds(text: &str) -> Result<i64, BadDuration> {
    let bad = || BadDuration(text.to_owned());
    let unit = text.chars().last().ok_or_else(bad)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(bad()),
    };
    let digits = &text[..text.len() - 1];
    if digits.is_empty() || digits.len() > 6 || digits.starts_with('0') || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    digits.parse::<i64>().map(|number| number * factor).map_err(|_| bad())
}

/// A duration in the largest unit that divides it, such as `7d`.
pub fn words(seconds: i64) -> String {
    [("d", 86_400), ("h", 3_600), ("m", 60)]
        .into_iter()
        .find(|(_, unit)| seconds % unit == 0)
        .map_or_else(|| format!("{seconds}s"), |(unit, size)| format!("{}{unit}", seconds / size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_durations() {
        for (text, expected) in [("20s", 20), ("90m", 5_400), ("36h", 129_600), ("7d", 604_800)] {
            assert_eq!(seconds(text), Ok(expected));
        }
        for text in ["", "d", "0d", "07d", "7", "7w", "1h30m", "-1d", "1234567s", "7é"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
