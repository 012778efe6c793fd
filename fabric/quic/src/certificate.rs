//! Whom this node trusts: certificates of the mesh's authority, each parsed once into a [`NodeCertificate`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fabric_types::{NodeId, UnixMillis};
use ring::signature::{ED25519, UnparsedPublicKey};
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use thiserror::Error;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::OID_SIG_ED25519;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::FabricError;

/// What follows the node's id in the DNS name of its certificate. The name is looked up nowhere.
pub(crate) const NAME_SUFFIX: &str = ".node.atoll";
/// A node's certificate is about 400 bytes; this leaves room for longer ids and keys to come.
const CERTIFICATE_BYTES_MAX: usize = 4096;

/// The mesh's authority as its members know it: its certificate, without its key.
#[derive(Clone)]
pub struct Trust {
    roots: Arc<RootCertStore>,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").finish_non_exhaustive()
    }
}

/// A certificate that the mesh's authority has issued: a value of this type is the proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCertificate {
    node: NodeId,
    public_key: Vec<u8>,
}

/// A signature that the named node did not make over this message.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the signature is not by {node} over this message")]
pub struct SignatureError {
    /// Who should have signed.
    pub node: NodeId,
}

impl Trust {
    /// Trust in one authority, from its certificate.
    pub(crate) fn from_ca_pem(ca_pem: &str) -> Result<Self, FabricError> {
        let refused = |cause: String| FabricError::Certificate { path: "the authority's certificate".into(), cause };
        let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|error| refused(error.to_string()))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca).map_err(|error| refused(error.to_string()))?;
        Ok(Self { roots: Arc::new(roots) })
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }

    /// Checks that the authority issued a certificate (DER) to a node and that it is valid at `now`.
    pub fn verify(&self, certificate: &[u8], now: UnixMillis) -> Result<NodeCertificate, FabricError> {
        let refused = |cause: String| FabricError::Certificate { path: "a node's certificate".into(), cause };
        if certificate.len() > CERTIFICATE_BYTES_MAX {
            return Err(refused(format!("{} bytes are over the limit of {CERTIFICATE_BYTES_MAX}", certificate.len())));
        }
        let der = CertificateDer::from(certificate);
        let parsed = ParsedCertificate::try_from(&der).map_err(|error| refused(error.to_string()))?;
        let now = UnixTime::since_unix_epoch(Duration::from_millis(now.0));
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, &[], now, algorithms.all)
            .map_err(|error| refused(error.to_string()))?;
        NodeCertificate::from_der(certificate).map_err(refused)
    }
}

impl NodeCertificate {
    /// Reads id and key out of a certificate whose chain has been verified already, here or in the handshake.
    pub(crate) fn from_der(certificate: &[u8]) -> Result<Self, String> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
        let names = parsed
            .subject_alternative_name()
            .map_err(|error| error.to_string())?
            .ok_or("it names no node: it has no subject alternative name")?;
        let [GeneralName::DNSName(name)] = names.value.general_names[..] else {
            return Err("it must hold exactly one name".into());
        };
        let id = name.strip_suffix(NAME_SUFFIX).ok_or_else(|| format!("'{name}' is no name of a node"))?;
        let node = id.parse::<NodeId>().map_err(|error| error.to_string())?;
        let key = parsed.public_key();
        if key.algorithm.algorithm != OID_SIG_ED25519 {
            return Err("its key is not Ed25519".into());
        }
        Ok(Self { node, public_key: key.subject_public_key.data.to_vec() })
    }

    /// Whose certificate it is.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// Checks a signature made by [`NodeIdentity::sign`](crate::NodeIdentity::sign) with the same purpose.
    pub fn verify(&self, purpose: &str, message: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
        UnparsedPublicKey::new(&ED25519, &self.public_key)
            .verify(&signed_bytes(purpose, message), signature)
            .map_err(|_| SignatureError { node: self.node.clone() })
    }
}

/// What is signed: the purpose, a zero byte, the message. A signature for one purpose is none for another.
pub(crate) fn signed_bytes(purpose: &str, message: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(purpose.len() + 1 + message.len());
    bytes.extend_from_slice(purpose.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(message);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Authority;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
    const LATER: UnixMillis = UnixMillis(1_900_000_000_000);

    fn node(text: &str) -> NodeId {
        text.parse().expect("a node id")
    }

    #[test]
    fn a_certificate_of_the_mesh_proves_its_node_and_one_of_another_mesh_nothing() {
        let mesh = Authority::generate().expect("an authority");
        let other = Authority::generate().expect("another");
        let fra = mesh.issue(&node("fra-1"), LATER).expect("an identity");
        let proof = fra.trust().verify(fra.certificate_der(), NOW).expect("our own");
        assert_eq!(proof.node(), &node("fra-1"));
        let foreign = other.issue(&node("fra-1"), LATER).expect("an identity");
        let error = fra.trust().verify(foreign.certificate_der(), NOW).expect_err("foreign");
        assert!(error.to_string().starts_with("can't use a node's certificate"), "{error}");
    }

    #[test]
    fn an_expired_certificate_is_refused() {
        let mesh = Authority::generate().expect("an authority");
        let fra = mesh.issue(&node("fra-1"), NOW).expect("an identity");
        assert!(fra.trust().verify(fra.certificate_der(), UnixMillis(NOW.0 - 1_000)).is_ok());
        assert!(fra.trust().verify(fra.certificate_der(), UnixMillis(NOW.0 + 1_000)).is_err());
    }

    #[test]
    fn a_signature_holds_for_its_purpose_message_and_node_only() {
        let mesh = Authority::generate().expect("an authority");
        let (fra, iad) = (
            mesh.issue(&node("fra-1"), LATER).expect("an identity"),
            mesh.issue(&node("iad-1"), LATER).expect("an identity"),
        );
        let proof = |identity: &crate::NodeIdentity| {
            identity.trust().verify(identity.certificate_der(), NOW).expect("a certificate of the mesh")
        };
        let signature = fra.sign("capacity", b"two");
        assert_eq!(proof(&fra).verify("capacity", b"two", &signature), Ok(()));
        assert!(proof(&fra).verify("capacity", b"three", &signature).is_err());
        assert!(proof(&fra).verify("other", b"two", &signature).is_err());
        assert!(proof(&iad).verify("capacity", b"two", &signature).is_err());
        assert!(proof(&fra).verify("capacity", b"two", &signature[1..]).is_err());
    }

    proptest! {
        #[test]
        fn a_certificate_with_any_byte_changed_is_refused_without_a_panic(at in any::<prop::sample::Index>(), flip in 1..=255u8) {
            let mesh = Authority::generate().expect("an authority");
            let fra = mesh.issue(&node("fra-1"), LATER).expect("an identity");
            let mut der = fra.certificate_der().to_vec();
            let at = at.index(der.len());
            der[at] ^= flip;
            prop_assert!(fra.trust().verify(&der, NOW).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_no_certificate(der in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(NodeCertificate::from_der(&der).is_err());
        }
    }
}
