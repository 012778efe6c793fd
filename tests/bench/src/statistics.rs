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
    pub(crate) fn of(what: &'static str, samples: Vec<Duration>) -> Option<Self> {
        let at = |percent: usize| percentile(&samples, percent).map(milliseconds);
        Some(Self { what, samples: samples.len(), p50_ms: at(50)?, p95_ms: at(95)?, p99_ms: at(99)?, max_ms: at(100)? })
    }
}

/// A number with what is asked of it, where something is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Fact {
    pub(crate) what: String,
    pub(crate) value: f64,
    /// At most this.
    pub(crate) at_most: Option<f64>,
}

impl Fact {
    /// A number that has to be small.
    pub(crate) fn at_most(what: impl Into<String>, value: f64, at_most: f64) -> Self {
        Self { what: what.into(), value, at_most: Some(at_most) }
    }

    /// A number alone.
    pub(crate) fn plain(what: impl Into<String>, value: f64) -> Self {
        Self { what: what.into(), value, at_most: None }
    }

    /// Whether it is as small as asked; none where nothing is.
    pub(crate) fn met(&self) -> Option<bool> {
        self.at_most.map(|limit| self.value <= limit)
    }
}

/// Two things measured in turns, one divided by the other.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub(crate) struct Ratio(pub(crate) Fact);

impl Ratio {
    /// The ratio of the medians. None where one was not measured.
    pub(crate) fn of(what: &str, above: &[Duration], below: &[Duration], at_most: f64) -> Option<Self> {
        Self::at(what, above, below, 50, at_most)
    }

    /// The ratio of the 99th percentiles.
    pub(crate) fn of_p99(what: &str, above: &[Duration], below: &[Duration], at_most: f64) -> Option<Self> {
        Self::at(what, above, below, 99, at_most)
    }

    fn at(what: &str, above: &[Duration], below: &[Duration], percent: usize, at_most: f64) -> Option<Self> {
        let (above, below) = (percentile(above, percent)?, percentile(below, percent)?);
        let value = above.as_secs_f64() / below.as_secs_f64();
        Some(Self(Fact::at_most(what, (value * 100.0).round() / 100.0, at_most)))
    }
}

/// The sample at a percentile, by nearest rank.
fn percentile(samples: &[Duration], percent: usize) -> Option<Duration> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
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

    #[test]
    fn a_ratio_is_of_medians_and_says_whether_it_is_small_enough() {
        let above = [4, 6, 5].map(Duration::from_millis);
        let below = [10, 1000, 9].map(Duration::from_millis);
        let ratio = Ratio::of("x", &above, &below, 0.5).expect("both measured");
        assert_eq!((ratio.0.value, ratio.0.met()), (0.5, Some(true)));
        assert_eq!(Ratio::of("x", &above, &below, 0.4).expect("both measured").0.met(), Some(false));
        assert!(Ratio::of("x", &above, &[], 1.0).is_none());
        assert_eq!(Fact::plain("x", 9.0).met(), None);
    }
}
