//! The signature of a list or an answer.

use rustls_pki_types::InvalidSignature;

use super::Unusable;
use crate::pki::algorithms;
use crate::pki::cert::Certificate;
use crate::pki::der::{self, Der, Value};
use crate::pki::verify::check_key;

/// Checks the signature of `signer` over `signed`. `algorithm` is the content of the AlgorithmIdentifier.
pub(super) fn check(
    signer: &Certificate,
    algorithm: &[u8],
    signed: &[u8],
    signature: &Value<'_>,
) -> Result<(), Unusable> {
    let signature = der::bit_string_octets(signature).ok_or(Unusable::Malformed("signature"))?;
    check_key(signer).map_err(|_| Unusable::Algorithm)?;
    let mut spki = Der::new(signer.spki_der());
    let key_algorithm = spki
        .enter(der::SEQUENCE)
        .and_then(|mut spki| spki.expect(der::SEQUENCE))
        .ok_or(Unusable::Malformed("signer's key"))?;
    let known = algorithms::ALL.iter().find(|known| {
        known.signature_alg_id().as_ref() == algorithm
            && known.public_key_alg_id().as_ref() == key_algorithm.body
    });
    known
        .ok_or(Unusable::Algorithm)?
        .verify_signature(signer.public_key(), signed, signature)
        .map_err(|InvalidSignature| Unusable::Signature)
}
