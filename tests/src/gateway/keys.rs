//! The keys of IKE SAs and Child SAs (RFC 7296, sections 2.13, 2.14, 2.17 and 2.18; RFC 5723, section 5.1).
//!
//! Written from the RFCs alone: it shares the PRF and the ciphers with the client, and nothing of how keys come about.

use peregrine_core::crypto::{CipherSuite, PacketKey, Prf, Secret};
use peregrine_core::proposal::{EspSuite, IkeSuite};
use peregrine_core::wire::IkeSpi;

/// The nonces of an exchange.
#[derive(Clone, Debug)]
pub(super) struct Nonces {
    /// Ni: of who began the exchange.
    pub(super) initiator: Vec<u8>,
    /// Nr: of who answered it.
    pub(super) responder: Vec<u8>,
}

impl Nonces {
    /// The lower of the two, octet by octet; what ends first is lower (RFC 7296, section 2.8.1).
    pub(super) fn lowest(&self) -> &[u8] {
        self.initiator.as_slice().min(&self.responder)
    }
}

/// The SPIs of an IKE SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spis {
    /// SPIi: the original initiator's.
    pub(super) initiator: IkeSpi,
    /// SPIr: the original responder's.
    pub(super) responder: IkeSpi,
}

/// The keys of one IKE SA.
pub(super) struct SaKeys {
    pub(super) prf: Prf,
    /// SK_d.
    pub(super) derive: Secret,
    /// SK_pi.
    pub(super) proof_initiator: Secret,
    /// SK_pr.
    pub(super) proof_responder: Secret,
    /// SK_ei and SK_ai: from the original initiator.
    pub(super) from_initiator: PacketKey,
    /// SK_er and SK_ar: from the original responder.
    pub(super) from_responder: PacketKey,
}

impl SaKeys {
    /// `SKEYSEED = prf(Ni | Nr, g^ir)`.
    pub(super) fn initial(suite: &IkeSuite, shared: &Secret, nonces: &Nonces, spis: Spis) -> Self {
        let key = [nonces.initiator.as_slice(), &nonces.responder].concat();
        let skeyseed = suite.prf.compute(&key, &[shared.as_bytes()]);
        Self::expand(suite, &skeyseed, nonces, spis)
    }

    /// The keys after an additional key exchange (RFC 9370, section 2.2.2). `SKEYSEED(n) = prf(SK_d(n-1), SK(n) | Ni | Nr)`.
    pub(super) fn next(&self, suite: &IkeSuite, shared: &Secret, nonces: &Nonces, spis: Spis) -> Self {
        let skeyseed = self.prf.compute(
            self.derive.as_bytes(),
            &[shared.as_bytes(), &nonces.initiator, &nonces.responder],
        );
        Self::expand(suite, &skeyseed, nonces, spis)
    }

    /// The keys of the IKE SA that replaces this one. `SKEYSEED = prf(SK_d, SK(0) | Ni | Nr | SK(1) | ... SK(n))` with the
    /// PRF of the old SA; the rest with that of the new one and its SPIs (RFC 9370, section 2.2.4).
    pub(super) fn rekeyed(&self, suite: &IkeSuite, shared: &[Secret], nonces: &Nonces, spis: Spis) -> Self {
        let skeyseed = self.prf.compute(self.derive.as_bytes(), &seed(shared, nonces));
        Self::expand(suite, &skeyseed, nonces, spis)
    }

    /// The keys of an IKE SA that continues one whose SK_d was `derive`.
    /// `SKEYSEED = prf(SK_d_old, "Resumption" | Ni | Nr)`.
    pub(super) fn resumed(derive: &Secret, suite: &IkeSuite, nonces: &Nonces, spis: Spis) -> Self {
        let skeyseed = suite.prf.compute(
            derive.as_bytes(),
            &[b"Resumption", &nonces.initiator, &nonces.responder],
        );
        Self::expand(suite, &skeyseed, nonces, spis)
    }

    /// `{SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr} = prf+(SKEYSEED, Ni | Nr | SPIi | SPIr)`.
    fn expand(suite: &IkeSuite, skeyseed: &Secret, nonces: &Nonces, spis: Spis) -> Self {
        let (encr, integ, preferred) = (
            suite.cipher.encr_key_len(),
            suite.cipher.integ_key_len(),
            suite.prf.key_len(),
        );
        let seed: [&[u8]; 4] = [
            &nonces.initiator,
            &nonces.responder,
            &spis.initiator.0,
            &spis.responder.0,
        ];
        let len = 3 * preferred + 2 * integ + 2 * encr;
        let stream = suite.prf.plus(skeyseed.as_bytes(), &seed, len).expect("short");
        let [d, ai, ar, ei, er, pi, pr] = cut(
            &stream,
            [preferred, integ, integ, encr, encr, preferred, preferred],
        );
        Self {
            prf: suite.prf,
            derive: Secret::from_slice(d),
            proof_initiator: Secret::from_slice(pi),
            proof_responder: Secret::from_slice(pr),
            from_initiator: packet_key(suite.cipher, ei, ai),
            from_responder: packet_key(suite.cipher, er, ar),
        }
    }

    /// The keys of a Child SA: from the initiator of the exchange that made it, and from its responder.
    /// `KEYMAT = prf+(SK_d, [SK(0) |] Ni | Nr [| SK(1) | ... SK(n)])`.
    pub(super) fn child(
        &self,
        suite: &EspSuite,
        shared: &[Secret],
        nonces: &Nonces,
    ) -> (PacketKey, PacketKey) {
        let (encr, integ) = (suite.cipher.encr_key_len(), suite.cipher.integ_key_len());
        let keymat = self
            .prf
            .plus(self.derive.as_bytes(), &seed(shared, nonces), 2 * (encr + integ))
            .expect("short");
        let [e_there, a_there, e_back, a_back] = cut(&keymat, [encr, integ, encr, integ]);
        (
            packet_key(suite.cipher, e_there, a_there),
            packet_key(suite.cipher, e_back, a_back),
        )
    }
}

/// `[SK(0) |] Ni | Nr [| SK(1) | ... SK(n)]`.
fn seed<'a>(shared: &'a [Secret], nonces: &'a Nonces) -> Vec<&'a [u8]> {
    let mut secrets = shared.iter().map(Secret::as_bytes);
    let first = secrets.next();
    let nonces = [nonces.initiator.as_slice(), &nonces.responder];
    first.into_iter().chain(nonces).chain(secrets).collect()
}

fn packet_key(suite: CipherSuite, encr: &[u8], integ: &[u8]) -> PacketKey {
    PacketKey::new(suite, encr, integ).expect("lengths as the suite wants them")
}

/// Key material in parts of the given lengths, one after the other.
fn cut<const N: usize>(material: &Secret, lens: [usize; N]) -> [&[u8]; N] {
    let mut rest = material.as_bytes();
    lens.map(|len| {
        let (part, behind) = rest.split_at(len);
        rest = behind;
        part
    })
}
