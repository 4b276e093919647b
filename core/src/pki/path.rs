//! Whether a certificate chain proves an identity (RFC 4945, RFC 5280, RFC 9525).

use std::fmt;

use rustls_pki_types::{CertificateDer, DnsName, ServerName, TrustAnchor};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter};

use super::algorithms;
use super::cert::{Certificate, KEY_CERT_SIGN, KeyKind, SIGNING, SubjectName};
use super::der::{self, Der};
use super::error::CertError;
use super::name::{self, dn_matches};
use super::scheme::{SignatureEncoding, SignatureScheme};
use super::verify::{check_key, verify_signature};
use crate::profile::Identity;
use crate::timer::UnixTime;

/// The most certificates of one peer that we look at.
pub const MAX_CHAIN: usize = 10;

/// The most names of a certificate that an error lists.
const MAX_LISTED: usize = 20;

/// A certificate that proves its holder's identity, once the holder proves to have its private key.
///
/// Only [`verify_gateway`] and [`verify_tls_server`] make one.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifiedPeer {
    certificate: Certificate,
    /// The certificates above it, the anchor last; none above one that is pinned.
    above: Vec<Certificate>,
}

impl VerifiedPeer {
    /// The peer's own certificate.
    #[must_use]
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// The path that vouches for the peer: its own certificate first, the trusted one last. A pinned certificate is both.
    #[must_use]
    pub fn path(&self) -> Vec<Certificate> {
        [std::slice::from_ref(&self.certificate), &self.above].concat()
    }

    /// Checks a signature of the peer, as [`verify_signature`] does.
    ///
    /// # Errors
    ///
    /// Those of [`verify_signature`].
    pub fn verify_signature(
        &self,
        scheme: SignatureScheme,
        message: &[u8],
        signature: &[u8],
        encoding: SignatureEncoding,
    ) -> Result<(), CertError> {
        verify_signature(&self.certificate, scheme, message, signature, encoding)
    }
}

impl fmt::Debug for VerifiedPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("VerifiedPeer").field(&self.certificate).finish()
    }
}

/// Whether the certificates of an IKE gateway prove that it is `expected`.
///
/// `chain` is what the CERT payloads hold: the gateway's own certificate first (RFC 7296, section 3.6), then others in
/// any order, with or without the root. All of this must hold:
///
/// - With a `pin`, the gateway's certificate is exactly that one; nobody else has to vouch for it. Without, a path leads
///   from it to one of `anchors`, in which every certificate is valid at `now`, every issuer is a CA that may sign
///   certificates (basicConstraints, keyUsage, pathLenConstraint, nameConstraints), nothing is signed with SHA-1 or MD5,
///   and there is no unknown critical extension.
/// - The gateway's certificate is no CA (unless it is pinned and self-issued), valid at `now`, with a key that we accept;
///   its keyUsage is absent or has digitalSignature or nonRepudiation; its extKeyUsage is absent or has one of ipsecIKE,
///   anyExtendedKeyUsage, serverAuth, ikeIntermediate (RFC 4945, section 5.1.3.12, and what real gateways have): a
///   certificate for clients only would let every user pose as the gateway.
/// - It carries `expected`: a DNS name, an address or an e-mail address as subjectAltName of that kind (a wildcard stands
///   for the whole left-most label; the common name never counts), a distinguished name as subject or directoryName. A key
///   ID cannot be proven by a certificate.
/// - It carries `received_idr`, what the gateway calls itself, by the same rules, a distinguished name octet for octet.
///
/// # Errors
///
/// [`CertError`] says which of these does not hold.
pub fn verify_gateway(
    chain: &[Certificate],
    anchors: &[Certificate],
    pin: Option<&Certificate>,
    expected: &Identity,
    received_idr: Option<&Identity>,
    now: UnixTime,
) -> Result<VerifiedPeer, CertError> {
    let leaf = end_entity(chain)?;
    if pin.is_some_and(|pin| pin != leaf) {
        return Err(CertError::PinMismatch {
            subject: leaf.subject_text(),
        });
    }
    check_end_entity(leaf, Purpose::Gateway, pin.is_some(), now)?;
    let above = match pin {
        None => check_path(chain, anchors, Purpose::Gateway, now)?,
        Some(_) => Vec::new(),
    };
    if !carries(leaf, expected)? {
        return Err(CertError::NameMismatch {
            expected: expected.to_string(),
            presented: presented(leaf, expected),
        });
    }
    if let Some(received) = received_idr
        && !confirms(leaf, received)?
    {
        return Err(CertError::IdentityUnconfirmed {
            received: received.to_string(),
            presented: presented(leaf, received),
        });
    }
    Ok(VerifiedPeer {
        certificate: leaf.clone(),
        above,
    })
}

/// Whether the certificates of a TLS server prove that it is `expected`: as [`verify_gateway`] without pin and IDr, with
/// extKeyUsage absent or having serverAuth or anyExtendedKeyUsage (RFC 5216, section 5.3).
///
/// # Errors
///
/// [`CertError`] says which rule does not hold.
pub fn verify_tls_server(
    chain: &[Certificate],
    anchors: &[Certificate],
    expected: &Identity,
    now: UnixTime,
) -> Result<VerifiedPeer, CertError> {
    let leaf = end_entity(chain)?;
    check_end_entity(leaf, Purpose::TlsServer, false, now)?;
    let above = check_path(chain, anchors, Purpose::TlsServer, now)?;
    if carries(leaf, expected)? {
        Ok(VerifiedPeer {
            certificate: leaf.clone(),
            above,
        })
    } else {
        Err(CertError::NameMismatch {
            expected: expected.to_string(),
            presented: presented(leaf, expected),
        })
    }
}

/// What the peer's certificate is to be good for.
#[derive(Clone, Copy)]
enum Purpose {
    Gateway,
    TlsServer,
}

const OID_ANY: &[u8] = &[0x55, 0x1d, 37, 0];
const OID_SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
const OID_CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];
const OID_IPSEC_IKE: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 17];
const OID_IKE_INTERMEDIATE: &[u8] = &[0x2b, 6, 1, 5, 5, 8, 2, 2];

impl Purpose {
    /// The extended key usages of which one must be there, if there are any.
    const fn usages(self) -> &'static [&'static [u8]] {
        match self {
            Self::Gateway => &[OID_IPSEC_IKE, OID_ANY, OID_SERVER_AUTH, OID_IKE_INTERMEDIATE],
            Self::TlsServer => &[OID_SERVER_AUTH, OID_ANY],
        }
    }

    fn check(self, certificate: &Certificate) -> Result<(), CertError> {
        let Some(usages) = certificate.extended_key_usage() else {
            return Ok(());
        };
        if usages
            .iter()
            .any(|usage| self.usages().contains(&usage.as_slice()))
        {
            return Ok(());
        }
        let subject = certificate.subject_text();
        if usages.iter().any(|usage| usage == OID_CLIENT_AUTH) {
            return Err(CertError::NotForServer { subject });
        }
        let usages = usages
            .iter()
            .take(MAX_LISTED)
            .map(|usage| name::dotted(usage))
            .collect();
        Err(CertError::ExtendedKeyUsage { subject, usages })
    }
}

/// webpki asks this of every certificate below the anchor.
impl ExtendedKeyUsageValidator for Purpose {
    fn validate(&self, usages: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let mut present = Vec::new();
        for usage in usages {
            let usage = usage?;
            if self
                .usages()
                .iter()
                .any(|oid| webpki::KeyPurposeId::new(oid) == usage)
            {
                return Ok(());
            }
            present.push(usage.to_decoded_oid());
        }
        if present.is_empty() {
            return Ok(());
        }
        let required = webpki::KeyUsage::server_auth();
        Err(webpki::Error::RequiredEkuNotFoundContext(
            webpki::RequiredEkuNotFoundContext { required, present },
        ))
    }
}

fn end_entity(chain: &[Certificate]) -> Result<&Certificate, CertError> {
    if chain.len() > MAX_CHAIN {
        return Err(CertError::TooMany { count: chain.len() });
    }
    chain.first().ok_or(CertError::NoCertificate)
}

/// The rules for the peer's own certificate that do not depend on who issued it.
fn check_end_entity(
    leaf: &Certificate,
    purpose: Purpose,
    pinned: bool,
    now: UnixTime,
) -> Result<(), CertError> {
    let subject = || leaf.subject_text();
    check_validity(leaf, now)?;
    // `openssl req -x509` makes self-signed certificates that are CAs; pinned, they vouch for nobody but themselves.
    if leaf.is_ca() && !(pinned && leaf.is_self_issued()) {
        return Err(CertError::CaAsEndEntity { subject: subject() });
    }
    check_key(leaf)?;
    if !leaf.allows_key_usage(SIGNING) {
        return Err(CertError::KeyUsage { subject: subject() });
    }
    purpose.check(leaf)
}

fn check_validity(certificate: &Certificate, now: UnixTime) -> Result<(), CertError> {
    let subject = || certificate.subject_text();
    if now.as_secs() > certificate.not_after().as_secs() {
        return Err(CertError::Expired {
            subject: subject(),
            at: certificate.not_after(),
        });
    }
    if now.as_secs() < certificate.not_before().as_secs() {
        return Err(CertError::NotYetValid {
            subject: subject(),
            from: certificate.not_before(),
        });
    }
    Ok(())
}

/// The path that leads from the first certificate, which it leaves out, to an anchor (RFC 5280, section 6).
fn check_path(
    chain: &[Certificate],
    anchors: &[Certificate],
    purpose: Purpose,
    now: UnixTime,
) -> Result<Vec<Certificate>, CertError> {
    let Some((leaf, others)) = chain.split_first() else {
        return Err(CertError::NoCertificate);
    };
    // An anchor that has expired, or is no CA, vouches for nobody; another one of the same name still may.
    let may_vouch = |anchor: &&Certificate| anchor.may_anchor() && check_validity(anchor, now).is_ok();
    let ders: Vec<(&Certificate, CertificateDer<'_>)> = anchors
        .iter()
        .filter(may_vouch)
        .map(|anchor| (anchor, CertificateDer::from(anchor.der())))
        .collect();
    let (holders, usable): (Vec<&Certificate>, Vec<TrustAnchor<'_>>) = ders
        .iter()
        .filter_map(|(anchor, der)| Some((*anchor, webpki::anchor_from_trusted_cert(der).ok()?)))
        .unzip();
    let intermediates: Vec<CertificateDer<'_>> = others
        .iter()
        .map(|certificate| CertificateDer::from(certificate.der()))
        .collect();
    let leaf_der = CertificateDer::from(leaf.der());
    // webpki leaves keyUsage to us.
    let may_sign = |path: &webpki::VerifiedPath<'_>| {
        let allowed = |der: &[u8]| {
            others
                .iter()
                .any(|certificate| certificate.der() == der && certificate.allows_key_usage(KEY_CERT_SIGN))
        };
        if path
            .intermediate_certificates()
            .all(|certificate| allowed(certificate.der().as_ref()))
        {
            Ok(())
        } else {
            Err(webpki::Error::EndEntityUsedAsCa)
        }
    };
    EndEntityCert::try_from(&leaf_der)
        .and_then(|end_entity| {
            let now = rustls_pki_types::UnixTime::since_unix_epoch(now.0);
            end_entity
                .verify_for_usage(
                    algorithms::ALL,
                    &usable,
                    &intermediates,
                    now,
                    purpose,
                    None,
                    Some(&may_sign),
                )
                .map(|path| {
                    let der_is = |der: &[u8]| others.iter().find(|certificate| certificate.der() == der);
                    let between = path.intermediate_certificates();
                    let between = between.filter_map(|certificate| der_is(certificate.der().as_ref()));
                    let anchor = holders
                        .iter()
                        .zip(&usable)
                        .find(|(_, anchor)| *anchor == path.anchor());
                    let anchor = anchor.map(|(holder, _)| *holder);
                    between.chain(anchor).cloned().collect()
                })
        })
        .map_err(|error| explain(&error, chain, anchors, now))
}

/// What an error of webpki means, and which certificate it is about.
#[expect(
    deprecated,
    reason = "webpki's enum still contains the variants that it no longer uses"
)]
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "webpki's enum may grow, and most of it is about encoding"
)]
fn explain(
    error: &webpki::Error,
    chain: &[Certificate],
    anchors: &[Certificate],
    now: UnixTime,
) -> CertError {
    use webpki::Error;
    let subject = || chain.first().map(Certificate::subject_text).unwrap_or_default();
    let named = |is_it: &dyn Fn(&Certificate) -> bool| {
        chain
            .iter()
            .find(|certificate| is_it(certificate))
            .map_or_else(subject, Certificate::subject_text)
    };
    let issuers = || chain.iter().skip(1).chain(anchors);
    match error {
        Error::CertExpired { .. } | Error::CertNotValidYet { .. } => chain
            .iter()
            .find_map(|certificate| check_validity(certificate, now).err())
            .unwrap_or_else(|| CertError::Malformed {
                what: "validity".to_owned(),
            }),
        Error::CaUsedAsEndEntity => CertError::CaAsEndEntity { subject: subject() },
        Error::EndEntityUsedAsCa => {
            let not_a_ca = |issuer: &&Certificate| !issuer.is_ca() || !issuer.allows_key_usage(KEY_CERT_SIGN);
            let subject = chain
                .iter()
                .skip(1)
                .find(not_a_ca)
                .map_or_else(subject, Certificate::subject_text);
            CertError::NotACa { subject }
        }
        Error::UnknownIssuer => unknown_issuer(chain, anchors, now),
        Error::NameConstraintViolation
        | Error::MalformedNameConstraint
        | Error::InvalidNetworkMaskConstraint => CertError::NameConstraint { subject: subject() },
        Error::PathLenConstraintViolated => CertError::PathTooLong { subject: subject() },
        Error::UnsupportedCriticalExtension => {
            let is_it = |certificate: &Certificate| {
                matches!(
                    EndEntityCert::try_from(&CertificateDer::from(certificate.der())),
                    Err(Error::UnsupportedCriticalExtension)
                )
            };
            CertError::CriticalExtension {
                subject: named(&is_it),
            }
        }
        Error::RequiredEkuNotFound | Error::EmptyEkuExtension => CertError::ExtendedKeyUsage {
            subject: subject(),
            usages: Vec::new(),
        },
        Error::RequiredEkuNotFoundContext(context) => {
            let usages = context
                .present
                .iter()
                .take(MAX_LISTED)
                .map(|arcs| arcs.iter().map(ToString::to_string).collect::<Vec<_>>().join("."));
            let is_it = |certificate: &Certificate| {
                [Purpose::Gateway, Purpose::TlsServer]
                    .into_iter()
                    .any(|purpose| purpose.check(certificate).is_err())
            };
            CertError::ExtendedKeyUsage {
                subject: named(&is_it),
                usages: usages.collect(),
            }
        }
        Error::InvalidSignatureForPublicKey => {
            // *ring* says no more about an RSA key that is too short.
            let short =
                |issuer: &&Certificate| matches!(issuer.key_kind(), KeyKind::Rsa { bits } if bits < 2048);
            match issuers().find(short) {
                Some(issuer) => CertError::WeakKey {
                    subject: issuer.subject_text(),
                    key: issuer.key_kind(),
                },
                None => CertError::ChainSignature { subject: subject() },
            }
        }
        Error::UnsupportedSignatureAlgorithmContext(context) => {
            unsupported_signature(subject(), &context.signature_algorithm_id)
        }
        Error::UnsupportedSignatureAlgorithmForPublicKeyContext(context) => {
            unsupported_signature(subject(), &context.signature_algorithm_id)
        }
        Error::UnsupportedSignatureAlgorithm | Error::UnsupportedSignatureAlgorithmForPublicKey => {
            CertError::UnsupportedSignature {
                subject: subject(),
                algorithm: "unknown".to_owned(),
            }
        }
        Error::MaximumNameConstraintComparisonsExceeded
        | Error::MaximumPathBuildCallsExceeded
        | Error::MaximumPathDepthExceeded
        | Error::MaximumSignatureChecksExceeded => CertError::TooComplex { subject: subject() },
        other => CertError::Malformed {
            what: format!("{other:?}"),
        },
    }
}

fn unsupported_signature(subject: String, algorithm: &[u8]) -> CertError {
    match algorithms::weak_name(algorithm) {
        Some(weak) => CertError::WeakSignature {
            subject,
            algorithm: weak.to_owned(),
        },
        None => {
            let oid = Der::new(algorithm)
                .expect(der::OID)
                .map(|oid| name::dotted(oid.body));
            CertError::UnsupportedSignature {
                subject,
                algorithm: oid.unwrap_or_else(|| "unknown".to_owned()),
            }
        }
    }
}

/// Why no anchor vouches for the chain: none has the name that it ends in, or the one that has cannot.
fn unknown_issuer(chain: &[Certificate], anchors: &[Certificate], now: UnixTime) -> CertError {
    let Some(leaf) = chain.first() else {
        return CertError::NoCertificate;
    };
    let mut top = leaf;
    for _ in 0..chain.len() {
        let above = chain
            .iter()
            .skip(1)
            .find(|issuer| issuer.subject_der() == top.issuer_der());
        match above {
            Some(issuer) if !top.is_self_issued() => top = issuer,
            _ => break,
        }
    }
    let named = anchors
        .iter()
        .filter(|anchor| anchor.subject_der() == top.issuer_der());
    for anchor in named {
        if let Err(error) = check_validity(anchor, now) {
            return error;
        }
        if !anchor.may_anchor() {
            return CertError::NotACa {
                subject: anchor.subject_text(),
            };
        }
    }
    CertError::UnknownIssuer {
        subject: leaf.subject_text(),
        issuer: top.issuer_text(),
    }
}

/// Whether the certificate carries the identity that we demand.
pub(crate) fn carries(certificate: &Certificate, identity: &Identity) -> Result<bool, CertError> {
    match identity {
        Identity::Dn(wanted) => Ok(dn_matches(certificate.subject_der(), wanted)
            || certificate
                .subject_alt_names()
                .iter()
                .any(|name| matches!(name, SubjectName::Directory(name) if dn_matches(name, wanted)))),
        Identity::Fqdn(name) => DnsName::try_from(name.as_str()).map_or(Ok(false), |name| {
            is_valid_for(certificate, &ServerName::DnsName(name))
        }),
        Identity::Address(address) => is_valid_for(certificate, &ServerName::IpAddress((*address).into())),
        Identity::Rfc822(wanted) => Ok(certificate
            .subject_alt_names()
            .iter()
            .any(|name| matches!(name, SubjectName::Rfc822(name) if same_mailbox(name, wanted)))),
        Identity::KeyId(_) => Ok(false),
    }
}

/// Whether the certificate confirms what the gateway calls itself: as [`carries`], but a distinguished name must be the
/// subject octet for octet, and a gateway may call itself by its wildcard.
fn confirms(certificate: &Certificate, received: &Identity) -> Result<bool, CertError> {
    match received {
        Identity::Dn(name) => Ok(certificate.subject_der() == name.as_slice()),
        Identity::Fqdn(wildcard) if wildcard.starts_with("*.") => Ok(certificate
            .subject_alt_names()
            .iter()
            .any(|name| matches!(name, SubjectName::Dns(name) if name.eq_ignore_ascii_case(wildcard)))),
        Identity::Fqdn(_) | Identity::Address(_) | Identity::Rfc822(_) | Identity::KeyId(_) => {
            carries(certificate, received)
        }
    }
}

/// webpki's comparison of DNS names and addresses with the subjectAltNames.
fn is_valid_for(certificate: &Certificate, name: &ServerName<'_>) -> Result<bool, CertError> {
    let der = CertificateDer::from(certificate.der());
    let parsed = EndEntityCert::try_from(&der).map_err(|error| {
        explain(
            &error,
            std::slice::from_ref(certificate),
            &[],
            UnixTime::default(),
        )
    })?;
    Ok(parsed.verify_is_valid_for_subject_name(name).is_ok())
}

/// Whether two e-mail addresses are the same: the host without regard to case (RFC 5280, section 7.5).
fn same_mailbox(left: &str, right: &str) -> bool {
    match (left.rsplit_once('@'), right.rsplit_once('@')) {
        (Some((left, left_host)), Some((right, right_host))) => {
            left == right && left_host.eq_ignore_ascii_case(right_host)
        }
        _ => false,
    }
}

/// The names in a certificate that could have been `wanted`.
fn presented(certificate: &Certificate, wanted: &Identity) -> Vec<String> {
    let subject = matches!(wanted, Identity::Dn(_)).then(|| certificate.subject_text());
    let names = certificate.subject_alt_names().iter().map(ToString::to_string);
    subject.into_iter().chain(names).take(MAX_LISTED).collect()
}
