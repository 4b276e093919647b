//! Choosing from what the gateway offers, when it begins a rekeying (RFC 7296, sections 2.7 and 3.3).

use super::additional::is_additional;
use super::{
    AdditionalKeyExchanges, Choice, ESN, EspProposal, EspSuite, IkeProposal, IkeSuite, NO_ESN, Transform,
    cipher_transforms, default_esp, esp_spi, is_aead, key_exchange_transforms, lenient, plain, wire_proposal,
};
use crate::crypto::Prf;
use crate::wire::iana::{KeMethod, PrfId, ProtocolId, TransformType};
use crate::wire::{self, EspSpi, IkeSpi};

/// Our choice from an offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen<S, P> {
    /// The number of the gateway's proposal.
    pub number: u8,
    /// What we chose of it.
    pub suite: S,
    /// The gateway's SPI.
    pub spi: P,
    transforms: Vec<Transform>,
}

impl<S> Chosen<S, EspSpi> {
    /// The choice as payload content, with our inbound SPI.
    #[must_use]
    pub fn to_wire(&self, spi: EspSpi) -> wire::Proposal<'static> {
        wire_proposal(
            self.number,
            ProtocolId::ESP,
            &spi.0.to_be_bytes(),
            &self.transforms,
        )
    }
}

impl<S> Chosen<S, IkeSpi> {
    /// The choice as payload content, with our new SPI.
    #[must_use]
    pub fn to_wire(&self, spi: IkeSpi) -> wire::Proposal<'static> {
        wire_proposal(self.number, ProtocolId::IKE, &spi.0, &self.transforms)
    }
}

/// Chooses an ESP suite from the gateway's offer: `present`, the suite in use, if it is on offer, else by our own order
/// of preference. `sent` is the method of the gateway's KE payload. An offer without key exchange is taken only where
/// `pfs_required` does not say otherwise. None: nothing on offer is acceptable.
#[must_use]
pub fn choose_esp(
    ours: &[EspProposal],
    present: &EspSuite,
    sent: Option<KeMethod>,
    pfs_required: bool,
    offer: &[wire::Proposal<'_>],
) -> Option<Chosen<EspSuite, EspSpi>> {
    let transforms = [
        cipher_transforms(&present.cipher),
        vec![if present.esn { ESN } else { NO_ESN }],
    ]
    .concat();
    let in_use = ours
        .iter()
        .filter(|mine| mine.offers(present))
        .map(|mine| EspProposal {
            transforms: transforms.clone(),
            ..mine.clone()
        });
    // Where our profile names no key exchange at all, one that the gateway wants is a gift.
    let default: Vec<KeMethod> = if ours.iter().all(|mine| mine.key_exchanges.is_empty()) {
        let proposals = default_esp().into_iter();
        proposals.flat_map(|proposal| proposal.key_exchanges).collect()
    } else {
        Vec::new()
    };
    for mine in in_use.chain(ours.iter().cloned()) {
        let mut methods = [mine.key_exchanges.clone(), default.clone()].concat();
        // What was sent saves a round trip, if it is ours at all.
        methods.sort_by_key(|method| Some(*method) != sent);
        for theirs in offer.iter().filter(|theirs| theirs.protocol == ProtocolId::ESP) {
            let mine = [
                mine.transforms.clone(),
                key_exchange_transforms(&methods),
                mine.additional.clone(),
            ]
            .concat();
            let Some(transforms) = pick(&mine, theirs) else {
                continue;
            };
            let choice = Choice(transforms);
            let ke = choice.one(TransformType::KE).ok().map(|t| KeMethod(t.id));
            let (Some(spi), Ok(cipher)) = (esp_spi(&theirs.spi), choice.cipher()) else {
                continue;
            };
            let first = ke.unwrap_or(KeMethod::NONE);
            let Ok(additional) = AdditionalKeyExchanges::check(&choice.0, &choice.0, first) else {
                continue;
            };
            if pfs_required && first == KeMethod::NONE {
                continue;
            }
            let suite = EspSuite {
                cipher,
                // An old gateway may leave the sequence numbers away: 32 bits then.
                esn: choice.one(TransformType::ESN).is_ok_and(|t| t == ESN),
                ke: ke.filter(|method| *method != KeMethod::NONE),
                additional,
            };
            return Some(Chosen {
                number: theirs.number,
                suite,
                spi,
                transforms: choice.0,
            });
        }
    }
    None
}

/// Chooses an IKE suite from the gateway's offer, without additional key exchanges: cipher and PRF of `present`, the suite
/// in use, if they are on offer, else by our own order of preference. `sent` is the method of its KE payload. None: nothing
/// on offer is acceptable.
///
/// The PRF above all should stay: where it changes, strongSwan makes the new SA's keys with the old one, and we with the
/// new one as RFC 7296, section 2.18 says.
#[must_use]
pub fn choose_ike(
    ours: &[IkeProposal],
    present: &IkeSuite,
    sent: KeMethod,
    offer: &[wire::Proposal<'_>],
) -> Option<Chosen<IkeSuite, IkeSpi>> {
    let in_use = [
        cipher_transforms(&present.cipher),
        vec![plain(TransformType::PRF, present.prf.id().0)],
    ]
    .concat();
    let is_key_exchange = |t: &&Transform| t.kind == TransformType::KE || is_additional(t);
    let in_use = ours.iter().filter(|mine| mine.offers(present)).map(|mine| {
        let key_exchanges = mine.transforms.iter().filter(is_key_exchange);
        IkeProposal {
            transforms: in_use.iter().chain(key_exchanges).copied().collect(),
        }
    });
    for mine in in_use.chain(ours.iter().cloned()) {
        for theirs in offer.iter().filter(|theirs| theirs.protocol == ProtocolId::IKE) {
            let Ok(spi) = <[u8; 8]>::try_from(&*theirs.spi) else {
                continue;
            };
            let mut mine = mine.transforms.clone();
            // What was sent saves a round trip, if it is ours at all.
            if let Some(index) = mine.iter().position(|t| *t == plain(TransformType::KE, sent.0)) {
                let transform = mine.remove(index);
                mine.insert(0, transform);
            }
            let Some(transforms) = pick(&mine, theirs) else {
                continue;
            };
            let choice = Choice(transforms);
            let (Ok(cipher), Ok(prf), Ok(ke)) = (
                choice.cipher(),
                choice.one(TransformType::PRF),
                choice.one(TransformType::KE),
            ) else {
                continue;
            };
            let Some(prf) = Prf::from_id(PrfId(prf.id)).filter(|_| ke.id != 0 && spi != [0; 8]) else {
                continue;
            };
            let Ok(additional) = AdditionalKeyExchanges::check(&choice.0, &choice.0, KeMethod(ke.id)) else {
                continue;
            };
            return Some(Chosen {
                number: theirs.number,
                suite: IkeSuite {
                    cipher,
                    prf,
                    ke: KeMethod(ke.id),
                    additional,
                },
                spi: IkeSpi(spi),
                transforms: choice.0,
            });
        }
    }
    None
}

/// One transform of each kind that the gateway's proposal has, the first of ours that it has; a kind that we have none
/// of makes the proposal unacceptable as a whole, unless it can be left out (RFC 7296, section 3.3.6).
fn pick(ours: &[Transform], theirs: &wire::Proposal<'_>) -> Option<Vec<Transform>> {
    let mut kinds: Vec<TransformType> = Vec::new();
    for transform in &theirs.transforms {
        if !kinds.contains(&transform.kind) {
            kinds.push(transform.kind);
        }
    }
    let offered = |mine: &Transform| {
        theirs
            .transforms
            .iter()
            .any(|t| t.attributes.is_empty() && lenient(t) == *mine)
    };
    let cipher = ours
        .iter()
        .find(|mine| mine.kind == TransformType::ENCR && offered(mine))?;
    // An additional key exchange that we want is not on offer.
    let none = |kind| ours.contains(&plain(kind, KeMethod::NONE.0));
    let is_missing =
        |mine: &Transform| is_additional(mine) && !kinds.contains(&mine.kind) && !none(mine.kind);
    if ours.iter().any(is_missing) {
        return None;
    }
    let mut picked = Vec::with_capacity(kinds.len());
    for kind in kinds {
        // An AEAD cipher has no integrity algorithm beside it, or NONE.
        if kind == TransformType::INTEG && is_aead(cipher) {
            let none = theirs.transforms.iter().any(|t| t.kind == kind && t.id == 0);
            if none {
                continue;
            }
            return None;
        }
        let found = ours.iter().find(|mine| mine.kind == kind && offered(mine));
        match found {
            Some(transform) => picked.push(*transform),
            // NONE says that the kind may be left out; the answer says so too.
            None if is_optional(kind) && theirs.transforms.iter().any(|t| t.kind == kind && t.id == 0) => {
                picked.push(plain(kind, 0));
            }
            None => return None,
        }
    }
    Some(picked)
}

/// Kinds of transforms of which NONE can be chosen: key exchanges of CREATE_CHILD_SA.
fn is_optional(kind: TransformType) -> bool {
    kind.0 >= TransformType::KE.0 && kind != TransformType::ESN
}
