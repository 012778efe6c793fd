//! Percentiles of a few samples.

use std::time::Duration;

use serde::Serialize;

/// What was measured, with its percentiles in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    pub(crate) what: &'static str,
    pub(crate) samples: usize,
    pub(crate) p50_ms: f64,
    pub(crate) p95_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
}

impl Row {
    /// Percentiles by nearest rank: each is a sample that was measured. None without a sample.
    pub(crate) fn of(what: &'static str, mut samples: Vec<Duration>) -> Option<Self> {
        samples.sort_unstable();
        let last = *samples.last()?;
        let at = |percent: usize| {
            let rank = (samples.len() * percent).div_ceil(100).max(1);
            milliseconds(samples[rank - 1])
        };
        Some(Self {
            what,
            samples: samples.len(),
            p50_ms: at(50),
            p95_ms: at(95),
            p99_ms: at(99),
            max_ms: milliseconds(last),
        })
    }
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let samples = (1..=100).rev().map(Duration::from_millis).collect();
        let row = Row::of("x", samples).expect("samples");
        assert_eq!((row.p50_ms, row.p95_ms, row.p99_ms, row.max_ms), (50.0, 95.0, 99.0, 100.0));
        let one = Row::of("x", vec![Duration::from_micros(1250)]).expect("a sample");
        assert_eq!((one.p50_ms, one.p99_ms, one.samples), (1.3, 1.3, 1));
        assert!(Row::of("x", Vec::new()).is_none());
    }
}
