//! Which region is nearest. Pure: the measured round trips come in from outside.

use std::cmp::Ordering;
use std::time::Duration;

use fabric_types::RegionCode;

use crate::{Location, RegionDescriptor};

/// The earth's mean radius (IUGG).
const EARTH_RADIUS_KM: f64 = 6371.0;

/// The great-circle distance between two places, kilometres.
pub fn distance_km(a: Location, b: Location) -> f64 {
    let (lat_a, lat_b) = (a.latitude_deg().to_radians(), b.latitude_deg().to_radians());
    let half_lat = (lat_b - lat_a) / 2.0;
    let half_lon = (b.longitude_deg() - a.longitude_deg()).to_radians() / 2.0;
    let haversine = half_lat.sin().powi(2) + lat_a.cos() * lat_b.cos() * half_lon.sin().powi(2);
    // Rounding can carry antipodes over 1, where the arc sine ends.
    2.0 * EARTH_RADIUS_KM * haversine.sqrt().min(1.0).asin()
}

/// Regions from the nearest to the farthest. The region itself is nearest to itself; then come those to which a round
/// trip has been measured, the shortest first: they were reached lately. Then those of known place, by distance; then the
/// rest. Ties go by code, so that all who rank by the same facts agree.
pub fn rank<'region>(
    from: &RegionDescriptor,
    candidates: impl IntoIterator<Item = &'region RegionDescriptor>,
    rtt: impl Fn(&RegionCode) -> Option<Duration>,
) -> Vec<&'region RegionDescriptor> {
    let mut ranked: Vec<(Nearness, &RegionDescriptor)> =
        candidates.into_iter().map(|region| (Nearness::of(from, region, &rtt), region)).collect();
    ranked.sort_by(|(a, one), (b, other)| a.cmp(b).then_with(|| one.code.cmp(&other.code)));
    ranked.into_iter().map(|(_, region)| region).collect()
}

/// The first of [`rank`]; `None` if there are no candidates.
pub fn nearest<'region>(
    from: &RegionDescriptor,
    candidates: impl IntoIterator<Item = &'region RegionDescriptor>,
    rtt: impl Fn(&RegionCode) -> Option<Duration>,
) -> Option<&'region RegionDescriptor> {
    rank(from, candidates, rtt).into_iter().next()
}

/// What is known of how near a region is, the best first.
enum Nearness {
    Same,
    Measured(Duration),
    Distance(f64),
    Unknown,
}

impl Nearness {
    fn of(from: &RegionDescriptor, to: &RegionDescriptor, rtt: impl Fn(&RegionCode) -> Option<Duration>) -> Self {
        if from.code == to.code {
            return Self::Same;
        }
        match (rtt(&to.code), from.location, to.location) {
            (Some(rtt), _, _) => Self::Measured(rtt),
            (None, Some(here), Some(there)) => Self::Distance(distance_km(here, there)),
            (None, _, _) => Self::Unknown,
        }
    }

    fn class(&self) -> u8 {
        match self {
            Self::Same => 0,
            Self::Measured(_) => 1,
            Self::Distance(_) => 2,
            Self::Unknown => 3,
        }
    }

    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Measured(a), Self::Measured(b)) => a.cmp(b),
            (Self::Distance(a), Self::Distance(b)) => a.total_cmp(b),
            _ => self.class().cmp(&other.class()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{builtin, builtins};

    fn code(text: &str) -> RegionCode {
        text.parse().expect("a code")
    }

    fn region(text: &str) -> &'static RegionDescriptor {
        builtin(&code(text)).expect("built in")
    }

    fn codes(ranked: &[&RegionDescriptor]) -> Vec<String> {
        ranked.iter().map(|region| region.code.to_string()).collect()
    }

    #[test]
    fn distances_are_those_of_the_atlas() {
        let place = |text| region(text).location.expect("a place");
        for (a, b, km) in [("fra", "iad", 6_550.0), ("fra", "sin", 10_270.0), ("iad", "sin", 15_560.0)] {
            let found = distance_km(place(a), place(b));
            assert!((found - km).abs() < 0.02 * km, "{a}-{b}: {found}");
            assert!((found - distance_km(place(b), place(a))).abs() < 1e-6);
        }
        let (north, south) = (Location::new(90.0, 0.0).expect("a pole"), Location::new(-90.0, 77.0).expect("a pole"));
        assert!((distance_km(north, south) - EARTH_RADIUS_KM * std::f64::consts::PI).abs() < 1.0);
        assert!(distance_km(north, north) < 1e-6);
    }

    #[test]
    fn without_measurements_the_distance_decides() {
        assert_eq!(codes(&rank(region("fra"), builtins().values(), |_| None)), ["fra", "iad", "sin"]);
        assert_eq!(codes(&rank(region("sin"), builtins().values(), |_| None)), ["sin", "fra", "iad"]);
        let others = builtins().values().filter(|other| other.code != code("iad"));
        assert_eq!(nearest(region("iad"), others, |_| None), Some(region("fra")));
        assert_eq!(nearest(region("iad"), [], |_| None), None);
    }

    #[test]
    fn a_measured_round_trip_outweighs_any_distance() {
        let only_sin = |to: &RegionCode| (*to == code("sin")).then_some(Duration::from_millis(250));
        assert_eq!(codes(&rank(region("fra"), builtins().values(), only_sin)), ["fra", "sin", "iad"]);
        let both = |to: &RegionCode| Some(Duration::from_millis(if *to == code("sin") { 90 } else { 150 }));
        assert_eq!(codes(&rank(region("fra"), builtins().values(), both)), ["fra", "sin", "iad"]);
    }

    #[test]
    fn regions_of_unknown_place_come_last_and_ties_go_by_code() {
        let unknown = [RegionDescriptor::unknown(code("zzz")), RegionDescriptor::unknown(code("aaa"))];
        let all = unknown.iter().chain(builtins().values());
        assert_eq!(codes(&rank(region("fra"), all, |_| None)), ["fra", "iad", "sin", "aaa", "zzz"]);
        let from_nowhere = rank(&unknown[0], builtins().values(), |_| None);
        assert_eq!(codes(&from_nowhere), ["fra", "iad", "sin"]);
        let same = |_: &RegionCode| Some(Duration::from_millis(1));
        assert_eq!(codes(&rank(&unknown[0], builtins().values(), same)), ["fra", "iad", "sin"]);
    }
}
