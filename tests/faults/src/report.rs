//! What a run found, as a table and as JSON.

use std::fmt;

use serde::Serialize;

/// Something that must not be.
#[derive(Clone, Debug, Serialize)]
pub struct Violation {
    /// What was done.
    pub case: String,
    /// What came of it.
    pub what: String,
}

/// What was found of one workflow.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Its name.
    pub workflow: String,
    /// Writes of undisturbed runs.
    pub boundaries: usize,
    /// Which they are.
    pub writes: Vec<String>,
    /// Cases that were run.
    pub trials: usize,
    /// Those in which every fault met its request.
    pub met: usize,
    /// Those in which one did not.
    pub unmet: Vec<String>,
    /// Cases for which no time was left.
    pub left_out: usize,
    /// No time was left for the workflow. How many cases it has may not be known then.
    pub not_begun: bool,
    /// Cases that were not among the sample.
    pub not_chosen: usize,
    /// Violations.
    pub violations: Vec<Violation>,
    /// How long all of it took.
    pub seconds: f64,
    /// How long one case took, its preparation apart.
    pub seconds_each: f64,
}

impl Row {
    /// Nothing found yet.
    pub fn new(workflow: &str, boundaries: usize) -> Self {
        Self { workflow: workflow.to_owned(), boundaries, ..Self::default() }
    }

    /// How much of that time each case took.
    pub fn each(&self, seconds: f64) -> f64 {
        seconds / f64::from(u32::try_from(self.trials.max(1)).unwrap_or(u32::MAX))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { workflow, boundaries, trials, met, violations, seconds, seconds_each, .. } = self;
        let violations = violations.len();
        write!(
            f,
            "{workflow:<18} {boundaries:>10} {trials:>7} {met:>7} {violations:>11} {seconds:>9.1} {seconds_each:>9.2}"
        )
    }
}

/// The table of rows with its head and its sums.
pub fn table(title: &str, rows: &[Row]) -> String {
    let sum = |count: fn(&Row) -> usize| rows.iter().map(count).sum::<usize>();
    let mut lines = vec![
        title.to_owned(),
        format!(
            "{:<18} {:>10} {:>7} {:>7} {:>11} {:>9} {:>9}",
            "workflow", "boundaries", "trials", "met", "violations", "seconds", "s/trial"
        ),
    ];
    lines.extend(rows.iter().map(ToString::to_string));
    lines.push(format!(
        "{:<18} {:>10} {:>7} {:>7} {:>11}",
        "all",
        sum(|row| row.boundaries),
        sum(|row| row.trials),
        sum(|row| row.met),
        sum(|row| row.violations.len()),
    ));
    let not_chosen = sum(|row| row.not_chosen);
    if not_chosen > 0 {
        lines.push(format!("a sample: {not_chosen} cases were not chosen"));
    }
    let left_out = sum(|row| row.left_out);
    if left_out > 0 {
        let names: Vec<&str> = rows.iter().filter(|row| row.left_out > 0).map(|row| row.workflow.as_str()).collect();
        lines.push(format!("out of time: {left_out} cases were left out, of {}", names.join(", ")));
    }
    let unknown: Vec<&str> =
        rows.iter().filter(|row| row.not_begun && row.left_out == 0).map(|row| &*row.workflow).collect();
    if !unknown.is_empty() {
        lines.push(format!("out of time: not begun, with an unknown number of cases: {}", unknown.join(", ")));
    }
    for row in rows {
        let unmet = row.unmet.iter().map(|unmet| format!("not met: {}: {unmet}", row.workflow));
        let violations = row.violations.iter();
        let violations =
            violations.map(|Violation { case, what }| format!("VIOLATION: {}: {case}: {what}", row.workflow));
        lines.extend(unmet.chain(violations));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_tried_and_what_was_found_is_told() {
        let violation = Violation { case: "killed".to_owned(), what: "gone".to_owned() };
        let row = Row { left_out: 3, violations: vec![violation], ..Row::new("wake", 7) };
        let text = table("title", &[row]);
        assert!(text.contains("out of time: 3 cases were left out, of wake"), "{text}");
        assert!(text.contains("VIOLATION: wake: killed: gone"), "{text}");
        let row = Row { not_begun: true, ..Row::new("sleep", 0) };
        assert!(table("title", &[row]).contains("with an unknown number of cases: sleep"));
    }
}
