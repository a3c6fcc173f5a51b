//! One table for people and one JSON document for programs, from the same rows.

use std::fmt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::stats::Estimate;

/// What a value should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Goal {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

impl Goal {
    fn met_by(self, value: f64) -> bool {
        match self {
            Goal::AtLeast(least) => value >= least,
            Goal::AtMost(most) => value <= most,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Goal::AtLeast(least) => write!(f, ">= {least}"),
            Goal::AtMost(most) => write!(f, "<= {most}"),
        }
    }
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The measurement it belongs to.
    pub measurement: &'static str,
    /// What was measured.
    pub what: String,
    /// The figure; of several samples the median.
    pub value: f64,
    /// Its unit, empty for ratios and counts.
    pub unit: &'static str,
    /// 95 % confidence interval, where there are six samples or more: the interval of a median of fewer is their range, and covers less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<(f64, f64)>,
    /// Number of samples.
    pub samples: usize,
    /// What it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
    /// Whether it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
}

impl Row {
    /// A figure that was measured once.
    pub fn one(measurement: &'static str, what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Row { measurement, what: what.into(), value, unit, interval: None, samples: 1, goal: None, met: None }
    }

    /// The median of samples, with its interval when there are several.
    pub fn of(measurement: &'static str, what: impl Into<String>, samples: &[f64], unit: &'static str) -> Self {
        let Estimate { value, interval } = crate::stats::estimate(samples);
        let interval = (samples.len() > 1).then_some(interval);
        Row { interval, samples: samples.len(), ..Self::one(measurement, what, value, unit) }
    }

    /// The same with a goal.
    #[must_use]
    pub fn goal(mut self, goal: Goal) -> Self {
        self.goal = Some(goal);
        self.met = Some(goal.met_by(self.value));
        self
    }
}

/// The machine that everything ran on; figures belong to it.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Processors that the run could use.
    pub cpus: usize,
    /// What they are.
    pub model: String,
    /// Memory in MiB.
    pub memory_mib: u64,
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        let field = |file: &str, name: &str| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name)).map(str::to_owned);
            line.and_then(|line| line.split_once(':').map(|(_, value)| value.trim().to_owned())).unwrap_or_default()
        };
        let kib: u64 = field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
        Machine {
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            model: field("/proc/cpuinfo", "model name"),
            memory_mib: kib / 1024,
        }
    }
}

/// Everything of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The size that was asked for.
    pub size: String,
    /// When the run began, RFC 3339.
    pub began: String,
    /// Where.
    pub machine: Machine,
    /// Figures in the order of their measurement.
    pub rows: Vec<Row>,
}

impl Report {
    /// Writes it as JSON.
    pub fn write(&self, dir: &Path, name: &str) -> Result<()> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let file = dir.join(format!("{name}.json"));
        std::fs::write(&file, serde_json::to_string_pretty(self)? + "\n")?;
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cpus, model, memory_mib } = &self.machine;
        writeln!(f, "size {}, {cpus} CPUs ({model}), {memory_mib} MiB; everything runs on this machine\n", self.size)?;
        let cells: Vec<[String; 6]> = self.rows.iter().map(cells).collect();
        let head = ["measurement", "what", "value", "95 % interval, or range of < 6", "goal", "met"].map(str::to_owned);
        let all = || std::iter::once(&head).chain(&cells);
        let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; 6] = std::array::from_fn(width);
        for row in all() {
            let line: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            writeln!(f, "{}", line.join("  ").trim_end())?;
        }
        Ok(())
    }
}

fn cells(row: &Row) -> [String; 6] {
    let interval = row.interval.map(|(low, high)| format!("{} .. {} ({})", short(low), short(high), row.samples));
    [
        row.measurement.to_owned(),
        row.what.clone(),
        format!("{} {}", short(row.value), row.unit).trim_end().to_owned(),
        interval.unwrap_or_default(),
        row.goal.map(|goal| goal.to_string()).unwrap_or_default(),
        row.met.map(|met| if met { "yes" } else { "NO" }).unwrap_or_default().to_owned(),
    ]
}

/// Three digits say all that a measurement of this kind knows.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// Says on stderr how far a run is, with the time since its start.
pub struct Progress {
    began: Instant,
}

impl Default for Progress {
    fn default() -> Self {
        Self { began: Instant::now() }
    }
}

impl Progress {
    /// One line.
    pub fn say(&self, text: impl fmt::Display) {
        eprintln!("[{:6.1} s] {text}", self.began.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_say_whether_goals_are_met() {
        let row = |goal| Row::of("creation", "ratio", &[0.9, 1.0, 1.1], "").goal(goal).met;
        assert_eq!(row(Goal::AtLeast(0.95)), Some(true));
        assert_eq!(row(Goal::AtMost(0.95)), Some(false));
    }

    #[test]
    fn tables_line_up() {
        let rows = vec![Row::one("memory", "peak", 12.345, "MiB"), Row::of("wake", "p50", &[1.0, 2.0], "ms")];
        let report = Report { size: "quick".into(), began: String::new(), machine: Machine::here(), rows };
        let text = report.to_string();
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0].find("value"), lines[1].find("12.3 MiB"));
    }
}
