//! The ECP groups (RFC 5903): public values are `x | y`, shared secrets are x.

use p256::elliptic_curve::sec1::{FromSec1Point, ModulusSize, ToSec1Point};
use p256::elliptic_curve::{AffinePoint, CurveArithmetic, FieldBytesSize, PublicKey, SecretKey, ecdh};
use zeroize::Zeroizing;

use crate::crypto::{CryptoError, Secret};

/// SEC 1's mark of an uncompressed point, which IKE leaves out (RFC 5903, section 7).
const UNCOMPRESSED: u8 = 4;

pub(super) fn public<C>(private: &Secret) -> Result<Vec<u8>, CryptoError>
where
    C: CurveArithmetic,
    AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
    FieldBytesSize<C>: ModulusSize,
{
    let point = scalar::<C>(private)?.public_key().to_sec1_point(false);
    point
        .as_bytes()
        .split_first()
        .map(|(_, xy)| xy.to_vec())
        .ok_or(CryptoError::PrivateKey)
}

pub(super) fn agree<C>(private: &Secret, peer: &[u8]) -> Result<Secret, CryptoError>
where
    C: CurveArithmetic,
    AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
    FieldBytesSize<C>: ModulusSize,
{
    // Decoding checks that both coordinates are below p and on the curve (RFC 6989, section 2.3).
    let peer = PublicKey::<C>::from_sec1_bytes(&[&[UNCOMPRESSED], peer].concat())
        .map_err(|_| CryptoError::PublicValue)?;
    let scalar = Zeroizing::new(scalar::<C>(private)?.to_nonzero_scalar());
    Ok(Secret::from_slice(
        ecdh::diffie_hellman::<C>(&*scalar, peer.as_affine()).raw_secret_bytes(),
    ))
}

fn scalar<C: CurveArithmetic>(private: &Secret) -> Result<SecretKey<C>, CryptoError> {
    SecretKey::from_slice(private.as_bytes()).map_err(|_| CryptoError::PrivateKey)
}
