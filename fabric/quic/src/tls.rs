//! The handshake: TLS 1.3 with ring, certificates asked of both sides, one ALPN offered by a dialler.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

use crate::certificate::NodeCertificate;
use crate::{FabricError, NodeIdentity, Protocol};

/// Versions of each protocol that this node lets into the handshake, its own among them: a peer of one of the others is
/// told so in a sentence, where an ALPN that is not known at all ends the handshake with a bare alert.
const ALPN_VERSIONS: std::ops::RangeInclusive<u32> = 1..=16;

/// What a dialler offers for one protocol.
pub(crate) fn client(identity: &NodeIdentity, alpn: &str) -> Result<QuicClientConfig, FabricError> {
    let provider = provider();
    let verifier = AnyNode { roots: identity.trust().roots(), provider: Arc::clone(&provider) };
    let (chain, key) = identity.chain_and_key();
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    // A resumed session would skip the certificates; a handshake between nodes is rare and costs a millisecond.
    config.resumption = Resumption::disabled();
    QuicClientConfig::try_from(config)
        .map_err(|error| FabricError::Certificate { path: "the fabric's client side".into(), cause: error.to_string() })
}

/// What the endpoint accepts.
pub(crate) fn server(identity: &NodeIdentity) -> Result<QuicServerConfig, FabricError> {
    let provider = provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(identity.trust().roots(), Arc::clone(&provider))
        .build()
        .map_err(|error| FabricError::Certificate { path: "the authority".into(), cause: error.to_string() })?;
    let (chain, key) = identity.chain_and_key();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = Protocol::ALL
        .into_iter()
        .flat_map(|protocol| ALPN_VERSIONS.map(move |version| protocol.alpn_of(version).into_bytes()))
        .collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    QuicServerConfig::try_from(config)
        .map_err(|error| FabricError::Certificate { path: "the fabric's server side".into(), cause: error.to_string() })
}

/// Who is at the other end of a connection whose handshake has verified the chain.
pub(crate) fn peer_of(connection: &quinn::Connection) -> Result<NodeCertificate, String> {
    let identity = connection.peer_identity().ok_or("it showed no certificate")?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| "its identity is no certificate")?;
    let certificate = chain.first().ok_or("it showed no certificate")?;
    NodeCertificate::from_der(certificate)
}

/// The protocol and version that a connection agreed on.
pub(crate) fn protocol_of(connection: &quinn::Connection) -> Option<(Protocol, u32)> {
    let data = connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?;
    Protocol::parse_alpn(&data.protocol?)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn unusable(error: rustls::Error) -> FabricError {
    FabricError::Certificate { path: "the node's certificate".into(), cause: error.to_string() }
}

/// Accepts every node of the mesh, whatever name was dialled: which node it must be is checked after the handshake, where
/// the answer can name the one that was found.
#[derive(Debug)]
struct AnyNode {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyNode {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
