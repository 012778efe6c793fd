//! A report's form on the wire: which keys hold it, how they are signed, what is checked before it is believed.
//!
//! ```text
//! cert    the node's certificate, base64
//! about   what changes at most with a restart: addresses, limits, fit, isolation, version
//! load    what changes all the time: reservations, pools, leadership
//! ```
//! Two signed values and not one, so that what changes often stays small; each is rewritten only when it changes. A
//! signed value is `base64(signature).JSON`, and the signature covers the JSON's bytes as they are.

use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fabric_quic::{NodeCertificate, NodeIdentity, Trust};
use fabric_types::{Capacity, Fit, HypervisorKind, Isolation, NodeId, NodeLimits, RegionCode, UnixMillis};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{NodeReport, PoolReport};

pub(crate) const CERT: &str = "cert";
pub(crate) const ABOUT: &str = "about";
pub(crate) const LOAD: &str = "load";

/// The version of the values' form.
const SCHEMA: u32 = 1;
const ABOUT_PURPOSE: &str = "atoll gossip about 1";
const LOAD_PURPOSE: &str = "atoll gossip load 1";
/// Longest value, in bytes: a message of 64 KiB must hold several nodes' values.
pub(crate) const VALUE_BYTES_MAX: usize = 12 * 1024;
/// Pools that are told of: 64 of them take 8 KiB. A node that keeps more tells of the largest.
pub(crate) const POOLS_MAX: usize = 64;

/// The values of one node as chitchat holds them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Values {
    pub(crate) cert: String,
    pub(crate) about: String,
    pub(crate) load: String,
}

/// Whose values they are said to be: what chitchat, which nobody signs, claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim<'member> {
    pub(crate) node: &'member NodeId,
    pub(crate) incarnation: u64,
    pub(crate) address: SocketAddr,
}

/// A report whose signatures hold, with the times at which its two parts were signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verified {
    pub(crate) report: NodeReport,
    pub(crate) at: (UnixMillis, UnixMillis),
}

/// Why values are not believed.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum Distrust {
    #[error("its {0} is over {VALUE_BYTES_MAX} bytes")]
    TooLarge(&'static str),
    #[error("its certificate can't be used: {0}")]
    Certificate(String),
    #[error("its certificate is that of {0}")]
    OtherCertificate(NodeId),
    #[error("its {0} is not signed with its key")]
    Signature(&'static str),
    #[error("its {what} is malformed: {cause}")]
    Malformed { what: &'static str, cause: String },
    #[error(
        "its {what} has schema {schema}, and this version of Atoll knows {SCHEMA} only; upgrade the older of the two"
    )]
    Schema { what: &'static str, schema: u32 },
    #[error("its {0} was signed for another node or another start of its process")]
    Replayed(&'static str),
    #[error("it gossips from {claimed} but signed for {signed}")]
    Address { claimed: SocketAddr, signed: SocketAddr },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<T> {
    schema: u32,
    node: NodeId,
    incarnation: u64,
    at: UnixMillis,
    body: T,
}

/// Read before the rest, so that a newer form is named and not called malformed.
#[derive(Deserialize)]
struct SchemaOnly {
    schema: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct About {
    region: RegionCode,
    fabric_address: SocketAddr,
    http_endpoint: String,
    limits: NodeLimits,
    fit: Fit,
    isolation: Isolation,
    hypervisor: HypervisorKind,
    version: String,
    protocols: Vec<String>,
    started_at: UnixMillis,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Load {
    reserved: Capacity,
    free: Capacity,
    sandboxes: u32,
    pools: Vec<PoolReport>,
    leads: Vec<String>,
    votes: Vec<String>,
    draining: bool,
}

impl About {
    pub(crate) fn of(report: &NodeReport) -> Self {
        Self {
            region: report.region.clone(),
            fabric_address: report.fabric_address,
            http_endpoint: report.http_endpoint.clone(),
            limits: report.limits,
            fit: report.fit.clone(),
            isolation: report.isolation.clone(),
            hypervisor: report.hypervisor,
            version: report.version.clone(),
            protocols: report.protocols.clone(),
            started_at: report.started_at,
        }
    }
}

impl Load {
    pub(crate) fn of(report: &NodeReport) -> Self {
        let mut pools = report.pools.clone();
        if pools.len() > POOLS_MAX {
            pools.sort_by(|a, b| (b.warm, b.target, &a.template).cmp(&(a.warm, a.target, &b.template)));
            pools.truncate(POOLS_MAX);
        }
        Self {
            reserved: report.reserved,
            free: report.free(),
            sandboxes: report.sandboxes,
            pools,
            leads: report.leads.clone(),
            votes: report.votes.clone(),
            draining: report.draining,
        }
    }
}

fn join(node: NodeId, about: About, load: Load) -> NodeReport {
    NodeReport {
        node,
        region: about.region,
        fabric_address: about.fabric_address,
        http_endpoint: about.http_endpoint,
        limits: about.limits,
        reserved: load.reserved,
        sandboxes: load.sandboxes,
        pools: load.pools,
        fit: about.fit,
        isolation: about.isolation,
        hypervisor: about.hypervisor,
        version: about.version,
        protocols: about.protocols,
        leads: load.leads,
        votes: load.votes,
        draining: load.draining,
        started_at: about.started_at,
    }
}

/// The value of [`CERT`].
pub(crate) fn cert_value(identity: &NodeIdentity) -> String {
    STANDARD.encode(identity.certificate_der())
}

/// The value of [`ABOUT`].
pub(crate) fn about_value(identity: &NodeIdentity, incarnation: u64, at: UnixMillis, about: About) -> String {
    sign(identity, ABOUT_PURPOSE, incarnation, at, about)
}

/// The value of [`LOAD`].
pub(crate) fn load_value(identity: &NodeIdentity, incarnation: u64, at: UnixMillis, load: Load) -> String {
    sign(identity, LOAD_PURPOSE, incarnation, at, load)
}

fn sign<T: Serialize>(identity: &NodeIdentity, purpose: &str, incarnation: u64, at: UnixMillis, body: T) -> String {
    let envelope = Envelope { schema: SCHEMA, node: identity.node().clone(), incarnation, at, body };
    let json = serde_json::to_string(&envelope).expect("these types hold no map with keys that are no text");
    let signature = STANDARD.encode(identity.sign(purpose, json.as_bytes()));
    format!("{signature}.{json}")
}

/// Checks a node's certificate as it travels in [`CERT`].
pub(crate) fn verify_cert(
    trust: &Trust,
    claim: &Claim<'_>,
    cert: &str,
    now: UnixMillis,
) -> Result<NodeCertificate, Distrust> {
    if cert.len() > VALUE_BYTES_MAX {
        return Err(Distrust::TooLarge(CERT));
    }
    let der = STANDARD.decode(cert).map_err(|error| Distrust::Certificate(error.to_string()))?;
    let proof = trust.verify(&der, now).map_err(|error| Distrust::Certificate(error.to_string()))?;
    if proof.node() != claim.node {
        return Err(Distrust::OtherCertificate(proof.node().clone()));
    }
    Ok(proof)
}

/// Checks the two signed values against a certificate and against what chitchat claims.
pub(crate) fn verify(proof: &NodeCertificate, claim: &Claim<'_>, values: &Values) -> Result<Verified, Distrust> {
    let about: Envelope<About> = open(proof, claim, ABOUT, ABOUT_PURPOSE, &values.about)?;
    let load: Envelope<Load> = open(proof, claim, LOAD, LOAD_PURPOSE, &values.load)?;
    let signed = about.body.fabric_address;
    if signed != claim.address {
        return Err(Distrust::Address { claimed: claim.address, signed });
    }
    if about.body.region != claim.node.region() {
        let cause = format!("{} is no node of {}", claim.node, about.body.region);
        return Err(Distrust::Malformed { what: ABOUT, cause });
    }
    Ok(Verified { at: (about.at, load.at), report: join(claim.node.clone(), about.body, load.body) })
}

fn open<T: DeserializeOwned>(
    proof: &NodeCertificate,
    claim: &Claim<'_>,
    what: &'static str,
    purpose: &str,
    value: &str,
) -> Result<Envelope<T>, Distrust> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(Distrust::TooLarge(what));
    }
    let (signature, json) = value.split_once('.').ok_or(Distrust::Signature(what))?;
    let signature = STANDARD.decode(signature).map_err(|_| Distrust::Signature(what))?;
    proof.verify(purpose, json.as_bytes(), &signature).map_err(|_| Distrust::Signature(what))?;
    let malformed = |error: serde_json::Error| Distrust::Malformed { what, cause: error.to_string() };
    let SchemaOnly { schema } = serde_json::from_str(json).map_err(malformed)?;
    if schema != SCHEMA {
        return Err(Distrust::Schema { what, schema });
    }
    let envelope: Envelope<T> = serde_json::from_str(json).map_err(malformed)?;
    if envelope.node != *claim.node || envelope.incarnation != claim.incarnation {
        return Err(Distrust::Replayed(what));
    }
    Ok(envelope)
}

#[cfg(test)]
pub(crate) mod tests {
    use fabric_quic::Authority;
    use fabric_types::{Accelerator, GuestNetwork, Overcommit, Shape};

    use super::*;

    pub(crate) const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    pub(crate) fn node(id: &str) -> NodeId {
        id.parse().expect("a node id")
    }

    pub(crate) fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    pub(crate) fn report(id: &str, fabric_address: SocketAddr) -> NodeReport {
        let hypervisor = HypervisorKind::Qemu;
        let accelerator = Accelerator::Tcg;
        NodeReport {
            node: node(id),
            region: node(id).region(),
            fabric_address,
            http_endpoint: "http://127.0.0.1:7080".into(),
            limits: NodeLimits {
                physical: Capacity { vcpus: 2, memory_mib: 8192, disk_gib: 50 },
                overcommit: Overcommit::default(),
                sandboxes: None,
            },
            reserved: Capacity { vcpus: 1, memory_mib: 1024, disk_gib: 3 },
            sandboxes: 1,
            pools: vec![PoolReport {
                template: "default".parse().expect("a name"),
                shape: Shape::DEFAULT,
                warm: 3,
                target: 4,
            }],
            fit: Fit {
                hypervisor,
                version: "7.2".into(),
                machine: "pc-q35-7.2".into(),
                accelerator,
                cpu_model: "max".into(),
                cpu_features: Vec::new(),
            },
            isolation: Isolation {
                hypervisor,
                accelerator,
                reason: "asked for".into(),
                guest_address_randomization: false,
                network: GuestNetwork::None,
                seal: fabric_types::Seal::default(),
            },
            hypervisor,
            version: "0.1.0".into(),
            protocols: vec!["atoll-gossip/1".into()],
            leads: vec!["placement-fra".into()],
            votes: vec!["placement-fra".into(), "catalog".into()],
            draining: false,
            started_at: NOW,
        }
    }

    pub(crate) fn values(identity: &NodeIdentity, incarnation: u64, at: u64, report: &NodeReport) -> Values {
        Values {
            cert: cert_value(identity),
            about: about_value(identity, incarnation, UnixMillis(at), About::of(report)),
            load: load_value(identity, incarnation, UnixMillis(at), Load::of(report)),
        }
    }

    pub(crate) fn issue(mesh: &Authority, id: &str) -> NodeIdentity {
        mesh.issue(&node(id), UnixMillis(4_000_000_000_000)).expect("an identity")
    }

    fn check(trust: &Trust, claim: &Claim<'_>, values: &Values) -> Result<Verified, Distrust> {
        verify(&verify_cert(trust, claim, &values.cert, NOW)?, claim, values)
    }

    #[test]
    fn a_signed_report_reads_back_whole() {
        let mesh = Authority::generate().expect("an authority");
        let fra = issue(&mesh, "fra-1");
        let report = report("fra-1", address(8080));
        let claim = Claim { node: &node("fra-1"), incarnation: 7, address: address(8080) };
        let found = check(fra.trust(), &claim, &values(&fra, 7, 1, &report)).expect("verified");
        assert_eq!(found, Verified { report, at: (UnixMillis(1), UnixMillis(1)) });
    }

    #[test]
    fn what_another_could_have_written_is_not_believed() {
        let (mesh, other) = (Authority::generate().expect("an authority"), Authority::generate().expect("another"));
        let (fra, iad, foreign) = (issue(&mesh, "fra-1"), issue(&mesh, "iad-1"), issue(&other, "fra-1"));
        let id = node("fra-1");
        let claim = Claim { node: &id, incarnation: 7, address: address(8080) };
        let honest = values(&fra, 7, 1, &report("fra-1", address(8080)));
        let distrust =
            |values: &Values, claim: &Claim<'_>| check(fra.trust(), claim, values).expect_err("not believed");

        let by_iad = values(&iad, 7, 1, &report("fra-1", address(8080)));
        assert_eq!(distrust(&by_iad, &claim), Distrust::OtherCertificate(node("iad-1")));
        let mixed = Values { load: by_iad.load.clone(), ..honest.clone() };
        assert_eq!(distrust(&mixed, &claim), Distrust::Signature(LOAD));
        let swapped = Values { about: honest.load.clone(), load: honest.about.clone(), ..honest.clone() };
        assert_eq!(distrust(&swapped, &claim), Distrust::Signature(ABOUT));
        let foreign = values(&foreign, 7, 1, &report("fra-1", address(8080)));
        assert!(matches!(distrust(&foreign, &claim), Distrust::Certificate(_)));
        let unsigned = Values { load: honest.load.split_once('.').expect("two parts").1.to_owned(), ..honest.clone() };
        assert_eq!(distrust(&unsigned, &claim), Distrust::Signature(LOAD));
        let changed = Values { load: honest.load.replace("\"draining\":false", "\"draining\":true"), ..honest.clone() };
        assert_eq!(distrust(&changed, &claim), Distrust::Signature(LOAD));
        let later = Claim { incarnation: 8, ..claim.clone() };
        assert_eq!(distrust(&honest, &later), Distrust::Replayed(ABOUT));
        let elsewhere = Claim { address: address(9999), ..claim.clone() };
        assert!(matches!(distrust(&honest, &elsewhere), Distrust::Address { .. }));
        let huge = Values { about: "x".repeat(VALUE_BYTES_MAX + 1), ..honest };
        assert_eq!(distrust(&huge, &claim), Distrust::TooLarge(ABOUT));
    }

    #[test]
    fn a_newer_schema_is_refused_with_a_sentence() {
        let mesh = Authority::generate().expect("an authority");
        let fra = issue(&mesh, "fra-1");
        let id = node("fra-1");
        let claim = Claim { node: &id, incarnation: 7, address: address(8080) };
        let json = r#"{"schema":2,"something":"new"}"#;
        let about = format!("{}.{json}", STANDARD.encode(fra.sign(ABOUT_PURPOSE, json.as_bytes())));
        let values = Values { about, ..values(&fra, 7, 1, &report("fra-1", address(8080))) };
        assert_eq!(
            check(fra.trust(), &claim, &values).expect_err("newer").to_string(),
            "its about has schema 2, and this version of Atoll knows 1 only; upgrade the older of the two"
        );
    }

    /// A golden file: the bytes of version 1 must stay readable, and stay what is written.
    #[test]
    fn the_values_of_version_1_are_frozen() {
        let report = report("fra-1", address(8080));
        let about = serde_json::to_string(&About::of(&report)).expect("writes");
        let load = serde_json::to_string(&Load::of(&report)).expect("writes");
        assert_eq!(about, include_str!("../golden/about.1.json").trim_end());
        assert_eq!(load, include_str!("../golden/load.1.json").trim_end());
        assert_eq!(serde_json::from_str::<About>(&about).expect("reads"), About::of(&report));
        assert_eq!(serde_json::from_str::<Load>(&load).expect("reads"), Load::of(&report));
    }

    #[test]
    fn many_pools_and_long_texts_still_fit_a_value() {
        let mesh = Authority::generate().expect("an authority");
        let mut report = report("fra-1", address(8080));
        let pool = |number: u32| PoolReport {
            template: format!("{number:0>63}").parse().expect("a name"),
            shape: Shape::DEFAULT,
            warm: number,
            target: 1000,
        };
        report.pools = (0..500).map(pool).collect();
        let load = Load::of(&report);
        assert_eq!(load.pools.len(), POOLS_MAX);
        assert!(load.pools.iter().all(|pool| pool.warm >= 436), "the largest are kept");
        let value = load_value(&issue(&mesh, "fra-1"), u64::MAX, NOW, load);
        assert!(value.len() <= VALUE_BYTES_MAX, "{}", value.len());
    }
}
