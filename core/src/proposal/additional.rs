//! Additional key exchanges (RFC 9370): their places, their keywords, and the check of the gateway's choice.

use super::{ProposalErrorKind, SelectError, Transform, plain, read_word as read_method};
use crate::wire::iana::{KeMethod, TransformType};

/// The transform types of additional key exchanges, in the order in which these are performed.
pub(super) const PLACES: [TransformType; 7] = [
    TransformType::ADDKE1,
    TransformType::ADDKE2,
    TransformType::ADDKE3,
    TransformType::ADDKE4,
    TransformType::ADDKE5,
    TransformType::ADDKE6,
    TransformType::ADDKE7,
];

/// The additional key exchanges of an SA, each in its place from 1 to 7 or absent (RFC 9370, section 2.2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdditionalKeyExchanges([Option<KeMethod>; PLACES.len()]);

impl AdditionalKeyExchanges {
    /// None at all.
    pub const NONE: Self = Self([None; PLACES.len()]);

    /// The methods in the order in which they are performed.
    pub fn methods(&self) -> impl Iterator<Item = KeMethod> + '_ {
        self.0.iter().copied().flatten()
    }

    /// Those of a choice of which every transform was offered. None may be the same as another, or as `first`, the key
    /// exchange that they add to. What may be NONE may be left out too.
    pub(super) fn check(
        chosen: &[Transform],
        offered: &[Transform],
        first: KeMethod,
    ) -> Result<Self, SelectError> {
        let mut additional = Self::default();
        for (place, kind) in PLACES.into_iter().enumerate() {
            let mut alternatives = offered.iter().filter(|t| t.kind == kind).peekable();
            let method = match chosen.iter().find(|t| t.kind == kind) {
                Some(transform) => KeMethod(transform.id),
                None if alternatives.peek().is_none() || alternatives.any(|t| t.id == KeMethod::NONE.0) => {
                    KeMethod::NONE
                }
                None => return Err(SelectError::Count { kind, count: 0 }),
            };
            if method == KeMethod::NONE {
                continue;
            }
            if method == first || additional.methods().any(|other| other == method) {
                return Err(SelectError::Repeated(method));
            }
            if let Some(place) = additional.0.get_mut(place) {
                *place = Some(method);
            }
        }
        Ok(additional)
    }

    pub(super) fn transforms(&self) -> impl Iterator<Item = Transform> + '_ {
        let places = PLACES.into_iter().zip(self.0);
        places.filter_map(|(kind, method)| Some(plain(kind, method?.0)))
    }
}

pub(super) fn is_additional(transform: &Transform) -> bool {
    PLACES.contains(&transform.kind)
}

/// The place of an additional key exchange, from 1, and its method as a transform for a key exchange of its own.
pub(super) fn place_of(transform: Transform) -> Option<(usize, Transform)> {
    let place = PLACES.iter().position(|kind| *kind == transform.kind)?;
    Some((place + 1, plain(TransformType::KE, transform.id)))
}

/// Reads a keyword like `ke1_mlkem768` or `ke1_none`; none for one without a place.
pub(super) fn read_word(word: &str) -> Option<Result<Transform, ProposalErrorKind>> {
    let (place, method) = word.split_once('_')?;
    let (ke, place) = place.split_at_checked(2)?;
    let place: usize = place.parse().ok().filter(|_| ke.eq_ignore_ascii_case("ke"))?;
    let kind = *PLACES.get(place.checked_sub(1)?)?;
    if method.eq_ignore_ascii_case("none") {
        return Some(Ok(plain(kind, KeMethod::NONE.0)));
    }
    // ESP's are all that there are: what does not fit into IKE_SA_INIT is among them.
    let read = match read_method(method, "ESP") {
        Ok(transform) if transform.kind == TransformType::KE => Ok(plain(kind, transform.id)),
        Ok(_) | Err(ProposalErrorKind::OutOfPlace { .. }) => Err(ProposalErrorKind::NotAKeyExchange {
            keyword: word.to_owned(),
        }),
        // About the whole word, which is what the text shows.
        Err(ProposalErrorKind::Unsupported { reason, .. }) => Err(ProposalErrorKind::Unsupported {
            keyword: word.to_owned(),
            reason,
        }),
        Err(ProposalErrorKind::Unknown { suggestion, .. }) => Err(ProposalErrorKind::Unknown {
            keyword: word.to_owned(),
            suggestion,
        }),
        Err(other) => Err(other),
    };
    Some(read)
}
