//! ECDHE on secp521r1 for TLS, which *ring* does not have.
//!
//! Less for its own sake than for certificates: in TLS 1.2, neither side may have one on a curve that the client does
//! not list among its groups (RFC 8422, section 5.1.1).

use rustls::crypto::{ActiveKeyExchange, SharedSecret, SupportedKxGroup};
use rustls::{Error, NamedGroup, PeerMisbehaved};

use crate::crypto::KeyExchange;
use crate::rng::Rng;
use crate::wire::iana::KeMethod;

/// The group.
#[derive(Debug)]
pub(super) struct Secp521r1;

impl SupportedKxGroup for Secp521r1 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        // rustls has no place for a generator of ours; its own keys come from the operating system as well.
        let mut seed = [0; 32];
        rustls::crypto::ring::default_provider()
            .secure_random
            .fill(&mut seed)?;
        let ours = KeyExchange::generate(KeMethod::ECP_521, &mut Rng::new(seed))
            .map_err(|error| Error::General(error.to_string()))?;
        let public = [&[UNCOMPRESSED], ours.public()].concat();
        Ok(Box::new(Started { ours, public }))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}

/// One key exchange.
struct Started {
    ours: KeyExchange,
    /// Our point as TLS writes it (RFC 8446, section 4.2.8.2): IKE's x and y, with the form before them.
    public: Vec<u8>,
}

impl ActiveKeyExchange for Started {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        let point = peer
            .strip_prefix(&[UNCOMPRESSED])
            .ok_or(PeerMisbehaved::InvalidKeyShare)?;
        let secret = self
            .ours
            .agree(point)
            .map_err(|_| PeerMisbehaved::InvalidKeyShare)?;
        Ok(SharedSecret::from(secret.as_bytes()))
    }

    fn pub_key(&self) -> &[u8] {
        &self.public
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::secp521r1
    }
}

const UNCOMPRESSED: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_agree() {
        let (alice, bob) = (Secp521r1.start().unwrap(), Secp521r1.start().unwrap());
        assert_eq!(alice.pub_key().len(), 133);
        assert_ne!(alice.pub_key(), bob.pub_key());
        let (alices, bobs) = (alice.pub_key().to_vec(), bob.pub_key().to_vec());
        let secret = alice.complete(&bobs).unwrap();
        assert_eq!(secret.secret_bytes().len(), 66);
        assert_eq!(
            secret.secret_bytes(),
            bob.complete(&alices).unwrap().secret_bytes()
        );
    }

    #[test]
    fn bad_points_are_refused() {
        let good = Secp521r1.start().unwrap().pub_key().to_vec();
        let mut off_the_curve = good.clone();
        off_the_curve[132] ^= 1;
        let mut compressed = good.clone();
        compressed[0] = 2;
        for point in [
            &off_the_curve[..],
            &compressed,
            &good[..132],
            &good[1..],
            &[4],
            &[],
        ] {
            let result = Secp521r1.start().unwrap().complete(point);
            assert_eq!(result.err(), Some(PeerMisbehaved::InvalidKeyShare.into()));
        }
    }
}
