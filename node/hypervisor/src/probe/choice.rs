//! What may be tried for what was asked: pure functions.

use std::fmt;
use std::str::FromStr;

use fabric_types::{Accelerator, HypervisorKind};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Which monitor is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HypervisorChoice {
    /// The best that works.
    #[default]
    Auto,
    /// Cloud Hypervisor or nothing.
    CloudHypervisor,
    /// QEMU or nothing.
    Qemu,
}

/// Which accelerator is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccelChoice {
    /// The best that works.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// TCG.
    Tcg,
}

/// A word that is no choice.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{given}' is not one of {known}")]
pub struct ChoiceError {
    given: String,
    known: &'static str,
}

impl HypervisorChoice {
    /// The word in configuration and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::CloudHypervisor => HypervisorKind::CloudHypervisor.as_str(),
            Self::Qemu => HypervisorKind::Qemu.as_str(),
        }
    }
}

impl AccelChoice {
    /// The word in configuration and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kvm => Accelerator::Kvm.as_str(),
            Self::Tcg => Accelerator::Tcg.as_str(),
        }
    }
}

impl fmt::Display for HypervisorChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for AccelChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for HypervisorChoice {
    type Err = ChoiceError;
    fn from_str(text: &str) -> Result<Self, ChoiceError> {
        let all = [Self::Auto, Self::CloudHypervisor, Self::Qemu];
        let known = "auto, cloud_hypervisor, qemu";
        all.into_iter()
            .find(|choice| choice.as_str() == text)
            .ok_or_else(|| ChoiceError { given: text.to_owned(), known })
    }
}

impl FromStr for AccelChoice {
    type Err = ChoiceError;
    fn from_str(text: &str) -> Result<Self, ChoiceError> {
        let all = [Self::Auto, Self::Kvm, Self::Tcg];
        let known = "auto, kvm, tcg";
        all.into_iter()
            .find(|choice| choice.as_str() == text)
            .ok_or_else(|| ChoiceError { given: text.to_owned(), known })
    }
}

/// One thing to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) hypervisor: HypervisorKind,
    pub(super) accelerator: Accelerator,
}

/// What to try, the best first.
pub(super) fn candidates(hypervisor: HypervisorChoice, accel: AccelChoice) -> Result<Vec<Candidate>, &'static str> {
    let new = |hypervisor, accelerator| Candidate { hypervisor, accelerator };
    let cloud_hypervisor = new(HypervisorKind::CloudHypervisor, Accelerator::Kvm);
    let (kvm, tcg) = (new(HypervisorKind::Qemu, Accelerator::Kvm), new(HypervisorKind::Qemu, Accelerator::Tcg));
    Ok(match (hypervisor, accel) {
        (HypervisorChoice::Auto, AccelChoice::Auto) => vec![cloud_hypervisor, kvm, tcg],
        (HypervisorChoice::Auto, AccelChoice::Kvm) => vec![cloud_hypervisor, kvm],
        (HypervisorChoice::Qemu, AccelChoice::Auto) => vec![kvm, tcg],
        (HypervisorChoice::Qemu, AccelChoice::Kvm) => vec![kvm],
        (HypervisorChoice::Auto | HypervisorChoice::Qemu, AccelChoice::Tcg) => vec![tcg],
        (HypervisorChoice::CloudHypervisor, AccelChoice::Auto | AccelChoice::Kvm) => vec![cloud_hypervisor],
        (HypervisorChoice::CloudHypervisor, AccelChoice::Tcg) => return Err("Cloud Hypervisor needs KVM"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYPERVISORS: [HypervisorChoice; 3] =
        [HypervisorChoice::Auto, HypervisorChoice::CloudHypervisor, HypervisorChoice::Qemu];
    const ACCELS: [AccelChoice; 3] = [AccelChoice::Auto, AccelChoice::Kvm, AccelChoice::Tcg];

    #[test]
    fn nothing_weaker_than_asked_is_ever_tried() {
        for hypervisor in HYPERVISORS {
            for accel in ACCELS {
                for candidate in candidates(hypervisor, accel).unwrap_or_default() {
                    if hypervisor != HypervisorChoice::Auto {
                        assert_eq!(candidate.hypervisor.as_str(), hypervisor.as_str());
                    }
                    if accel != AccelChoice::Auto {
                        assert_eq!(candidate.accelerator.as_str(), accel.as_str());
                    }
                }
            }
        }
    }

    #[test]
    fn hardware_comes_before_translation() {
        let tried = candidates(HypervisorChoice::Auto, AccelChoice::Auto).expect("something");
        let accelerators: Vec<Accelerator> = tried.iter().map(|candidate| candidate.accelerator).collect();
        assert_eq!(accelerators, [Accelerator::Kvm, Accelerator::Kvm, Accelerator::Tcg]);
        assert!(candidates(HypervisorChoice::CloudHypervisor, AccelChoice::Tcg).is_err());
    }

    #[test]
    fn words_are_read_and_others_refused_with_the_known_ones() {
        for hypervisor in HYPERVISORS {
            assert_eq!(hypervisor.as_str().parse(), Ok(hypervisor));
        }
        for accel in ACCELS {
            assert_eq!(accel.as_str().parse(), Ok(accel));
        }
        let error = "xen".parse::<HypervisorChoice>().expect_err("refused").to_string();
        assert_eq!(error, "'xen' is not one of auto, cloud_hypervisor, qemu");
    }
}
