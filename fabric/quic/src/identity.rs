//! A node's identity: its certificate, its key and the authority that both ends of a connection are checked against.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use fabric_types::NodeId;
use ring::hmac;
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::FabricError;
use crate::certificate::{NodeCertificate, Trust, signed_bytes};
use crate::key_files::{PRIVATE_MODE, PUBLIC_MODE, create_folder, read_text, write_text};

const CERTIFICATE_FILE: &str = "node.pem";
const KEY_FILE: &str = "node.key";
const CA_FILE: &str = "ca.pem";

/// A node's certificate and key, and the certificate of the mesh's authority. Cheap to clone.
#[derive(Clone)]
pub struct NodeIdentity {
    parts: Arc<Parts>,
}

struct Parts {
    node: NodeId,
    cert_pem: String,
    key_pem: String,
    ca_pem: String,
    certificate: CertificateDer<'static>,
    key: PrivatePkcs8KeyDer<'static>,
    signer: Ed25519KeyPair,
    trust: Trust,
}

impl fmt::Debug for NodeIdentity {
    /// The key stays out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeIdentity").field("node", &self.parts.node).finish_non_exhaustive()
    }
}

impl NodeIdentity {
    /// An identity from its three PEM texts. The key must belong to the certificate; that the authority issued it is
    /// found out in the first handshake.
    pub fn from_pem(cert_pem: String, key_pem: String, ca_pem: String) -> Result<Self, FabricError> {
        let refused = |path: &str, cause: String| FabricError::Certificate { path: path.to_owned(), cause };
        let certificate = CertificateDer::from_pem_slice(cert_pem.as_bytes())
            .map_err(|error| refused("the node's certificate", error.to_string()))?;
        let proof =
            NodeCertificate::from_der(&certificate).map_err(|cause| refused("the node's certificate", cause))?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|error| refused("the node's key", error.to_string()))?;
        let signer = Ed25519KeyPair::from_pkcs8_maybe_unchecked(key.secret_pkcs8_der())
            .map_err(|error| refused("the node's key", error.to_string()))?;
        let trust = Trust::from_ca_pem(&ca_pem)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|error| refused("the node's certificate", error.to_string()))?;
        if *parsed.public_key().subject_public_key.data != *signer.public_key().as_ref() {
            return Err(refused("the node's key", "it doesn't belong to the certificate beside it".into()));
        }
        let node = proof.node().clone();
        let parts = Parts { node, cert_pem, key_pem, ca_pem, certificate, key, signer, trust };
        Ok(Self { parts: Arc::new(parts) })
    }

    /// Reads an identity from a folder.
    pub fn load(folder: &Path) -> Result<Self, FabricError> {
        let read = |name: &str| read_text(&folder.join(name));
        Self::from_pem(read(CERTIFICATE_FILE)?, read(KEY_FILE)?, read(CA_FILE)?).map_err(|error| match error {
            FabricError::Certificate { path, cause } => {
                FabricError::Certificate { path: format!("{path} in {}", folder.display()), cause }
            }
            other => other,
        })
    }

    /// Writes the identity to a folder, the key readable by its owner alone. Each file is replaced by a rename, the key
    /// last: an identity cut short by a crash is refused by [`NodeIdentity::load`] and can be written again.
    pub fn save(&self, folder: &Path) -> Result<(), FabricError> {
        create_folder(folder)?;
        write_text(&folder.join(CA_FILE), &self.parts.ca_pem, PUBLIC_MODE)?;
        write_text(&folder.join(CERTIFICATE_FILE), &self.parts.cert_pem, PUBLIC_MODE)?;
        write_text(&folder.join(KEY_FILE), &self.parts.key_pem, PRIVATE_MODE)
    }

    /// Whose identity it is.
    pub fn node(&self) -> &NodeId {
        &self.parts.node
    }

    /// The certificate, as its bytes travel: what others verify signatures with.
    pub fn certificate_der(&self) -> &[u8] {
        &self.parts.certificate
    }

    /// The certificate as PEM.
    pub fn cert_pem(&self) -> &str {
        &self.parts.cert_pem
    }

    /// The certificate of the mesh's authority as PEM.
    pub fn ca_pem(&self) -> &str {
        &self.parts.ca_pem
    }

    /// The authority that this node trusts.
    pub fn trust(&self) -> &Trust {
        &self.parts.trust
    }

    /// Signs a message for a purpose; [`NodeCertificate::verify`] with the same purpose accepts it.
    pub fn sign(&self, purpose: &str, message: &[u8]) -> Vec<u8> {
        self.parts.signer.sign(&signed_bytes(purpose, message)).as_ref().to_vec()
    }

    /// Certificate and key for the handshake.
    pub(crate) fn chain_and_key(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (vec![self.parts.certificate.clone()], PrivateKeyDer::Pkcs8(self.parts.key.clone_key()))
    }

    /// The key of stateless resets (RFC 9000, section 10.3). It outlives the process, so that a node that was killed and
    /// started again can tell its peers that their old connections are gone.
    pub(crate) fn reset_key(&self) -> hmac::Key {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, self.parts.key.secret_pkcs8_der());
        let derived = hmac::sign(&secret, b"atoll fabric stateless reset 1");
        hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use fabric_types::UnixMillis;

    use super::*;
    use crate::Authority;

    fn identity(id: &str) -> NodeIdentity {
        let mesh = Authority::generate().expect("an authority");
        mesh.issue(&id.parse().expect("a node id"), UnixMillis(1_900_000_000_000)).expect("an identity")
    }

    #[test]
    fn an_identity_reads_back_and_its_key_is_for_its_owner_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("identity");
        let written = identity("fra-1");
        written.save(&path).expect("writes");
        let read = NodeIdentity::load(&path).expect("reads");
        assert_eq!(read.node(), written.node());
        assert_eq!(read.sign("x", b"y"), written.sign("x", b"y"));
        let mode = std::fs::metadata(path.join(KEY_FILE)).expect("a key").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let names = std::fs::read_dir(&path).expect("a folder").count();
        assert_eq!(names, 3, "no temporary file is left");
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let (one, two) = (identity("fra-1"), identity("fra-2"));
        let error = NodeIdentity::from_pem(one.cert_pem().into(), two.parts.key_pem.clone(), one.ca_pem().into())
            .expect_err("mixed");
        assert!(error.to_string().contains("doesn't belong to the certificate"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = NodeIdentity::load(folder.path()).expect_err("nothing there");
        assert!(error.to_string().contains("node.pem"), "{error}");
    }

    #[test]
    fn the_key_is_not_in_the_debug_form() {
        let identity = identity("fra-1");
        assert_eq!(format!("{identity:?}"), "NodeIdentity { node: NodeId(\"fra-1\"), .. }");
    }

    #[test]
    fn the_reset_key_outlives_the_process_and_differs_between_nodes() {
        let tag = |identity: &NodeIdentity| hmac::sign(&identity.reset_key(), b"x").as_ref().to_vec();
        let one = identity("fra-1");
        let again = NodeIdentity::from_pem(one.cert_pem().into(), one.parts.key_pem.clone(), one.ca_pem().into());
        assert_eq!(tag(&one), tag(&again.expect("the same")));
        assert_ne!(tag(&one), tag(&identity("fra-1")));
    }
}
