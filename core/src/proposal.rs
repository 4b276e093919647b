//! What is offered and what is chosen: strongSwan's proposal keywords, our defaults, and the strict check of the
//! gateway's choice (RFC 7296, sections 2.7 and 3.3; RFC 8247; RFC 8221; RFC 9370).
//!
//! A proposal is written as keywords with dashes between them, `aes256gcm16-prfsha384-x25519`. Keywords of one kind
//! are in order of preference; the order of kinds does not matter. An additional key exchange (RFC 9370) is the keyword of
//! a key exchange method with its place before it, `ke1_mlkem768` to `ke7_mlkem768`; `ke1_none` beside it makes it
//! optional.

mod additional;

mod choose;

use std::fmt;

pub use additional::AdditionalKeyExchanges;
pub use choose::{Chosen, choose_esp, choose_ike};

use crate::crypto::{CipherSuite, Encr, Integ, KeyExchange, Prf};
use crate::wire::iana::{EncrId, EsnId, IntegId, KeMethod, PrfId, ProtocolId, TransformType};
use crate::wire::{self, EspSpi};

/// One algorithm on offer (RFC 7296, section 3.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Transform {
    /// What it is for.
    pub kind: TransformType,
    /// Its number in IANA's registry for `kind`.
    pub id: u16,
    /// The Key Length attribute, for ciphers with more than one key length.
    pub key_bits: Option<u16>,
}

/// One IKE proposal: alternatives for each kind of algorithm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IkeProposal {
    /// The algorithms, grouped by kind and in order of preference within one.
    pub transforms: Vec<Transform>,
}

/// One ESP proposal: alternatives for each kind of algorithm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EspProposal {
    /// Ciphers, integrity algorithms and sequence numbers, grouped by kind and in order of preference within one.
    pub transforms: Vec<Transform>,
    /// The key exchange methods of CREATE_CHILD_SA. They are left out in IKE_AUTH (RFC 7296, section 1.2).
    pub key_exchanges: Vec<KeMethod>,
    /// The additional key exchanges of CREATE_CHILD_SA, left out in IKE_AUTH too.
    pub additional: Vec<Transform>,
}

/// The algorithms of an IKE SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IkeSuite {
    /// What protects IKE messages.
    pub cipher: CipherSuite,
    /// What derives keys.
    pub prf: Prf,
    /// What agrees on the secret.
    pub ke: KeMethod,
    /// What agrees on further secrets.
    pub additional: AdditionalKeyExchanges,
}

/// The algorithms of a Child SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EspSuite {
    /// What protects packets.
    pub cipher: CipherSuite,
    /// Sequence numbers have 64 bits (RFC 4303, section 2.2.1).
    pub esn: bool,
    /// The key exchange of CREATE_CHILD_SA, if there was one.
    pub ke: Option<KeMethod>,
    /// What agrees on further secrets after CREATE_CHILD_SA.
    pub additional: AdditionalKeyExchanges,
}

impl IkeSuite {
    /// Whether any of its key exchanges holds against a quantum computer.
    #[must_use]
    pub fn is_post_quantum(&self) -> bool {
        let mut methods = self.additional.methods().chain([self.ke]);
        methods.any(KeyExchange::is_post_quantum)
    }
}

/// Why a text is not a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProposalError {
    /// Where the keyword is that is wrong, in octets of the text; the whole text when it is not about one keyword.
    pub span: std::ops::Range<usize>,
    /// What is wrong.
    pub kind: ProposalErrorKind,
}

/// What is wrong with a proposal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposalErrorKind {
    /// No keyword at all, or nothing between two dashes.
    #[error("a keyword is missing; write a proposal like `aes256gcm16-prfsha384-x25519`")]
    Empty,
    /// Not a keyword that strongSwan or we know.
    #[error("`{keyword}` is not a known algorithm{}", did_you_mean(*.suggestion))]
    Unknown {
        /// The word.
        keyword: String,
        /// The known keyword that is most like it.
        suggestion: Option<&'static str>,
    },
    /// A known keyword for something that we do not do.
    #[error("`{keyword}` cannot be used: {reason}")]
    Unsupported {
        /// The word.
        keyword: String,
        /// Why not.
        reason: &'static str,
    },
    /// An additional key exchange with what is no key exchange.
    #[error("`{keyword}` is not a key exchange method with its place, such as `ke1_mlkem768`")]
    NotAKeyExchange {
        /// The word.
        keyword: String,
    },
    /// A keyword that has no place in this protocol.
    #[error("`{keyword}` has no meaning in an {protocol} proposal")]
    OutOfPlace {
        /// The word.
        keyword: String,
        /// `IKE` or `ESP`.
        protocol: &'static str,
    },
    /// AEAD ciphers and others in one proposal (RFC 7296, section 3.3).
    #[error("AES-GCM and ChaCha20-Poly1305 cannot share a proposal with AES-CBC; write two proposals")]
    MixedCiphers,
    /// No cipher.
    #[error("a cipher is missing, such as `aes256gcm16`")]
    NoCipher,
    /// AES-CBC without an integrity algorithm.
    #[error("AES-CBC needs an integrity algorithm, such as `sha256`")]
    NoIntegrity,
    /// An AEAD cipher in IKE without a pseudorandom function.
    #[error("a pseudorandom function is missing, such as `prfsha384`")]
    NoPrf,
    /// IKE without a key exchange method.
    #[error("a key exchange method is missing, such as `x25519`")]
    NoKeyExchange,
}

impl fmt::Display for ProposalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)
    }
}

impl std::error::Error for ProposalError {}

/// Why the gateway's choice is not acceptable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// Not exactly one proposal.
    #[error("the gateway chose {0} proposals instead of one")]
    Proposals(usize),
    /// A proposal for another protocol.
    #[error("the gateway chose a proposal for another protocol ({0})")]
    Protocol(ProtocolId),
    /// A proposal number that we did not send.
    #[error("the gateway chose proposal {0}, which was not offered")]
    Number(u8),
    /// An SPI of the wrong length, or zero.
    #[error("the gateway sent an SPI of {0} octets that cannot be used")]
    Spi(usize),
    /// A kind of algorithm that is chosen more than once, or not at all.
    #[error("the gateway chose {count} algorithms of kind {kind} instead of one")]
    Count {
        /// The kind.
        kind: TransformType,
        /// How many.
        count: usize,
    },
    /// The same key exchange method in two places (RFC 9370, section 2.2.1).
    #[error("the gateway chose the key exchange method {0} twice")]
    Repeated(KeMethod),
    /// An algorithm that is not in the proposal of that number.
    #[error("the gateway chose {kind} algorithm {id}{}, which was not offered", key_length(*.key_bits))]
    NotOffered {
        /// The kind.
        kind: TransformType,
        /// The algorithm's number.
        id: u16,
        /// The key length that came with it.
        key_bits: Option<u16>,
    },
}

/// What we offer for the IKE SA unless the profile says otherwise: AEAD ciphers with ML-KEM-768 beside the classical key
/// exchange, the same without it, then AES-CBC; nothing with SHA-1.
///
/// The second is the first for gateways that do not know RFC 9370: they skip a proposal with a transform type that they
/// do not know (RFC 7296, section 3.3.6). To those that know it, it says that ML-KEM is optional. The first does without
/// the MODP groups, which no gateway with ML-KEM needs, so that IKE_SA_INIT stays below 576 octets.
#[must_use]
pub fn default_ike() -> Vec<IkeProposal> {
    vec![
        IkeProposal {
            transforms: [
                AEAD_CIPHERS,
                PRFS,
                &key_exchange_transforms(&[KeMethod::CURVE25519, KeMethod::ECP_256, KeMethod::ECP_384]),
                &[ADDKE1_ML_KEM_768],
            ]
            .concat(),
        },
        IkeProposal {
            transforms: [
                AEAD_CIPHERS,
                PRFS,
                &key_exchange_transforms(&[
                    KeMethod::CURVE25519,
                    KeMethod::ECP_256,
                    KeMethod::ECP_384,
                    KeMethod::MODP_4096,
                    KeMethod::MODP_3072,
                    KeMethod::MODP_2048,
                ]),
            ]
            .concat(),
        },
        IkeProposal {
            transforms: [
                CBC_CIPHERS,
                IKE_INTEGRITY,
                PRFS,
                &key_exchange_transforms(&[
                    KeMethod::ECP_256,
                    KeMethod::CURVE25519,
                    KeMethod::ECP_384,
                    KeMethod::MODP_4096,
                    KeMethod::MODP_3072,
                    KeMethod::MODP_2048,
                ]),
            ]
            .concat(),
        },
    ]
}

/// What we offer for Child SAs unless the profile says otherwise.
///
/// Key exchange methods are for CREATE_CHILD_SA alone: a rekeying with a fresh key exchange, and ML-KEM-768 as
/// [`default_ike`] has it.
#[must_use]
pub fn default_esp() -> Vec<EspProposal> {
    let key_exchanges = vec![
        KeMethod::CURVE25519,
        KeMethod::ECP_256,
        KeMethod::ECP_384,
        KeMethod::MODP_4096,
        KeMethod::MODP_3072,
        KeMethod::MODP_2048,
    ];
    let aead = EspProposal {
        transforms: [AEAD_CIPHERS, SEQUENCE_NUMBERS].concat(),
        key_exchanges: key_exchanges.clone(),
        additional: Vec::new(),
    };
    vec![
        EspProposal {
            additional: vec![ADDKE1_ML_KEM_768],
            ..aead.clone()
        },
        aead,
        EspProposal {
            transforms: [CBC_CIPHERS, ESP_INTEGRITY, SEQUENCE_NUMBERS].concat(),
            key_exchanges,
            additional: Vec::new(),
        },
    ]
}

impl IkeProposal {
    /// Reads keywords. As strongSwan does, the pseudorandom function defaults to the integrity algorithm's, and an
    /// integrity algorithm beside an AEAD cipher is used for that alone.
    ///
    /// # Errors
    /// A keyword that is unknown, refused or out of place, or a kind of algorithm that is missing.
    pub fn parse(text: &str) -> Result<Self, ProposalError> {
        let words = Words::parse(text, "IKE")?;
        let whole = |kind| {
            Err(ProposalError {
                span: 0..text.len(),
                kind,
            })
        };
        let ciphers = words.of(TransformType::ENCR);
        let mut integrity = words.of(TransformType::INTEG);
        let mut prfs = words.of(TransformType::PRF);
        let key_exchanges = words.of(TransformType::KE);
        let aead = match aead(&ciphers) {
            Ok(aead) => aead,
            Err(kind) => return whole(kind),
        };
        if prfs.is_empty() {
            prfs = integrity.iter().filter_map(prf_of_integrity).collect();
        }
        if aead {
            integrity.clear();
        } else if integrity.is_empty() {
            return whole(ProposalErrorKind::NoIntegrity);
        }
        if prfs.is_empty() {
            return whole(ProposalErrorKind::NoPrf);
        }
        if key_exchanges.is_empty() {
            return whole(ProposalErrorKind::NoKeyExchange);
        }
        Ok(Self {
            transforms: [ciphers, integrity, prfs, key_exchanges, words.additional()].concat(),
        })
    }

    /// The proposal as payload content. `spi` is empty in IKE_SA_INIT and our new SPI when rekeying.
    #[must_use]
    pub fn to_wire(&self, number: u8, spi: &[u8]) -> wire::Proposal<'static> {
        wire_proposal(number, ProtocolId::IKE, spi, &self.transforms)
    }

    /// Puts a key exchange method first, where it is on offer.
    pub(crate) fn prefer(&mut self, method: KeMethod) {
        let wanted = plain(TransformType::KE, method.0);
        let first = self.transforms.iter().position(|t| t.kind == TransformType::KE);
        let place = self.transforms.iter().position(|t| *t == wanted);
        if let (Some(first), Some(place)) = (first, place) {
            let transform = self.transforms.remove(place);
            self.transforms.insert(first, transform);
        }
    }

    /// Whether it offers this suite's cipher and pseudorandom function.
    pub(crate) fn offers(&self, suite: &IkeSuite) -> bool {
        let mut wanted = cipher_transforms(&suite.cipher);
        wanted.push(plain(TransformType::PRF, suite.prf.id().0));
        wanted.iter().all(|transform| self.transforms.contains(transform))
    }

    /// The key exchange methods on offer, in order of preference.
    pub fn key_exchanges(&self) -> impl Iterator<Item = KeMethod> + '_ {
        self.transforms
            .iter()
            .filter(|t| t.kind == TransformType::KE)
            .map(|t| KeMethod(t.id))
    }

    /// Whether additional key exchanges are on offer, so that IKE_INTERMEDIATE must be negotiated (RFC 9370, section
    /// 2.2.1).
    #[must_use]
    pub fn has_additional(&self) -> bool {
        self.transforms.iter().any(additional::is_additional)
    }

    /// Whether one of the methods on offer holds against a quantum computer.
    #[must_use]
    pub fn is_post_quantum(&self) -> bool {
        let additional = self.transforms.iter().filter(|t| additional::is_additional(t));
        let mut methods = additional.map(|t| KeMethod(t.id));
        methods.any(KeyExchange::is_post_quantum)
    }

    /// The keywords of algorithms that are only kept for old gateways.
    #[must_use]
    pub fn legacy(&self) -> Vec<&'static str> {
        legacy(&self.transforms)
    }
}

impl EspProposal {
    /// Reads keywords. As strongSwan does, without `esn` it offers 32-bit sequence numbers alone.
    ///
    /// # Errors
    /// A keyword that is unknown, refused or out of place, or a kind of algorithm that is missing.
    pub fn parse(text: &str) -> Result<Self, ProposalError> {
        let words = Words::parse(text, "ESP")?;
        let whole = |kind| {
            Err(ProposalError {
                span: 0..text.len(),
                kind,
            })
        };
        let ciphers = words.of(TransformType::ENCR);
        let mut integrity = words.of(TransformType::INTEG);
        let mut sequence_numbers = words.of(TransformType::ESN);
        let aead = match aead(&ciphers) {
            Ok(aead) => aead,
            Err(kind) => return whole(kind),
        };
        if aead {
            integrity.clear();
        } else if integrity.is_empty() {
            return whole(ProposalErrorKind::NoIntegrity);
        }
        if sequence_numbers.is_empty() {
            sequence_numbers.push(NO_ESN);
        }
        let key_exchanges = words.of(TransformType::KE);
        let additional = words.additional();
        // RFC 9370, section 2.2.4: additional to one in CREATE_CHILD_SA itself.
        if key_exchanges.is_empty() && !additional.is_empty() {
            return whole(ProposalErrorKind::NoKeyExchange);
        }
        Ok(Self {
            transforms: [ciphers, integrity, sequence_numbers].concat(),
            key_exchanges: key_exchanges.iter().map(|t| KeMethod(t.id)).collect(),
            additional,
        })
    }

    /// The proposal as payload content, with our inbound SPI. `with_ke` outside IKE_AUTH only.
    #[must_use]
    pub fn to_wire(&self, number: u8, spi: EspSpi, with_ke: bool) -> wire::Proposal<'static> {
        wire_proposal(
            number,
            ProtocolId::ESP,
            &spi.0.to_be_bytes(),
            &self.offer(with_ke),
        )
    }

    /// The keywords of algorithms that are only kept for old gateways.
    #[must_use]
    pub fn legacy(&self) -> Vec<&'static str> {
        legacy(&self.offer(true))
    }

    /// Whether it offers this suite's cipher.
    pub(crate) fn offers(&self, suite: &EspSuite) -> bool {
        let wanted = cipher_transforms(&suite.cipher);
        wanted.iter().all(|transform| self.transforms.contains(transform))
    }

    fn offer(&self, with_ke: bool) -> Vec<Transform> {
        let mut transforms = self.transforms.clone();
        if with_ke {
            transforms.extend(key_exchange_transforms(&self.key_exchanges));
            transforms.extend(&self.additional);
        }
        transforms
    }
}

/// An SA payload's content for IKE: the proposals numbered from one. `spi` as in [`IkeProposal::to_wire`].
#[must_use]
pub fn ike_offer(proposals: &[IkeProposal], spi: &[u8]) -> Vec<wire::Proposal<'static>> {
    proposals
        .iter()
        .zip(1..=u8::MAX)
        .map(|(proposal, number)| proposal.to_wire(number, spi))
        .collect()
}

/// An SA payload's content for ESP: the proposals numbered from one. `with_ke` as in [`EspProposal::to_wire`]; those that
/// differ in their key exchanges alone are one proposal without.
#[must_use]
pub fn esp_offer(proposals: &[EspProposal], spi: EspSpi, with_ke: bool) -> Vec<wire::Proposal<'static>> {
    let spi = spi.0.to_be_bytes();
    esp_alternatives(proposals, with_ke)
        .iter()
        .zip(1..=u8::MAX)
        .map(|(transforms, number)| wire_proposal(number, ProtocolId::ESP, &spi, transforms))
        .collect()
}

/// The transforms of each proposal of [`esp_offer`].
fn esp_alternatives(proposals: &[EspProposal], with_ke: bool) -> Vec<Vec<Transform>> {
    let mut alternatives = Vec::with_capacity(proposals.len());
    for proposal in proposals {
        let transforms = proposal.offer(with_ke);
        if !alternatives.contains(&transforms) {
            alternatives.push(transforms);
        }
    }
    alternatives
}

/// Checks the gateway's choice for an IKE SA against what [`ike_offer`] offered (RFC 7296, sections 2.7 and 3.3).
/// The SPI is the caller's to check: it is empty in IKE_SA_INIT and eight octets when rekeying.
///
/// # Errors
/// The choice is not exactly one of the combinations offered.
pub fn select_ike(offered: &[IkeProposal], answer: &[wire::Proposal<'_>]) -> Result<IkeSuite, SelectError> {
    let (answer, offered) = chosen(ProtocolId::IKE, offered, answer)?;
    let choice = Choice::check(&offered.transforms, answer)?;
    let cipher = choice.cipher()?;
    let prf = choice.one(TransformType::PRF)?;
    let ke = KeMethod(choice.one(TransformType::KE)?.id);
    Ok(IkeSuite {
        cipher,
        prf: Prf::from_id(PrfId(prf.id)).ok_or_else(|| not_offered(prf))?,
        ke,
        additional: AdditionalKeyExchanges::check(&choice.0, &offered.transforms, ke)?,
    })
}

/// Checks the gateway's choice for a Child SA against what [`esp_offer`] offered with the same `with_ke`, and takes
/// its inbound SPI out of it.
///
/// # Errors
/// The choice is not exactly one of the combinations offered, or the SPI is not four octets or below 256, which is
/// reserved (RFC 4303, section 2.1).
pub fn select_esp(
    offered: &[EspProposal],
    answer: &[wire::Proposal<'_>],
    with_ke: bool,
) -> Result<(EspSuite, EspSpi), SelectError> {
    let alternatives = esp_alternatives(offered, with_ke);
    let (answer, offered) = chosen(ProtocolId::ESP, &alternatives, answer)?;
    let spi = esp_spi(&answer.spi).ok_or(SelectError::Spi(answer.spi.len()))?;
    let choice = Choice::check(offered, answer)?;
    let mut suite = EspSuite {
        cipher: choice.cipher()?,
        esn: choice.one(TransformType::ESN)? == ESN,
        ke: None,
        additional: AdditionalKeyExchanges::default(),
    };
    if offered.iter().any(|t| t.kind == TransformType::KE) {
        let ke = KeMethod(choice.one(TransformType::KE)?.id);
        suite.ke = Some(ke);
        suite.additional = AdditionalKeyExchanges::check(&choice.0, offered, ke)?;
    }
    Ok((suite, spi))
}

/// An SPI of ESP: four octets, and none of the first 256, which are reserved (RFC 4303, section 2.1).
fn esp_spi(octets: &[u8]) -> Option<EspSpi> {
    let spi = <[u8; 4]>::try_from(octets).ok().map(u32::from_be_bytes)?;
    (spi >= 256).then_some(EspSpi(spi))
}

/// The one proposal of an answer, with the one of ours that has its number.
fn chosen<'a, 'w, P>(
    protocol: ProtocolId,
    offered: &'a [P],
    answer: &'a [wire::Proposal<'w>],
) -> Result<(&'a wire::Proposal<'w>, &'a P), SelectError> {
    let [answer] = answer else {
        return Err(SelectError::Proposals(answer.len()));
    };
    if answer.protocol != protocol {
        return Err(SelectError::Protocol(answer.protocol));
    }
    let ours = usize::from(answer.number)
        .checked_sub(1)
        .and_then(|index| offered.get(index));
    Ok((answer, ours.ok_or(SelectError::Number(answer.number))?))
}

/// The transforms of an acceptable answer: each was offered, no kind occurs twice.
struct Choice(Vec<Transform>);

impl Choice {
    fn check(offered: &[Transform], answer: &wire::Proposal<'_>) -> Result<Self, SelectError> {
        let mut chosen: Vec<Transform> = Vec::with_capacity(answer.transforms.len());
        for transform in &answer.transforms {
            let known = transform.attributes.is_empty();
            let transform = lenient(transform);
            if !known {
                // Another attribute makes it another algorithm than the one offered (RFC 7296, section 3.3.6).
                return Err(not_offered(transform));
            }
            if chosen.iter().any(|t| t.kind == transform.kind) {
                let count = answer
                    .transforms
                    .iter()
                    .filter(|t| t.kind == transform.kind)
                    .count();
                return Err(SelectError::Count {
                    kind: transform.kind,
                    count,
                });
            }
            chosen.push(transform);
        }
        // Some gateways say INTEG NONE beside an AEAD cipher, which RFC 7296, section 3.3 allows.
        let aead = chosen.iter().any(is_aead);
        chosen.retain(|t| !(aead && *t == INTEGRITY_NONE));
        match chosen.iter().find(|t| !offered.contains(t)) {
            Some(transform) => Err(not_offered(*transform)),
            None => Ok(Self(chosen)),
        }
    }

    fn one(&self, kind: TransformType) -> Result<Transform, SelectError> {
        self.0
            .iter()
            .copied()
            .find(|t| t.kind == kind)
            .ok_or(SelectError::Count { kind, count: 0 })
    }

    fn cipher(&self) -> Result<CipherSuite, SelectError> {
        let transform = self.one(TransformType::ENCR)?;
        let encr = match (EncrId(transform.id), transform.key_bits) {
            (EncrId::AES_GCM_16, Some(bits)) => Encr::AesGcm16 { bits },
            (EncrId::CHACHA20_POLY1305, None) => Encr::ChaCha20Poly1305,
            (EncrId::AES_CBC, Some(bits)) => Encr::AesCbc { bits },
            _ => return Err(not_offered(transform)),
        };
        if is_aead(&transform) {
            return Ok(CipherSuite { encr, integ: None });
        }
        let transform = self.one(TransformType::INTEG)?;
        let integ = match IntegId(transform.id) {
            IntegId::HMAC_SHA1_96 => Integ::HmacSha1_96,
            IntegId::HMAC_SHA2_256_128 => Integ::HmacSha2_256_128,
            IntegId::HMAC_SHA2_384_192 => Integ::HmacSha2_384_192,
            IntegId::HMAC_SHA2_512_256 => Integ::HmacSha2_512_256,
            _ => return Err(not_offered(transform)),
        };
        Ok(CipherSuite {
            encr,
            integ: Some(integ),
        })
    }
}

/// A transform as received. Old gateways leave the key length of AES-CBC with 128 bits away.
fn lenient(transform: &wire::Transform) -> Transform {
    let bare_cbc = transform.kind == TransformType::ENCR && transform.id == EncrId::AES_CBC.0;
    let key_bits = transform.key_bits.or_else(|| bare_cbc.then_some(128));
    Transform {
        kind: transform.kind,
        id: transform.id,
        key_bits,
    }
}

const fn not_offered(transform: Transform) -> SelectError {
    SelectError::NotOffered {
        kind: transform.kind,
        id: transform.id,
        key_bits: transform.key_bits,
    }
}

fn wire_proposal(
    number: u8,
    protocol: ProtocolId,
    spi: &[u8],
    transforms: &[Transform],
) -> wire::Proposal<'static> {
    wire::Proposal {
        number,
        protocol,
        spi: spi.to_vec().into(),
        transforms: transforms
            .iter()
            .map(|t| wire::Transform::new(t.kind, t.id, t.key_bits))
            .collect(),
    }
}

fn key_exchange_transforms(methods: &[KeMethod]) -> Vec<Transform> {
    methods
        .iter()
        .map(|method| plain(TransformType::KE, method.0))
        .collect()
}

fn is_aead(transform: &Transform) -> bool {
    transform.kind == TransformType::ENCR
        && [EncrId::AES_GCM_16, EncrId::CHACHA20_POLY1305].contains(&EncrId(transform.id))
}

/// Whether these ciphers are AEAD, which they are all or none.
fn aead(ciphers: &[Transform]) -> Result<bool, ProposalErrorKind> {
    match ciphers.iter().filter(|t| is_aead(t)).count() {
        _ if ciphers.is_empty() => Err(ProposalErrorKind::NoCipher),
        0 => Ok(false),
        n if n == ciphers.len() => Ok(true),
        _ => Err(ProposalErrorKind::MixedCiphers),
    }
}

fn prf_of_integrity(transform: &Transform) -> Option<Transform> {
    let prf = match IntegId(transform.id) {
        IntegId::HMAC_SHA1_96 => PrfId::HMAC_SHA1,
        IntegId::HMAC_SHA2_256_128 => PrfId::HMAC_SHA2_256,
        IntegId::HMAC_SHA2_384_192 => PrfId::HMAC_SHA2_384,
        IntegId::HMAC_SHA2_512_256 => PrfId::HMAC_SHA2_512,
        _ => return None,
    };
    Some(plain(TransformType::PRF, prf.0))
}

fn legacy(transforms: &[Transform]) -> Vec<&'static str> {
    const LEGACY: &[Transform] = &[
        plain(TransformType::INTEG, IntegId::HMAC_SHA1_96.0),
        plain(TransformType::PRF, PrfId::HMAC_SHA1.0),
        plain(TransformType::KE, KeMethod::MODP_1024.0),
        plain(TransformType::KE, KeMethod::MODP_1536.0),
    ];
    transforms
        .iter()
        .map(|t| additional::place_of(*t).map_or(*t, |(_, method)| method))
        .filter(|t| LEGACY.contains(t))
        .filter_map(|t| keyword(&t))
        .collect()
}

/// The keywords of a text, as transforms in the order written, each once.
struct Words(Vec<Transform>);

impl Words {
    fn parse(text: &str, protocol: &'static str) -> Result<Self, ProposalError> {
        let mut transforms = Vec::new();
        let mut start = 0;
        for word in text.split('-') {
            let span = start..start + word.len();
            start = span.end + 1;
            let read = additional::read_word(word).unwrap_or_else(|| read_word(word, protocol));
            let transform = read.map_err(|kind| ProposalError { span, kind })?;
            if !transforms.contains(&transform) {
                transforms.push(transform);
            }
        }
        Ok(Self(transforms))
    }

    fn of(&self, kind: TransformType) -> Vec<Transform> {
        self.0.iter().copied().filter(|t| t.kind == kind).collect()
    }

    /// The additional key exchanges in the order of their places.
    fn additional(&self) -> Vec<Transform> {
        additional::PLACES
            .into_iter()
            .flat_map(|kind| self.of(kind))
            .collect()
    }
}

fn read_word(word: &str, protocol: &'static str) -> Result<Transform, ProposalErrorKind> {
    if word.is_empty() {
        return Err(ProposalErrorKind::Empty);
    }
    let keyword = word.to_owned();
    let Some((_, transform)) = KEYWORDS
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(word))
    else {
        let lower = word.to_ascii_lowercase();
        return Err(
            match REFUSED
                .iter()
                .find(|(pattern, _)| matches_pattern(&lower, pattern))
            {
                Some((_, reason)) => ProposalErrorKind::Unsupported { keyword, reason },
                None => ProposalErrorKind::Unknown {
                    keyword,
                    suggestion: nearest(&lower),
                },
            },
        );
    };
    let foreign = if protocol == "IKE" {
        TransformType::ESN
    } else {
        TransformType::PRF
    };
    if transform.kind == foreign {
        return Err(ProposalErrorKind::OutOfPlace { keyword, protocol });
    }
    let method = KeMethod(transform.id);
    if transform.kind == TransformType::KE && protocol == "IKE" && KeyExchange::is_post_quantum(method) {
        return Err(ProposalErrorKind::Unsupported {
            keyword,
            reason: ML_KEM_FIRST,
        });
    }
    Ok(*transform)
}

/// A pattern is a whole word, or the beginning of one and a `*`.
fn matches_pattern(word: &str, pattern: &str) -> bool {
    pattern
        .strip_suffix('*')
        .map_or(word == pattern, |beginning| word.starts_with(beginning))
}

fn nearest(word: &str) -> Option<&'static str> {
    KEYWORDS
        .iter()
        .map(|(known, _)| (strsim::osa_distance(word, known), *known))
        .filter(|(distance, known)| *distance <= known.len().div_ceil(4))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion.map_or_else(String::new, |known| format!("; did you mean `{known}`?"))
}

fn key_length(bits: Option<u16>) -> String {
    bits.map_or_else(String::new, |bits| format!(" with {bits} bits"))
}

/// The first keyword for a transform.
fn keyword(transform: &Transform) -> Option<&'static str> {
    KEYWORDS
        .iter()
        .find(|(_, known)| known == transform)
        .map(|(word, _)| *word)
}

fn write_keywords(f: &mut fmt::Formatter<'_>, transforms: &[Transform]) -> fmt::Result {
    for (index, transform) in transforms.iter().enumerate() {
        if index > 0 {
            f.write_str("-")?;
        }
        let mut transform = *transform;
        if let Some((place, method)) = additional::place_of(transform) {
            write!(f, "ke{place}_")?;
            if KeMethod(method.id) == KeMethod::NONE {
                f.write_str("none")?;
                continue;
            }
            transform = method;
        }
        match keyword(&transform) {
            Some(word) => f.write_str(word)?,
            None => write!(f, "{}:{}", transform.kind, transform.id)?,
        }
    }
    Ok(())
}

/// The keywords that [`IkeProposal::parse`] reads.
impl fmt::Display for IkeProposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_keywords(f, &self.transforms)
    }
}

/// The keywords that [`EspProposal::parse`] reads.
impl fmt::Display for EspProposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_keywords(f, &self.offer(true))
    }
}

/// The keywords of the one combination, such as `aes256gcm16-prfsha384-x25519-ke1_mlkem768`.
impl fmt::Display for IkeSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut transforms = cipher_transforms(&self.cipher);
        transforms.push(plain(TransformType::PRF, self.prf.id().0));
        transforms.push(plain(TransformType::KE, self.ke.0));
        transforms.extend(self.additional.transforms());
        write_keywords(f, &transforms)
    }
}

/// The keywords of the one combination, such as `aes256gcm16-x25519-esn`.
impl fmt::Display for EspSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut transforms = cipher_transforms(&self.cipher);
        transforms.extend(self.ke.map(|method| plain(TransformType::KE, method.0)));
        transforms.extend(self.additional.transforms());
        transforms.extend(self.esn.then_some(ESN));
        write_keywords(f, &transforms)
    }
}

fn cipher_transforms(cipher: &CipherSuite) -> Vec<Transform> {
    let (id, key_bits) = match cipher.encr {
        Encr::AesGcm16 { bits } => (EncrId::AES_GCM_16, Some(bits)),
        Encr::ChaCha20Poly1305 => (EncrId::CHACHA20_POLY1305, None),
        Encr::AesCbc { bits } => (EncrId::AES_CBC, Some(bits)),
    };
    let mut transforms = vec![Transform {
        kind: TransformType::ENCR,
        id: id.0,
        key_bits,
    }];
    transforms.extend(cipher.integ.map(|integ| {
        let id = match integ {
            Integ::HmacSha1_96 => IntegId::HMAC_SHA1_96,
            Integ::HmacSha2_256_128 => IntegId::HMAC_SHA2_256_128,
            Integ::HmacSha2_384_192 => IntegId::HMAC_SHA2_384_192,
            Integ::HmacSha2_512_256 => IntegId::HMAC_SHA2_512_256,
        };
        plain(TransformType::INTEG, id.0)
    }));
    transforms
}

const fn plain(kind: TransformType, id: u16) -> Transform {
    Transform {
        kind,
        id,
        key_bits: None,
    }
}

const fn cipher(id: EncrId, bits: u16) -> Transform {
    Transform {
        kind: TransformType::ENCR,
        id: id.0,
        key_bits: Some(bits),
    }
}

const NO_ESN: Transform = plain(TransformType::ESN, EsnId::NO_ESN.0);
const ESN: Transform = plain(TransformType::ESN, EsnId::ESN.0);
const INTEGRITY_NONE: Transform = plain(TransformType::INTEG, IntegId::NONE.0);
const ADDKE1_ML_KEM_768: Transform = plain(TransformType::ADDKE1, KeMethod::ML_KEM_768.0);

const NOT_IN_THIS_VERSION: &str = "it is not supported by this version";
const ML_KEM_FIRST: &str =
    "it is too long for IKE_SA_INIT; write it as an additional key exchange, such as `ke1_mlkem768`";

const AEAD_CIPHERS: &[Transform] = &[
    cipher(EncrId::AES_GCM_16, 256),
    cipher(EncrId::AES_GCM_16, 128),
    plain(TransformType::ENCR, EncrId::CHACHA20_POLY1305.0),
];
const CBC_CIPHERS: &[Transform] = &[cipher(EncrId::AES_CBC, 256), cipher(EncrId::AES_CBC, 128)];
const PRFS: &[Transform] = &[
    plain(TransformType::PRF, PrfId::HMAC_SHA2_512.0),
    plain(TransformType::PRF, PrfId::HMAC_SHA2_384.0),
    plain(TransformType::PRF, PrfId::HMAC_SHA2_256.0),
];
const IKE_INTEGRITY: &[Transform] = &[
    plain(TransformType::INTEG, IntegId::HMAC_SHA2_512_256.0),
    plain(TransformType::INTEG, IntegId::HMAC_SHA2_384_192.0),
    plain(TransformType::INTEG, IntegId::HMAC_SHA2_256_128.0),
];
const ESP_INTEGRITY: &[Transform] = &[
    plain(TransformType::INTEG, IntegId::HMAC_SHA2_512_256.0),
    plain(TransformType::INTEG, IntegId::HMAC_SHA2_256_128.0),
];
const SEQUENCE_NUMBERS: &[Transform] = &[ESN, NO_ESN];

/// strongSwan's keywords for what we do. The first one for a transform is the one we print.
const KEYWORDS: &[(&str, Transform)] = &[
    ("aes256gcm16", cipher(EncrId::AES_GCM_16, 256)),
    ("aes256gcm", cipher(EncrId::AES_GCM_16, 256)),
    ("aes256gcm128", cipher(EncrId::AES_GCM_16, 256)),
    ("aes128gcm16", cipher(EncrId::AES_GCM_16, 128)),
    ("aes128gcm", cipher(EncrId::AES_GCM_16, 128)),
    ("aes128gcm128", cipher(EncrId::AES_GCM_16, 128)),
    (
        "chacha20poly1305",
        plain(TransformType::ENCR, EncrId::CHACHA20_POLY1305.0),
    ),
    ("aes256", cipher(EncrId::AES_CBC, 256)),
    ("aes128", cipher(EncrId::AES_CBC, 128)),
    ("aes", cipher(EncrId::AES_CBC, 128)),
    (
        "sha512",
        plain(TransformType::INTEG, IntegId::HMAC_SHA2_512_256.0),
    ),
    (
        "sha2_512",
        plain(TransformType::INTEG, IntegId::HMAC_SHA2_512_256.0),
    ),
    (
        "sha384",
        plain(TransformType::INTEG, IntegId::HMAC_SHA2_384_192.0),
    ),
    (
        "sha2_384",
        plain(TransformType::INTEG, IntegId::HMAC_SHA2_384_192.0),
    ),
    (
        "sha256",
        plain(TransformType::INTEG, IntegId::HMAC_SHA2_256_128.0),
    ),
    (
        "sha2_256",
        plain(TransformType::INTEG, IntegId::HMAC_SHA2_256_128.0),
    ),
    ("sha1", plain(TransformType::INTEG, IntegId::HMAC_SHA1_96.0)),
    ("sha", plain(TransformType::INTEG, IntegId::HMAC_SHA1_96.0)),
    ("prfsha512", plain(TransformType::PRF, PrfId::HMAC_SHA2_512.0)),
    ("prfsha384", plain(TransformType::PRF, PrfId::HMAC_SHA2_384.0)),
    ("prfsha256", plain(TransformType::PRF, PrfId::HMAC_SHA2_256.0)),
    ("prfsha1", plain(TransformType::PRF, PrfId::HMAC_SHA1.0)),
    ("x25519", plain(TransformType::KE, KeMethod::CURVE25519.0)),
    ("curve25519", plain(TransformType::KE, KeMethod::CURVE25519.0)),
    ("ecp256", plain(TransformType::KE, KeMethod::ECP_256.0)),
    ("ecp384", plain(TransformType::KE, KeMethod::ECP_384.0)),
    ("ecp521", plain(TransformType::KE, KeMethod::ECP_521.0)),
    ("modp2048", plain(TransformType::KE, KeMethod::MODP_2048.0)),
    ("modp3072", plain(TransformType::KE, KeMethod::MODP_3072.0)),
    ("modp4096", plain(TransformType::KE, KeMethod::MODP_4096.0)),
    ("modp6144", plain(TransformType::KE, KeMethod::MODP_6144.0)),
    ("modp8192", plain(TransformType::KE, KeMethod::MODP_8192.0)),
    ("modp1536", plain(TransformType::KE, KeMethod::MODP_1536.0)),
    ("modp1024", plain(TransformType::KE, KeMethod::MODP_1024.0)),
    ("mlkem512", plain(TransformType::KE, KeMethod::ML_KEM_512.0)),
    ("mlkem768", plain(TransformType::KE, KeMethod::ML_KEM_768.0)),
    ("mlkem1024", plain(TransformType::KE, KeMethod::ML_KEM_1024.0)),
    ("esn", ESN),
    ("noesn", NO_ESN),
];

const OBSOLETE: &str = "it is obsolete and no longer secure";
const NO_SECRECY: &str = "it would leave the traffic readable";

/// strongSwan's keywords for what we do not do, with the reason.
const REFUSED: &[(&str, &str)] = &[
    ("null", NO_SECRECY),
    ("aes128gmac", NO_SECRECY),
    ("aes192gmac", NO_SECRECY),
    ("aes256gmac", NO_SECRECY),
    ("des", OBSOLETE),
    ("3des", OBSOLETE),
    ("blowfish*", OBSOLETE),
    ("cast128", OBSOLETE),
    ("md5*", OBSOLETE),
    ("prfmd5", OBSOLETE),
    ("modp768", OBSOLETE),
    ("modp1024s160", OBSOLETE),
    ("modp2048s*", OBSOLETE),
    ("modpnull", OBSOLETE),
    ("ecp192", OBSOLETE),
    ("none", "write a proposal without a key exchange instead"),
    ("modpnone", "write a proposal without a key exchange instead"),
    ("sha256_96", "it is an old mistake of the Linux kernel"),
    ("sha2_256_96", "it is an old mistake of the Linux kernel"),
    ("aes192*", NOT_IN_THIS_VERSION),
    ("aes128ctr", NOT_IN_THIS_VERSION),
    ("aes256ctr", NOT_IN_THIS_VERSION),
    ("aes128ccm*", NOT_IN_THIS_VERSION),
    ("aes256ccm*", NOT_IN_THIS_VERSION),
    ("aes128gcm*", "AES-GCM is used with full-length tags only"),
    ("aes256gcm*", "AES-GCM is used with full-length tags only"),
    ("chacha20poly1305compat", NOT_IN_THIS_VERSION),
    ("camellia*", NOT_IN_THIS_VERSION),
    ("serpent*", NOT_IN_THIS_VERSION),
    ("twofish*", NOT_IN_THIS_VERSION),
    ("sha1_160", NOT_IN_THIS_VERSION),
    ("aesxcbc", NOT_IN_THIS_VERSION),
    ("aescmac", NOT_IN_THIS_VERSION),
    ("prfaesxcbc", NOT_IN_THIS_VERSION),
    ("prfcamelliaxcbc", NOT_IN_THIS_VERSION),
    ("prfaescmac", NOT_IN_THIS_VERSION),
    ("ecp224*", NOT_IN_THIS_VERSION),
    ("ecp256bp", NOT_IN_THIS_VERSION),
    ("ecp384bp", NOT_IN_THIS_VERSION),
    ("ecp512bp", NOT_IN_THIS_VERSION),
    ("curve448", NOT_IN_THIS_VERSION),
    ("x448", NOT_IN_THIS_VERSION),
    ("ntru*", NOT_IN_THIS_VERSION),
    ("kyber*", NOT_IN_THIS_VERSION),
];

#[cfg(test)]
mod tests;
