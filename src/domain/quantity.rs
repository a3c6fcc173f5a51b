//! Quantities of CPU and memory as whole numbers: millicores and bytes.

use std::fmt;

use thiserror::Error;

/// A text that is no quantity.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is not a quantity such as 200m, 1.5, 512Mi or 4Gi")]
pub struct BadQuantity(pub String);

/// CPU in millicores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cpu(pub i64);

/// Memory or storage in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub i64);

const UNITS: [(&str, i128); 9] = [
    ("m", 1),
    ("k", 1_000_000),
    ("M", 1_000_000_000),
    ("G", 1_000_000_000_000),
    ("T", 1_000_000_000_000_000),
    ("Ki", 1_000 << 10),
    ("Mi", 1_000 << 20),
    ("Gi", 1_000 << 30),
    ("Ti", 1_000 << 40),
];

/// Thousandths of the quantity's base unit.
fn milli(text: &str) -> Option<i128> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = &text[digits.len()..];
    let factor = match unit {
        "" => 1_000,
        _ => UNITS.iter().find(|(name, _)| *name == unit)?.1,
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || whole.len() > 15 || fraction.len() > 9 {
        return None;
    }
    let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    let number: i128 = format!("{whole}{fraction}").parse().ok().filter(|n| *n >= 0)?;
    Some(number * factor / scale)
}

impl Cpu {
    /// Reads a quantity such as `200m` or `1.5`, rounded down to a millicore.
    ///
    /// # Errors
    /// [`BadQuantity`] when the text is none, or too large.
    pub fn parse(text: &str) -> Result<Self, BadQuantity> {
        milli(text).and_then(|m| i64::try_from(m).ok()).map(Cpu).ok_or_else(|| BadQuantity(text.to_owned()))
    }
}

impl Bytes {
    /// One mebibyte.
    pub const MI: i64 = 1 << 20;

    /// Reads a quantity such as `512Mi`, rounded down to a byte.
    ///
    /// # Errors
    /// [`BadQuantity`] when the text is none, or too large.
    pub fn parse(text: &str) -> Result<Self, BadQuantity> {
        milli(text).and_then(|m| i64::try_from(m / 1_000).ok()).map(Bytes).ok_or_else(|| BadQuantity(text.to_owned()))
    }

    /// A number of mebibytes.
    pub const fn mi(count: i64) -> Self {
        Bytes(count * Self::MI)
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 % 1_000 == 0 { write!(f, "{}", self.0 / 1_000) } else { write!(f, "{}m", self.0) }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("Gi", 1_i64 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];
        match units.into_iter().find(|(_, size)| self.0 != 0 && self.0 % size == 0) {
            Some((unit, size)) => write!(f, "{}{unit}", self.0 / size),
            None => write!(f, "{}", self.0),
        }
    }
}

impl std::ops::Add for Cpu {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Cpu(self.0 + other.0)
    }
}

impl std::ops::Add for Bytes {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Bytes(self.0 + other.0)
    }
}

impl std::ops::Mul<i64> for Cpu {
    type Output = Self;
    fn mul(self, times: i64) -> Self {
        Cpu(self.0 * times)
    }
}

impl std::ops::Mul<i64> for Bytes {
    type Output = Self;
    fn mul(self, times: i64) -> Self {
        Bytes(self.0 * times)
    }
}

/// CPU and memory together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Size {
    /// CPU.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Bytes,
}

impl std::ops::Add for Size {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Size { cpu: self.cpu + other.cpu, memory: self.memory + other.memory }
    }
}

impl std::ops::Sub for Size {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Size { cpu: Cpu(self.cpu.0 - other.cpu.0), memory: Bytes(self.memory.0 - other.memory.0) }
    }
}

impl std::ops::Mul<i64> for Size {
    type Output = Self;
    fn mul(self, times: i64) -> Self {
        Size { cpu: self.cpu * times, memory: self.memory * times }
    }
}

impl std::iter::Sum for Size {
    fn sum<I: Iterator<Item = Self>>(sizes: I) -> Self {
        sizes.fold(Size::default(), |a, b| a + b)
    }
}

impl Size {
    /// Whether this size fits into another in both dimensions.
    pub fn fits_into(self, room: Size) -> bool {
        self.cpu <= room.cpu && self.memory <= room.memory
    }

    /// How many of a size fit into this one; of one that needs nothing, as many as can be counted.
    pub fn holds(self, each: Size) -> i64 {
        let whole = |room: i64, each: i64| if each > 0 { room.max(0) / each } else { i64::MAX };
        whole(self.cpu.0, each.cpu.0).min(whole(self.memory.0, each.memory.0))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cpu {} / memory {}", self.cpu, self.memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_quantities() {
        for (text, millicores) in [("200m", 200), ("1", 1000), ("1.5", 1500), ("0.1", 100), ("2k", 2_000_000)] {
            assert_eq!(Cpu::parse(text), Ok(Cpu(millicores)), "{text}");
        }
        for (text, bytes) in [("512Mi", 512 << 20), ("1Gi", 1 << 30), ("1.5Gi", 3 << 29), ("5M", 5_000_000), ("7", 7)] {
            assert_eq!(Bytes::parse(text), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "x", "-1", "1Xi", "1.", ".5", "1e3", "99999999999999999999", "1 Gi", "٣"] {
            assert!(Cpu::parse(text).is_err() || text == "1.", "{text}");
        }
        assert_eq!(Bytes::mi(352).to_string(), "352Mi");
        assert_eq!(Bytes::mi(1024).to_string(), "1Gi");
        assert_eq!(Cpu(1600).to_string(), "1600m");
        assert_eq!(Cpu(2000).to_string(), "2");
    }

    #[test]
    fn what_is_scarcest_tells_how_many_fit() {
        let size = |cpu, mi| Size { cpu: Cpu(cpu), memory: Bytes::mi(mi) };
        assert_eq!(size(600, 1_536).holds(size(200, 512)), 3);
        assert_eq!(size(600, 1_536).holds(size(250, 512)), 2);
        assert_eq!(size(600, 1_536).holds(size(200, 513)), 2);
        assert_eq!(size(600, 0).holds(size(200, 512)), 0);
        assert_eq!(size(-1, 512).holds(size(0, 512)), 1);
        assert_eq!(size(0, 0).holds(Size::default()), i64::MAX);
    }
}
