//! The AUTH payload: what is signed, our proof, and the gateway's (RFC 7296, section 2.15; RFC 7427).

use super::SaConfig;
use super::init::SIGNATURE_HASHES;
use super::keys::{Nonces, SaKeys};
use super::resume::Ticket;
use crate::command::Cause;
use crate::crypto::{Prf, Secret, constant_time_eq};
use crate::eap::Msk;
use crate::pki::revocation::{Evidence, NotRevoked};
use crate::pki::{self, Certificate, KeyKind, SignatureEncoding, SignatureScheme};
use crate::profile::{AuthKind, Identity};
use crate::timer::UnixTime;
use crate::wire::iana::{AuthMethod, CertEncoding, HashAlgorithm};
use crate::wire::{Auth, Cert, Id, Payload};

/// The gateway holds the key of the identity that the profile demands, and its certificates are not revoked as far as the
/// profile wants to know. Only a checked AUTH payload makes one, and no EAP method and no established SA can be made
/// without it.
#[derive(Debug)]
pub(super) struct PeerVerified(());

/// The gateway holds the key of the identity that the profile demands. Whether the certificates that say so were revoked is
/// still to be found out.
#[derive(Debug)]
pub(super) struct Authentic {
    /// The gateway's certificate first, the trusted one last; none with a pre-shared key.
    pub(super) path: Vec<Certificate>,
    /// What came with them.
    pub(super) evidence: Evidence,
}

impl Authentic {
    const fn without_certificate() -> Self {
        Self {
            path: Vec::new(),
            evidence: Evidence {
                ocsp: Vec::new(),
                crls: Vec::new(),
            },
        }
    }

    /// They were not revoked.
    pub(super) fn clear(self, _: &NotRevoked) -> PeerVerified {
        PeerVerified(())
    }
}

/// So many OCSP responses, and as many revocation lists, are taken from a gateway.
const MAX_EVIDENCE: usize = 4;

/// Nobody has proven the gateway, and the profile has an EAP method that does (RFC 5998). Only a look at the profile
/// makes one.
#[derive(Debug)]
pub(super) struct EapOnly(());

/// What is known of the gateway when EAP begins. Without it no EAP method runs.
#[derive(Debug)]
pub(super) enum Standing {
    /// It has proven its identity with its certificate.
    Verified(PeerVerified),
    /// It has claimed the identity that the profile demands, and EAP must prove it.
    Claimed(EapOnly),
}

/// What AUTH payloads are computed over besides the identity.
pub(super) struct Transcript {
    /// RealMessage1: our last IKE_SA_INIT request.
    pub(super) request: Vec<u8>,
    /// RealMessage2: the gateway's response to it.
    pub(super) response: Vec<u8>,
    pub(super) nonces: Nonces,
    /// IntAuth: what both sides prove of the IKE_INTERMEDIATE exchanges, empty without any (RFC 9242, section 3.3.2).
    pub(super) int_auth: Vec<u8>,
}

impl Transcript {
    /// `RealMessage1 | Nr | prf(SK_pi, IDi') [| IntAuth]`.
    pub(super) fn initiator_octets(&self, keys: &SaKeys, id: &[u8]) -> Vec<u8> {
        let mac = keys.prf.compute(keys.proof_initiator.as_bytes(), &[id]);
        [
            &self.request,
            &self.nonces.responder,
            mac.as_bytes(),
            &self.int_auth,
        ]
        .concat()
    }

    /// `RealMessage2 | Ni | prf(SK_pr, IDr') [| IntAuth]`.
    pub(super) fn responder_octets(&self, keys: &SaKeys, id: &[u8]) -> Vec<u8> {
        let mac = keys.prf.compute(keys.proof_responder.as_bytes(), &[id]);
        [
            &self.response,
            &self.nonces.initiator,
            mac.as_bytes(),
            &self.int_auth,
        ]
        .concat()
    }
}

/// `prf(prf(secret, "Key Pad for IKEv2"), octets)`: the AUTH of a pre-shared key, or of an EAP method's MSK.
pub(super) fn shared_key_mic(prf: Prf, secret: &[u8], octets: &[u8]) -> Secret {
    let key = prf.compute(secret, &[b"Key Pad for IKEv2"]);
    prf.compute(key.as_bytes(), &[octets])
}

/// Our AUTH with the private key of our certificate: method and data. Gateways with RFC 7427 get a Digital
/// Signature with a hash of their list, others the older method of the key's kind.
pub(super) fn sign(
    config: &SaConfig,
    peer_hashes: Option<&[HashAlgorithm]>,
    octets: &[u8],
) -> Result<(AuthMethod, Vec<u8>), Cause> {
    let refused = |why: String| Cause::Credential(why);
    let key = config
        .credentials
        .key
        .as_ref()
        .ok_or_else(|| refused("the profile has no private key for certificate authentication".into()))?;
    let sign = |scheme, encoding| {
        key.sign(scheme, octets, encoding)
            .map_err(|error| Cause::Credential(format!("the private key cannot sign: {error}")))
    };
    if let Some(hashes) = peer_hashes {
        let scheme = key.choose_scheme(hashes).ok_or_else(|| {
            refused("the gateway accepts no hash algorithm that our private key can sign with".into())
        })?;
        let signature = sign(scheme, SignatureEncoding::Der)?;
        let identifier = scheme.algorithm_identifier();
        let length = u8::try_from(identifier.len()).unwrap_or(u8::MAX);
        return Ok((
            AuthMethod::DIGITAL_SIGNATURE,
            [&[length], identifier, &signature].concat(),
        ));
    }
    let (method, scheme) = match key.kind() {
        KeyKind::EcP256 => (AuthMethod::ECDSA_P256_SHA256, SignatureScheme::EcdsaSha2_256),
        KeyKind::EcP384 => (AuthMethod::ECDSA_P384_SHA384, SignatureScheme::EcdsaSha2_384),
        KeyKind::EcP521 => (AuthMethod::ECDSA_P521_SHA512, SignatureScheme::EcdsaSha2_512),
        KeyKind::Rsa { .. } if config.profile.gateway.allow_sha1_auth => {
            (AuthMethod::RSA_SIGNATURE, SignatureScheme::RsaPkcs1Sha1)
        }
        // Without RFC 7427 an RSA key signs with SHA-1.
        KeyKind::Rsa { .. } => return Err(Cause::Sha1Only),
        kind @ (KeyKind::Ed25519 | KeyKind::Unsupported) => {
            return Err(refused(format!(
                "the gateway does not know RFC 7427 signatures, and without them no key of kind {kind} can be used"
            )));
        }
    };
    Ok((method, sign(scheme, SignatureEncoding::Raw)?))
}

/// Checks the gateway's first AUTH: its certificates, its name, its signature; or the pre-shared key.
pub(super) fn verify_gateway(
    config: &SaConfig,
    payloads: &[Payload<'_>],
    transcript: &Transcript,
    keys: &SaKeys,
    peer_has_hashes: bool,
    now: UnixTime,
) -> Result<(Authentic, Proven), Cause> {
    let (mut id, mut auth, mut chain) = (None, None, Vec::new());
    let mut evidence = Evidence::default();
    for payload in payloads {
        let repeated = match payload {
            Payload::IdResponder(value) => id.replace(value).is_some(),
            Payload::Auth(value) => auth.replace(value).is_some(),
            Payload::Cert(Cert {
                encoding: CertEncoding::X509_SIGNATURE,
                data,
            }) => {
                match Certificate::from_der(data) {
                    Ok(certificate) => chain.push(certificate),
                    // The first is the gateway's own; what comes after it only helps to build the path.
                    Err(error) if chain.is_empty() => return Err(Cause::Certificate(error)),
                    Err(error) => tracing::debug!(%error, "a certificate of the gateway cannot be read"),
                }
                false
            }
            // RFC 4806: what the gateway has from the responder, so that we need not ask.
            Payload::Cert(Cert { encoding, data }) => {
                let kept = match *encoding {
                    CertEncoding::OCSP_CONTENT => Some(&mut evidence.ocsp),
                    CertEncoding::CRL => Some(&mut evidence.crls),
                    _ => None,
                };
                if let Some(kept) = kept.filter(|kept| kept.len() < MAX_EVIDENCE) {
                    kept.push(data.to_vec());
                }
                false
            }
            _ => false,
        };
        if repeated {
            return Err(Cause::Protocol("IKE_AUTH: IDr or AUTH is there twice".into()));
        }
    }
    let (Some(id), Some(auth)) = (id, auth) else {
        return Err(Cause::GatewayUnproven);
    };
    let octets = transcript.responder_octets(keys, &id.body());
    if config.profile.auth.method == AuthKind::Psk {
        return verify_psk(config, id, auth, &octets, keys.prf);
    }
    let received = Identity::from_wire(id.kind, id.data);
    let gateway = &config.profile.gateway;
    if auth.method == AuthMethod::SHARED_KEY_MIC {
        // A password never stands in for the certificate: method confusion.
        return Err(Cause::AuthMethodNotAllowed(auth.method));
    }
    let peer = pki::verify_gateway(
        &chain,
        &gateway.anchors.certificates,
        gateway.pin.as_ref(),
        &gateway.identity,
        received.as_ref(),
        now,
    )
    .map_err(Cause::Certificate)?;
    verify_signature(
        peer.certificate(),
        auth,
        &octets,
        peer_has_hashes,
        gateway.allow_sha1_auth,
    )?;
    let identity = received.map_or_else(|| gateway.identity.to_string(), |identity| identity.to_string());
    let path = peer.path();
    Ok((
        Authentic { path, evidence },
        Proven {
            identity,
            id_body: id.body(),
            notes: Vec::new(),
        },
    ))
}

/// Who the gateway proved to be.
pub(super) struct Proven {
    /// For the user.
    pub(super) identity: String,
    /// IDr as received: the last AUTH of an EAP exchange covers it again.
    pub(super) id_body: Vec<u8>,
    /// What the user should know although all is well.
    pub(super) notes: Vec<String>,
}

fn verify_psk(
    config: &SaConfig,
    id: &Id<'_>,
    auth: &Auth<'_>,
    octets: &[u8],
    prf: Prf,
) -> Result<(Authentic, Proven), Cause> {
    let identity = demanded(&config.profile.gateway.identity, id)?;
    if auth.method != AuthMethod::SHARED_KEY_MIC {
        return Err(Cause::CertificateForPsk(auth.method));
    }
    let psk = config
        .credentials
        .psk
        .as_ref()
        .ok_or_else(|| Cause::Credential("the profile has no pre-shared key".into()))?;
    if !constant_time_eq(shared_key_mic(prf, psk.as_bytes(), octets).as_bytes(), auth.data) {
        return Err(Cause::GatewayAuthInvalid(auth.method));
    }
    Ok((
        Authentic::without_certificate(),
        Proven {
            identity,
            id_body: id.body(),
            notes: Vec::new(),
        },
    ))
}

fn verify_signature(
    certificate: &Certificate,
    auth: &Auth<'_>,
    octets: &[u8],
    peer_has_hashes: bool,
    allow_sha1: bool,
) -> Result<(), Cause> {
    let not_allowed = || Cause::AuthMethodNotAllowed(auth.method);
    let check = |scheme, signature, encoding| {
        pki::verify_signature(certificate, scheme, octets, signature, encoding)
            .map_err(|_| Cause::GatewayAuthInvalid(auth.method))
    };
    match auth.method {
        // RFC 7427, section 3: only after both sides said which hashes they know.
        AuthMethod::DIGITAL_SIGNATURE if peer_has_hashes => {
            let (&length, rest) = auth.data.split_first().ok_or_else(not_allowed)?;
            let (identifier, signature) = rest.split_at_checked(length.into()).ok_or_else(not_allowed)?;
            let scheme = SignatureScheme::from_algorithm_identifier(identifier).ok_or_else(not_allowed)?;
            if !SIGNATURE_HASHES.contains(&scheme.hash()) {
                return Err(not_allowed());
            }
            check(scheme, signature, SignatureEncoding::Der)
        }
        AuthMethod::RSA_SIGNATURE => {
            let schemes = [
                SignatureScheme::RsaPkcs1Sha2_256,
                SignatureScheme::RsaPkcs1Sha2_384,
                SignatureScheme::RsaPkcs1Sha2_512,
            ];
            if schemes
                .iter()
                .any(|scheme| check(*scheme, auth.data, SignatureEncoding::Raw).is_ok())
            {
                return Ok(());
            }
            let sha1 = check(SignatureScheme::RsaPkcs1Sha1, auth.data, SignatureEncoding::Raw);
            if sha1.is_ok() && !allow_sha1 {
                Err(Cause::Sha1Only)
            } else {
                sha1
            }
        }
        // RFC 4754, section 3: each method fixes curve and hash.
        method => {
            let scheme = match (method, certificate.key_kind()) {
                (AuthMethod::ECDSA_P256_SHA256, KeyKind::EcP256) => SignatureScheme::EcdsaSha2_256,
                (AuthMethod::ECDSA_P384_SHA384, KeyKind::EcP384) => SignatureScheme::EcdsaSha2_384,
                (AuthMethod::ECDSA_P521_SHA512, KeyKind::EcP521) => SignatureScheme::EcdsaSha2_512,
                _ => return Err(not_allowed()),
            };
            check(scheme, auth.data, SignatureEncoding::Raw)
        }
    }
}

/// Our AUTH for an SA that is resumed: with SK_pi, which comes from the SA before (RFC 5723, section 4.3.3).
pub(super) fn prove_resumed(keys: &SaKeys, octets: &[u8]) -> Secret {
    keys.prf.compute(keys.proof_initiator.as_bytes(), &[octets])
}

/// Checks the gateway's AUTH for an SA that is resumed, and that it is who it was.
pub(super) fn verify_resumed(
    ticket: &Ticket,
    payloads: &[Payload<'_>],
    transcript: &Transcript,
    keys: &SaKeys,
) -> Result<(PeerVerified, Proven), Cause> {
    let (mut id, mut auth) = (None, None);
    for payload in payloads {
        let repeated = match payload {
            Payload::IdResponder(value) => id.replace(value).is_some(),
            Payload::Auth(value) => auth.replace(value).is_some(),
            _ => false,
        };
        if repeated {
            return Err(Cause::Protocol("IKE_AUTH: a payload is there twice".into()));
        }
    }
    let (Some(id), Some(auth)) = (id, auth) else {
        return Err(Cause::GatewayUnproven);
    };
    let id_body = id.body();
    if id_body != ticket.ids.theirs {
        return Err(Cause::GatewayUnproven);
    }
    let octets = transcript.responder_octets(keys, &id_body);
    let expected = keys.prf.compute(keys.proof_responder.as_bytes(), &[&octets]);
    if auth.method != AuthMethod::SHARED_KEY_MIC || !constant_time_eq(expected.as_bytes(), auth.data) {
        return Err(Cause::GatewayAuthInvalid(auth.method));
    }
    let identity = ticket.ids.shown.clone();
    let proven = Proven {
        identity,
        id_body,
        notes: Vec::new(),
    };
    Ok((PeerVerified(()), proven))
}

/// Checks the claim of a gateway that proves itself in EAP alone.
pub(super) fn claimed(config: &SaConfig, payloads: &[Payload<'_>]) -> Result<(EapOnly, Proven), Cause> {
    let auth = &config.profile.auth;
    let id = payloads.iter().find_map(|payload| match payload {
        Payload::IdResponder(id) => Some(id),
        _ => None,
    });
    let id = id.ok_or(Cause::GatewayUnproven)?;
    if !auth.eap_only || !auth.method.proves_the_server() {
        return Err(Cause::GatewayUnproven);
    }
    let expected = &config.profile.gateway.identity;
    let identity = demanded(expected, id)?;
    Ok((
        EapOnly(()),
        Proven {
            identity,
            id_body: id.body(),
            notes: Vec::new(),
        },
    ))
}

/// The gateway's identity, if it is exactly the one that the profile demands.
fn demanded(expected: &Identity, id: &Id<'_>) -> Result<String, Cause> {
    let received = Identity::from_wire(id.kind, id.data);
    if received
        .as_ref()
        .is_some_and(|received| received.matches(expected))
    {
        return Ok(expected.to_string());
    }
    let received = received.map_or_else(
        || format!("{} of {} octets", id.kind, id.data.len()),
        |received| received.to_string(),
    );
    Err(Cause::IdentityMismatch {
        expected: expected.to_string(),
        received,
    })
}

/// Our AUTH after EAP: with the method's MSK, or with SK_pi if the method makes none (RFC 7296, section 2.16).
pub(super) fn prove_eap(keys: &SaKeys, msk: Option<&Msk>, octets: &[u8]) -> Secret {
    let secret = msk.map_or(keys.proof_initiator.as_bytes(), Msk::as_bytes);
    shared_key_mic(keys.prf, secret, octets)
}

/// Checks the gateway's AUTH after EAP, made with the method's MSK, or with SK_pr if the method makes none and the
/// gateway is proven already (RFC 7296, section 2.16; RFC 5998, section 3).
pub(super) fn verify_eap(
    standing: Standing,
    proven: &Proven,
    auth: &Auth<'_>,
    transcript: &Transcript,
    keys: &SaKeys,
    msk: Option<&Msk>,
) -> Result<PeerVerified, Cause> {
    let (verified, secret) = match (standing, msk) {
        (Standing::Verified(verified), None) => (verified, keys.proof_responder.as_bytes()),
        (Standing::Verified(verified), Some(msk)) => (verified, msk.as_bytes()),
        (Standing::Claimed(_), Some(msk)) => (PeerVerified(()), msk.as_bytes()),
        (Standing::Claimed(_), None) => return Err(Cause::GatewayUnproven),
    };
    let octets = transcript.responder_octets(keys, &proven.id_body);
    let expected = shared_key_mic(keys.prf, secret, &octets);
    if auth.method != AuthMethod::SHARED_KEY_MIC || !constant_time_eq(expected.as_bytes(), auth.data) {
        return Err(Cause::EapKeyMismatch);
    }
    Ok(verified)
}
