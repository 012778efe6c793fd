//! The mesh's certificate authority: whoever holds its key decides who is a member.

use std::fmt;
use std::path::Path;

use fabric_types::{NodeId, UnixMillis};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ED25519, date_time_ymd,
};
use time::OffsetDateTime;

use crate::certificate::NAME_SUFFIX;
use crate::key_files::{PRIVATE_MODE, PUBLIC_MODE, create_folder, read_text, write_text};
use crate::{FabricError, NodeIdentity};

const CA_FILE: &str = "ca.pem";
const KEY_FILE: &str = "ca.key";
/// Every certificate is valid from here on, so that a clock that is behind refuses nobody.
const NOT_BEFORE: (i32, u8, u8) = (2020, 1, 1);
/// The authority's own certificate is replaced by a new mesh, never by the calendar.
const CA_NOT_AFTER: (i32, u8, u8) = (2120, 1, 1);

/// The authority, with its key.
pub struct Authority {
    ca_pem: String,
    key: KeyPair,
}

impl fmt::Debug for Authority {
    /// The key stays out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// A new authority, which no node knows yet.
    pub fn generate() -> Result<Self, FabricError> {
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(unusable)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Atoll mesh authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = day(NOT_BEFORE);
        params.not_after = day(CA_NOT_AFTER);
        let ca_pem = params.self_signed(&key).map_err(unusable)?.pem();
        Ok(Self { ca_pem, key })
    }

    /// Reads the authority from a folder.
    pub fn load(folder: &Path) -> Result<Self, FabricError> {
        let ca_pem = read_text(&folder.join(CA_FILE))?;
        let path = folder.join(KEY_FILE);
        let key = KeyPair::from_pem(&read_text(&path)?)
            .map_err(|error| FabricError::Certificate { path: path.display().to_string(), cause: error.to_string() })?;
        let authority = Self { ca_pem, key };
        authority.issuer()?;
        Ok(authority)
    }

    /// Writes the authority to a folder, the key readable by its owner alone; each file is replaced by a rename, the key
    /// last.
    pub fn save(&self, folder: &Path) -> Result<(), FabricError> {
        create_folder(folder)?;
        write_text(&folder.join(CA_FILE), &self.ca_pem, PUBLIC_MODE)?;
        write_text(&folder.join(KEY_FILE), &self.key.serialize_pem(), PRIVATE_MODE)
    }

    /// Makes a key and a certificate for a node, valid until `not_after`.
    pub fn issue(&self, node: &NodeId, not_after: UnixMillis) -> Result<NodeIdentity, FabricError> {
        let seconds = i64::try_from(not_after.0 / 1000).unwrap_or(i64::MAX);
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(unusable)?;
        let mut params = CertificateParams::new(vec![format!("{node}{NAME_SUFFIX}")]).map_err(unusable)?;
        params.distinguished_name.push(DnType::CommonName, node.as_str());
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = day(NOT_BEFORE);
        params.not_after = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(day(CA_NOT_AFTER));
        let certificate = params.signed_by(&key, &self.issuer()?).map_err(unusable)?;
        NodeIdentity::from_pem(certificate.pem(), key.serialize_pem(), self.ca_pem.clone())
    }

    /// The authority's certificate as PEM: what every member is given.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    fn issuer(&self) -> Result<Issuer<'static, &KeyPair>, FabricError> {
        Issuer::from_ca_cert_pem(&self.ca_pem, &self.key).map_err(unusable)
    }
}

fn day((year, month, day): (i32, u8, u8)) -> OffsetDateTime {
    date_time_ymd(year, month, day)
}

fn unusable(error: rcgen::Error) -> FabricError {
    FabricError::Certificate { path: "the mesh's authority".into(), cause: error.to_string() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_authority_that_was_stored_issues_for_the_same_mesh() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("authority");
        let written = Authority::generate().expect("an authority");
        written.save(&path).expect("writes");
        let read = Authority::load(&path).expect("reads");
        let mode = std::fs::metadata(path.join(KEY_FILE)).expect("a key").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let node = "sin-3".parse().expect("a node id");
        let issued = read.issue(&node, UnixMillis(1_900_000_000_000)).expect("an identity");
        let before = written.issue(&node, UnixMillis(1_900_000_000_000)).expect("an identity");
        let proof = before.trust().verify(issued.certificate_der(), UnixMillis(1_800_000_000_000));
        assert_eq!(proof.expect("the same mesh").node(), &node);
    }
}
