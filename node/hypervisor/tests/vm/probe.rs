//! The probe on this very host: whatever it has, the answer comes in time and says why.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::{Place, image, keeper, ms, skip};
use fabric_types::{Accelerator, HypervisorKind};
use node_hypervisor::{AccelChoice, HypervisorChoice, ProbeConfig, ProbeError, probe};

pub(crate) fn config(place: &Place, hypervisor: HypervisorChoice, accel: AccelChoice) -> ProbeConfig {
    let image = image().expect("looked for before");
    ProbeConfig { hypervisor, accel, image, cache_dir: place.path("cache"), run: place.path("run"), keeper: keeper() }
}

#[tokio::test]
async fn vm_probe_finds_a_driver_in_time_and_remembers_it() {
    let Some(image) = image() else { return skip("the probe", "there is no guest image") };
    let place = Place::new(image);
    let start = Instant::now();
    let probed = probe(config(&place, HypervisorChoice::Auto, AccelChoice::Auto)).await.expect("some driver works");
    println!("first probe {:.0} ms: {}", ms(start), probed.driver.isolation().reason);
    assert!(start.elapsed() < Duration::from_secs(30), "it took {:?}", start.elapsed());
    let reason = &probed.driver.isolation().reason;
    assert!(reason.starts_with("asked for auto with auto; cloud_hypervisor with kvm "), "{reason}");
    // The best that works, and no better than that: what comes after it was not even looked at.
    assert_eq!(probed.findings[0].hypervisor, HypervisorKind::CloudHypervisor);
    let (last, before) = probed.findings.split_last().expect("at least one");
    assert!(before.iter().all(|finding| !finding.works), "{before:?}");
    assert_eq!(last.hypervisor, probed.driver.fit().hypervisor);
    assert_eq!(probed.findings.last().map(|finding| finding.works), Some(true));

    // Only a trial writes it.
    let kept = || fs::metadata(place.path("cache").join("probe.json")).and_then(|about| about.modified()).ok();
    let (before, again) = (kept(), Instant::now());
    let second = probe(config(&place, HypervisorChoice::Auto, AccelChoice::Auto)).await.expect("it still works");
    println!("second probe {:.0} ms", ms(again));
    assert_eq!(kept(), before, "nothing was remembered");
    assert!(again.elapsed() < Duration::from_secs(30), "it took {:?}", again.elapsed());
    assert_eq!(second.driver.fit(), probed.driver.fit());
    assert_eq!(second.findings, probed.findings);
    assert!(
        !place.path("run").join("p").exists() && !place.path("cache").join("trial").exists(),
        "the trial left files"
    );
}

#[tokio::test]
async fn vm_probe_asked_for_kvm_never_gives_less() {
    let Some(image) = image() else { return skip("the probe", "there is no guest image") };
    let place = Place::new(image);
    match probe(config(&place, HypervisorChoice::Qemu, AccelChoice::Kvm)).await {
        Ok(probed) => assert_eq!(probed.driver.isolation().accelerator, Accelerator::Kvm),
        Err(ProbeError::NothingWorks { found, .. }) => {
            println!("{found}");
            assert!(found.starts_with("qemu with kvm "), "{found}");
        }
        Err(other) => panic!("another error: {other}"),
    }
}

#[tokio::test]
async fn vm_probe_asked_for_a_missing_monitor_says_so() {
    let Some(image) = image() else { return skip("the probe", "there is no guest image") };
    let place = Place::new(image);
    let config = config(&place, HypervisorChoice::CloudHypervisor, AccelChoice::Auto);
    match probe(config).await {
        Ok(probed) => assert_eq!(probed.driver.fit().hypervisor, HypervisorKind::CloudHypervisor),
        Err(error) => {
            let sentence = error.to_string();
            let start =
                "--hypervisor cloud_hypervisor --accel auto doesn't work on this host: cloud_hypervisor with kvm ";
            assert!(sentence.starts_with(start), "{sentence}");
        }
    }
}
