//! A table for the README, or one JSON object.

use serde::Serialize;

use crate::conditions::Conditions;
use crate::statistics::{Fact, Row};

/// What was measured, and under which conditions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Report {
    pub(crate) conditions: Conditions,
    pub(crate) rows: Vec<Row>,
    pub(crate) facts: Vec<Fact>,
    /// What couldn't be measured, and why.
    pub(crate) failed: Vec<String>,
}

impl Report {
    /// The report as Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text =
            String::from("| milliseconds, through the API | n | p50 | p95 | p99 | max |\n|---|--:|--:|--:|--:|--:|\n");
        for row in &self.rows {
            let Row { what, samples, p50_ms, p95_ms, p99_ms, max_ms } = row;
            text.push_str(&format!("| {what} | {samples} | {p50_ms:.1} | {p95_ms:.1} | {p99_ms:.1} | {max_ms:.1} |\n"));
        }
        if !self.facts.is_empty() {
            text.push_str("\n| goals | got | asked: at most | |\n|---|--:|--:|---|\n");
        }
        for fact in &self.facts {
            let (what, value) = (&fact.what, fact.value);
            let limit = fact.at_most.map_or_else(String::new, |limit| format!("{limit}"));
            let met = match fact.met() {
                Some(true) => "met",
                Some(false) => "not met",
                None => "",
            };
            text.push_str(&format!("| {what} | {value:.2} | {limit} | {met} |\n"));
        }
        text.push('\n');
        for (name, value) in self.conditions.lines() {
            text.push_str(&format!("- {name}: {value}\n"));
        }
        for what in &self.failed {
            text.push_str(&format!("- not measured: {what}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_row_and_condition_stands_in_the_table() {
        let conditions = Conditions {
            processor: "a processor".into(),
            cores: 2,
            memory_gib: 24,
            kernel: "6.1".into(),
            hypervisor: "qemu 7.2".into(),
            accelerator: "tcg".into(),
            isolation: "no /dev/kvm".into(),
            atoll: "0.1.0".into(),
            mesh: "3 nodes".into(),
            pool: 4,
        };
        let row = Row::of("create", vec![Duration::from_millis(41)]).expect("a sample");
        let text = Report {
            conditions,
            rows: vec![row],
            facts: vec![Fact::at_most("a ratio", 1.5, 1.0)],
            failed: vec!["density: no".to_owned()],
        }
        .markdown();
        assert!(text.contains("not measured: density: no"), "{text}");
        assert!(text.contains("| create | 1 | 41.0 | 41.0 | 41.0 | 41.0 |\n"), "{text}");
        assert!(text.contains("| a ratio | 1.50 | 1 | not met |\n"), "{text}");
        assert!(text.contains("a processor, 2 cores") && text.contains("tcg: no /dev/kvm"), "{text}");
    }
}
