//! The keys of an IKE SA and of its children: the first ones (RFC 7296, section 2.14), those after each additional key
//! exchange, and those after a rekeying (RFC 7296, sections 2.17 and 2.18; RFC 9370, section 2.2).

use super::resume::Ticket;
use crate::crypto::{CipherSuite, CryptoError, PacketKey, Prf, Secret};
use crate::proposal::IkeSuite;
use crate::wire::IkeSpi;

/// Which side we are: of an IKE SA its original initiator or responder, of an exchange the one that asks or answers.
///
/// Of the SA that IKE_SA_INIT makes we are the initiator. Of one that came from the gateway's rekeying we are the
/// responder, for good: our messages bear no I flag and our SPI is SPIr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Initiator,
    Responder,
}

/// Both SPIs of an IKE SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spis {
    /// The original initiator's: ours.
    pub(crate) initiator: IkeSpi,
    /// The original responder's: the gateway's, all zero before its first answer.
    pub(crate) responder: IkeSpi,
}

/// The nonces of an exchange.
pub(crate) struct Nonces {
    /// Ni.
    pub(crate) initiator: Vec<u8>,
    /// Nr.
    pub(crate) responder: Vec<u8>,
}

impl Nonces {
    /// The lower of the two, octet by octet: what decides between two simultaneous rekeyings (RFC 7296, section 2.8.1).
    pub(crate) fn lowest(&self) -> &[u8] {
        self.initiator.as_slice().min(&self.responder)
    }
}

/// The shared secrets of one CREATE_CHILD_SA and the IKE_FOLLOWUP_KE exchanges after it (RFC 9370, section 2.2.4).
pub(crate) struct SharedSecrets {
    /// SK(0): of the KE payloads of CREATE_CHILD_SA.
    pub(crate) first: Secret,
    /// SK(1), SK(2) and so on: of the additional key exchanges, in the order of their transform types.
    pub(crate) additional: Vec<Secret>,
}

impl SharedSecrets {
    /// `SK(0) | Ni | Nr | SK(1) | .. | SK(n)`: the later secrets come after the nonces.
    fn seed<'a>(&'a self, nonces: &'a Nonces) -> Vec<&'a [u8]> {
        [self.first.as_bytes(), &nonces.initiator, &nonces.responder]
            .into_iter()
            .chain(self.additional.iter().map(Secret::as_bytes))
            .collect()
    }
}

/// What protects the messages of an IKE SA and what its children's keys come from.
pub(crate) struct SaKeys {
    /// Which side of the SA we are.
    pub(crate) role: Role,
    pub(crate) prf: Prf,
    /// SK_d.
    pub(crate) derive: Secret,
    /// SK_pi.
    pub(crate) proof_initiator: Secret,
    /// SK_pr.
    pub(crate) proof_responder: Secret,
    /// What we send with: SK_ei and SK_ai as initiator, SK_er and SK_ar as responder.
    pub(crate) seal: PacketKey,
    /// What the peer sends with: the other two.
    pub(crate) open: PacketKey,
    /// The next initialization vector for `seal`; never used twice.
    pub(crate) next_iv: u64,
    /// A post-quantum key exchange went into SK_d, of this SA or of one that it replaced.
    pub(crate) post_quantum: bool,
    /// A PPK is stirred in, here or in an SA that this one replaced.
    pub(crate) ppk: bool,
}

impl SaKeys {
    /// The keys after IKE_SA_INIT: `SKEYSEED = prf(Ni | Nr, g^ir)` (RFC 7296, section 2.14).
    pub(crate) fn derive(
        suite: &IkeSuite,
        shared: &Secret,
        nonces: &Nonces,
        spis: Spis,
        role: Role,
    ) -> Result<Self, CryptoError> {
        let key = Secret::new([nonces.initiator.as_slice(), &nonces.responder].concat());
        let skeyseed = suite.prf.compute(key.as_bytes(), &[shared.as_bytes()]);
        Self::expand(suite.prf, suite.cipher, &skeyseed, nonces, spis, role)
    }

    /// The keys of an SA that is resumed: `SKEYSEED = prf(SK_d_old, "Resumption" | Ni | Nr)` (RFC 5723, section 5.1).
    pub(crate) fn derive_resumed(ticket: &Ticket, nonces: &Nonces, spis: Spis) -> Result<Self, CryptoError> {
        let suite = &ticket.suite;
        let seed: [&[u8]; 3] = [b"Resumption", &nonces.initiator, &nonces.responder];
        let skeyseed = suite.prf.compute(ticket.derive.as_bytes(), &seed);
        let keys = Self::expand(suite.prf, suite.cipher, &skeyseed, nonces, spis, Role::Initiator)?;
        Ok(Self {
            post_quantum: ticket.post_quantum,
            ppk: ticket.ppk,
            ..keys
        })
    }

    /// The keys after an IKE_INTERMEDIATE exchange that made `shared`: `SKEYSEED(n) = prf(SK_d(n-1), SK(n) | Ni | Nr)`
    /// (RFC 9370, section 2.2.2). They count from the next exchange on.
    ///
    /// `suite`, `nonces` and `spis` are those of IKE_SA_INIT.
    pub(crate) fn derive_next(
        &self,
        suite: &IkeSuite,
        shared: &Secret,
        nonces: &Nonces,
        spis: Spis,
    ) -> Result<Self, CryptoError> {
        let seed: [&[u8]; 3] = [shared.as_bytes(), &nonces.initiator, &nonces.responder];
        let skeyseed = self.prf.compute(self.derive.as_bytes(), &seed);
        let keys = Self::expand(suite.prf, suite.cipher, &skeyseed, nonces, spis, self.role)?;
        Ok(Self {
            post_quantum: self.post_quantum || suite.is_post_quantum(),
            ..keys
        })
    }

    /// The keys of the SA that replaces this one: `SKEYSEED = prf(SK_d, SK(0) | Ni | Nr | SK(1) | .. | SK(n))` with this
    /// SA's PRF, and all that follows with the PRF of `suite`, the new SA's (RFC 7296, section 2.18; RFC 9370, section
    /// 2.2.4).
    ///
    /// `nonces` are those of the CREATE_CHILD_SA exchange, `spis` those of its SA payloads. `role` is our side of that
    /// exchange, and so of the new SA.
    pub(crate) fn derive_rekeyed(
        &self,
        suite: &IkeSuite,
        shared: &SharedSecrets,
        nonces: &Nonces,
        spis: Spis,
        role: Role,
    ) -> Result<Self, CryptoError> {
        let skeyseed = self.rekeyed_seed(shared, nonces);
        let keys = Self::expand(suite.prf, suite.cipher, &skeyseed, nonces, spis, role)?;
        Ok(Self {
            post_quantum: self.post_quantum || suite.is_post_quantum(),
            ppk: self.ppk,
            ..keys
        })
    }

    /// The SKEYSEED of [`Self::derive_rekeyed`].
    fn rekeyed_seed(&self, shared: &SharedSecrets, nonces: &Nonces) -> Secret {
        self.prf.compute(self.derive.as_bytes(), &shared.seed(nonces))
    }

    /// The keys of a Child SA: `KEYMAT = prf+(SK_d, [SK(0) |] Ni | Nr [| SK(1) | .. | SK(n)])` (RFC 7296, section 2.17;
    /// RFC 9370, section 2.2.4).
    ///
    /// `shared` is none in IKE_AUTH and where CREATE_CHILD_SA had no KE payloads. `nonces` are those of the exchange
    /// that makes the child, which for IKE_AUTH are those of IKE_SA_INIT, and `role` is our side of that exchange,
    /// whichever side of the IKE SA we are.
    pub(crate) fn child_keys(
        &self,
        cipher: CipherSuite,
        shared: Option<&SharedSecrets>,
        nonces: &Nonces,
        role: Role,
    ) -> Result<ChildKeys, CryptoError> {
        let (encr, integ) = (cipher.encr_key_len(), cipher.integ_key_len());
        let seed = shared.map_or_else(
            || vec![nonces.initiator.as_slice(), nonces.responder.as_slice()],
            |shared| shared.seed(nonces),
        );
        let material = self.prf.plus(self.derive.as_bytes(), &seed, 2 * (encr + integ))?;
        let mut cut = Cut(material.as_bytes());
        let mut next = || PacketKey::new(cipher, cut.take(encr)?, cut.take(integ)?);
        // From the exchange's initiator to its responder first.
        let (first, second) = (next()?, next()?);
        let (outbound, inbound) = role.ours_and_theirs(first, second);
        Ok(ChildKeys { outbound, inbound })
    }

    /// Stirs a PPK in: `SK_d = prf+(PPK, SK_d')`, and SK_pi and SK_pr likewise, what bears a mark being the keys so far
    /// (RFC 8784, section 3). Once, after the last key exchange of the SA's beginning. Gives the keys so far.
    pub(crate) fn stir_in(&mut self, ppk: &Secret) -> Result<PpkKeys, CryptoError> {
        let stirred = |key: &Secret| {
            self.prf
                .plus(ppk.as_bytes(), &[key.as_bytes()], self.prf.key_len())
        };
        let stirred = PpkKeys {
            derive: stirred(&self.derive)?,
            proof_initiator: stirred(&self.proof_initiator)?,
            proof_responder: stirred(&self.proof_responder)?,
        };
        self.ppk = true;
        Ok(self.exchange(stirred))
    }

    /// The keys without the PPK again: the gateway does not have it.
    pub(crate) fn go_without(&mut self, keys: PpkKeys) {
        self.ppk = false;
        self.exchange(keys);
    }

    fn exchange(&mut self, keys: PpkKeys) -> PpkKeys {
        PpkKeys {
            derive: std::mem::replace(&mut self.derive, keys.derive),
            proof_initiator: std::mem::replace(&mut self.proof_initiator, keys.proof_initiator),
            proof_responder: std::mem::replace(&mut self.proof_responder, keys.proof_responder),
        }
    }

    /// `{SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr} = prf+(SKEYSEED, Ni | Nr | SPIi | SPIr)`.
    fn expand(
        prf: Prf,
        cipher: CipherSuite,
        skeyseed: &Secret,
        nonces: &Nonces,
        spis: Spis,
        role: Role,
    ) -> Result<Self, CryptoError> {
        let (encr, integ, proof) = (cipher.encr_key_len(), cipher.integ_key_len(), prf.key_len());
        let seed: [&[u8]; 4] = [
            &nonces.initiator,
            &nonces.responder,
            &spis.initiator.0,
            &spis.responder.0,
        ];
        let material = prf.plus(skeyseed.as_bytes(), &seed, 3 * proof + 2 * integ + 2 * encr)?;
        let mut cut = Cut(material.as_bytes());
        let derive = Secret::from_slice(cut.take(proof)?);
        let (integ_i, integ_r) = (cut.take(integ)?, cut.take(integ)?);
        let (encr_i, encr_r) = (cut.take(encr)?, cut.take(encr)?);
        let (seal, open) = role.ours_and_theirs(
            PacketKey::new(cipher, encr_i, integ_i)?,
            PacketKey::new(cipher, encr_r, integ_r)?,
        );
        Ok(Self {
            role,
            prf,
            derive,
            proof_initiator: Secret::from_slice(cut.take(proof)?),
            proof_responder: Secret::from_slice(cut.take(proof)?),
            seal,
            open,
            next_iv: 0,
            post_quantum: false,
            ppk: false,
        })
    }
}

/// The keys that a PPK changes.
pub(crate) struct PpkKeys {
    derive: Secret,
    proof_initiator: Secret,
    proof_responder: Secret,
}

/// Both directions' keys of a Child SA.
pub(crate) struct ChildKeys {
    /// What we send with.
    pub(crate) outbound: PacketKey,
    /// What the peer sends with.
    pub(crate) inbound: PacketKey,
}

impl Role {
    /// What is ours and what the peer's, of what the initiator and the responder have.
    fn ours_and_theirs<T>(self, initiator: T, responder: T) -> (T, T) {
        match self {
            Self::Initiator => (initiator, responder),
            Self::Responder => (responder, initiator),
        }
    }
}

/// Key material, cut from its beginning.
struct Cut<'a>(&'a [u8]);

impl<'a> Cut<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], CryptoError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(CryptoError::KeyLength)?;
        self.0 = rest;
        Ok(head)
    }
}

#[cfg(test)]
mod tests;
