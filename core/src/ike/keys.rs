//! The seven keys of an IKE SA (RFC 7296, section 2.14).

use crate::crypto::{CryptoError, PacketKey, Prf, Secret};
use crate::proposal::IkeSuite;
use crate::wire::IkeSpi;

/// Both SPIs of an IKE SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spis {
    /// The original initiator's: ours.
    pub(crate) initiator: IkeSpi,
    /// The original responder's: the gateway's, all zero before its first answer.
    pub(crate) responder: IkeSpi,
}

/// What protects the messages of an IKE SA and what its children's keys come from.
pub(crate) struct SaKeys {
    pub(crate) prf: Prf,
    /// SK_d.
    pub(crate) derive: Secret,
    /// SK_pi.
    pub(crate) proof_initiator: Secret,
    /// SK_pr.
    pub(crate) proof_responder: Secret,
    /// SK_ei and SK_ai.
    pub(crate) seal: PacketKey,
    /// SK_er and SK_ar.
    pub(crate) open: PacketKey,
    /// The next initialization vector for `seal`; never used twice.
    pub(crate) next_iv: u64,
}

impl SaKeys {
    /// `SKEYSEED = prf(Ni | Nr, g^ir)`, then
    /// `{SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr} = prf+(SKEYSEED, Ni | Nr | SPIi | SPIr)`.
    pub(crate) fn derive(
        suite: &IkeSuite,
        shared: &Secret,
        nonces: &Nonces,
        spis: Spis,
    ) -> Result<Self, CryptoError> {
        let prf = suite.prf;
        let seed_key = Secret::new([nonces.initiator.as_slice(), &nonces.responder].concat());
        let skeyseed = prf.compute(seed_key.as_bytes(), &[shared.as_bytes()]);
        let (encr, integ, proof) = (
            suite.cipher.encr_key_len(),
            suite.cipher.integ_key_len(),
            prf.key_len(),
        );
        let material = prf.plus(
            skeyseed.as_bytes(),
            &[
                &nonces.initiator,
                &nonces.responder,
                &spis.initiator.0,
                &spis.responder.0,
            ],
            3 * proof + 2 * integ + 2 * encr,
        )?;
        let mut cut = Cut(material.as_bytes());
        let derive = Secret::from_slice(cut.take(proof)?);
        let (integ_i, integ_r) = (cut.take(integ)?, cut.take(integ)?);
        let (encr_i, encr_r) = (cut.take(encr)?, cut.take(encr)?);
        Ok(Self {
            prf,
            derive,
            seal: PacketKey::new(suite.cipher, encr_i, integ_i)?,
            open: PacketKey::new(suite.cipher, encr_r, integ_r)?,
            proof_initiator: Secret::from_slice(cut.take(proof)?),
            proof_responder: Secret::from_slice(cut.take(proof)?),
            next_iv: 0,
        })
    }
}

/// The nonces of an exchange.
pub(crate) struct Nonces {
    /// Ni.
    pub(crate) initiator: Vec<u8>,
    /// Nr.
    pub(crate) responder: Vec<u8>,
}

/// Key material, cut from its beginning.
pub(crate) struct Cut<'a>(pub(crate) &'a [u8]);

impl<'a> Cut<'a> {
    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], CryptoError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(CryptoError::KeyLength)?;
        self.0 = rest;
        Ok(head)
    }
}
