//! PEAP's binding of the inner method to the tunnel (\[MS-PEAP\], section 3.1.5.5): proof that the server which ends the
//! tunnel is the one that knows the user's password, and no relay.

use super::{EapError, Msk};
use crate::crypto::{HashKind, Secret, constant_time_eq, hmac};
use crate::wire::iana::EapType;

/// The keys of tunnel and inner method together.
pub(super) struct Binding {
    /// IPMK: what the session key comes from.
    intermediate: Secret,
    /// CMK: what both sides prove to have.
    proof: Secret,
}

impl Binding {
    /// From the tunnel's key and that of the inner method, if it makes one.
    pub(super) fn new(tunnel: &Msk, inner: Option<&Msk>) -> Self {
        // As much of either as the specification takes: 40 and 32 octets.
        let seed = inner.map_or([0; 32].as_slice(), |inner| &inner.as_bytes()[..32]);
        let keys = expand(
            &tunnel.as_bytes()[..40],
            &[b"Inner Methods Compound Keys", seed],
            60,
        );
        let (intermediate, proof) = keys.as_bytes().split_at(40);
        Self {
            intermediate: Secret::from_slice(intermediate),
            proof: Secret::from_slice(proof),
        }
    }

    /// Checks the value of the server's Cryptobinding TLV.
    pub(super) fn check(&self, request: &[u8; 56]) -> Result<(), EapError> {
        let (covered, mac) = request.split_at(FIELDS);
        let is_request = covered.get(3) == Some(&sub_type::REQUEST);
        if is_request && constant_time_eq(self.mac(covered).as_bytes(), mac) {
            Ok(())
        } else {
            Err(EapError::Unbound)
        }
    }

    /// The value of ours.
    pub(super) fn answer(&self, nonce: [u8; 32]) -> Vec<u8> {
        let covered = [&[0, 0, 0, sub_type::RESPONSE], nonce.as_slice()].concat();
        let mac = self.mac(&covered);
        [&covered, mac.as_bytes()].concat()
    }

    /// The MSK that replaces the tunnel's (section 3.1.5.7).
    pub(super) fn msk(&self) -> Msk {
        let keys = expand(
            self.intermediate.as_bytes(),
            &[b"Session Key Generating Function\0"],
            128,
        );
        Msk(Secret::from_slice(&keys.as_bytes()[..64]))
    }

    /// The Compound MAC: over the whole TLV with zeros in its place, and the method's type (section 3.1.5.5.1).
    fn mac(&self, covered: &[u8]) -> Secret {
        let header = [0, 12, 0, 56];
        hmac(
            HashKind::Sha1,
            self.proof.as_bytes(),
            &[&header, covered, &[0; 20], &[EapType::PEAP.0]],
        )
    }
}

mod sub_type {
    pub(super) const REQUEST: u8 = 0;
    pub(super) const RESPONSE: u8 = 1;
}

/// Reserved, two versions, the sub-type, and a nonce.
const FIELDS: usize = 36;

/// PRF+ of PEAP version 0: as in IKEv2 (RFC 7296, section 2.13), with two octets of zero after each counter.
fn expand(key: &[u8], seed: &[&[u8]], length: usize) -> Secret {
    let mut keys = Vec::with_capacity(length + 20);
    let mut last = Secret::from_slice(&[]);
    let mut counter = 0_u8;
    while keys.len() < length {
        counter = counter.wrapping_add(1);
        let mut parts = vec![last.as_bytes()];
        parts.extend_from_slice(seed);
        let end = [counter, 0, 0];
        parts.push(&end);
        last = hmac(HashKind::Sha1, key, &parts);
        keys.extend_from_slice(last.as_bytes());
    }
    keys.truncate(length);
    Secret::new(keys)
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;

    use super::*;

    /// What hostapd 2.10 made of the keys of a conversation, and what it sent and took.
    struct Hostapd {
        tunnel: Msk,
        inner: Msk,
        request: [u8; 56],
        response: [u8; 56],
        msk: [u8; 64],
    }

    fn hostapd() -> Hostapd {
        // It tells as much of the keys as goes into the computation.
        let padded = |octets: &[u8]| Msk(Secret::new([octets, &[0; 32]].concat()[..64].to_vec()));
        Hostapd {
            tunnel: padded(&hex!(
            "0ab4f3b9bbe3e99f7fcede558894da17890b75abe84e0a603c7089d5587b090a786c8f5b40e0b3a2990d0d051c6cafcb"
            "7beac4bcfeee2672285499e2"
            )),
            inner: padded(&hex!(
                "5184d026730a465215ede9b6ec9319f74cc11e500f2e8adc4d59742669372af0"
            )),
            request: hex!(
            "000000008ca3e8694c3d13c96e1fb50c076cbe6e4db346055e8be16ec30fe5f9dc1b7e7d6033c47b6f81667b14d80bf8"
            "c0496a00821a32a5"
            ),
            response: hex!(
            "00000001366640726947539200a7dc1e47c64cb64ec1304b6b8538988a9e0360c1a6078287d6c89bce7644af520c5565"
            "828085f69d8d4c17"
            ),
            msk: hex!(
            "843947cc0eb358a9a833979d736347d031dd516ae58074de1421437346c7bfcab9b97abf22bac214ba442d54b8f8cff9"
            "574400711db6d95d94bbc5faa0ade0d7"
            ),
        }
    }

    #[test]
    fn hostapd_is_understood() {
        let it = hostapd();
        let binding = Binding::new(&it.tunnel, Some(&it.inner));
        assert_eq!(
            binding.intermediate.as_bytes(),
            hex!("02c64890d4623a1387f28462c8e398c3afb23d1358855260619aad8573d4d7389afc093124b065c7")
        );
        assert_eq!(
            binding.proof.as_bytes(),
            hex!("13e7e4ad4b3ba2d7b916c9eae8cf88853937111d")
        );
        assert_eq!(binding.check(&it.request), Ok(()));
        let nonce = it.response[4..36].try_into().unwrap();
        assert_eq!(binding.answer(nonce), it.response);
        assert_eq!(binding.msk().as_bytes(), it.msk);
    }

    #[test]
    fn everything_in_a_request_is_proven() {
        let it = hostapd();
        let binding = Binding::new(&it.tunnel, Some(&it.inner));
        for bit in 0..56 * 8 {
            let mut request = it.request;
            request[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(binding.check(&request), Err(EapError::Unbound), "bit {bit}");
        }
        // Our own answer is no request.
        assert_eq!(binding.check(&it.response), Err(EapError::Unbound));
    }

    /// A relay has the keys of one tunnel and the user's answers from another.
    #[test]
    fn other_keys_do_not_fit() {
        let it = hostapd();
        for (tunnel, inner) in [
            (&it.tunnel, None),
            (&it.inner, Some(&it.inner)),
            (&it.tunnel, Some(&it.tunnel)),
        ] {
            assert_eq!(
                Binding::new(tunnel, inner).check(&it.request),
                Err(EapError::Unbound)
            );
        }
    }
}
