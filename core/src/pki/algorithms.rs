//! The signature algorithms that a certificate chain may use, as webpki and rustls know them.

use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id};
use webpki::ring as webpki_ring;

use super::cert::KeyKind;
use super::scheme::{SignatureEncoding, SignatureScheme};
use super::verify::verify_with;

/// Everything that may sign a certificate: RSA of 2048 to 8192 bits with SHA-2 (PKCS#1 v1.5 and PSS), ECDSA on the
/// three NIST curves with SHA-2, and Ed25519. Nothing with MD5 or SHA-1.
pub(crate) static ALL: &[&dyn SignatureVerificationAlgorithm] = &[
    webpki_ring::ECDSA_P256_SHA256,
    webpki_ring::ECDSA_P256_SHA384,
    ECDSA_P256_SHA512,
    webpki_ring::ECDSA_P384_SHA256,
    webpki_ring::ECDSA_P384_SHA384,
    ECDSA_P384_SHA512,
    ECDSA_P521_SHA256,
    ECDSA_P521_SHA384,
    ECDSA_P521_SHA512,
    webpki_ring::ED25519,
    webpki_ring::RSA_PKCS1_2048_8192_SHA256,
    webpki_ring::RSA_PKCS1_2048_8192_SHA384,
    webpki_ring::RSA_PKCS1_2048_8192_SHA512,
    webpki_ring::RSA_PKCS1_2048_8192_SHA256_ABSENT_PARAMS,
    webpki_ring::RSA_PKCS1_2048_8192_SHA384_ABSENT_PARAMS,
    webpki_ring::RSA_PKCS1_2048_8192_SHA512_ABSENT_PARAMS,
    webpki_ring::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    webpki_ring::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    webpki_ring::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// ECDSA in the combinations that webpki lacks with *ring*.
#[derive(Debug)]
struct Ecdsa {
    kind: KeyKind,
    scheme: SignatureScheme,
    public_key: AlgorithmIdentifier,
    signature: AlgorithmIdentifier,
}

impl SignatureVerificationAlgorithm for Ecdsa {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let sound = verify_with(
            self.kind,
            public_key,
            self.scheme,
            message,
            signature,
            SignatureEncoding::Der,
        );
        if sound { Ok(()) } else { Err(InvalidSignature) }
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.public_key
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.signature
    }
}

const ECDSA_P256_SHA512: &dyn SignatureVerificationAlgorithm = &Ecdsa {
    kind: KeyKind::EcP256,
    scheme: SignatureScheme::EcdsaSha2_512,
    public_key: alg_id::ECDSA_P256,
    signature: alg_id::ECDSA_SHA512,
};

const ECDSA_P384_SHA512: &dyn SignatureVerificationAlgorithm = &Ecdsa {
    kind: KeyKind::EcP384,
    scheme: SignatureScheme::EcdsaSha2_512,
    public_key: alg_id::ECDSA_P384,
    signature: alg_id::ECDSA_SHA512,
};

const ECDSA_P521_SHA256: &dyn SignatureVerificationAlgorithm = &Ecdsa {
    kind: KeyKind::EcP521,
    scheme: SignatureScheme::EcdsaSha2_256,
    public_key: alg_id::ECDSA_P521,
    signature: alg_id::ECDSA_SHA256,
};

const ECDSA_P521_SHA384: &dyn SignatureVerificationAlgorithm = &Ecdsa {
    kind: KeyKind::EcP521,
    scheme: SignatureScheme::EcdsaSha2_384,
    public_key: alg_id::ECDSA_P521,
    signature: alg_id::ECDSA_SHA384,
};

pub(super) const ECDSA_P521_SHA512: &dyn SignatureVerificationAlgorithm = &Ecdsa {
    kind: KeyKind::EcP521,
    scheme: SignatureScheme::EcdsaSha2_512,
    public_key: alg_id::ECDSA_P521,
    signature: alg_id::ECDSA_SHA512,
};

/// The name of a signature algorithm that is too weak, from the content of its AlgorithmIdentifier.
pub(crate) fn weak_name(algorithm: &[u8]) -> Option<&'static str> {
    let names: [(&[u8], &str); 8] = [
        (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 2], "RSA with MD2"),
        (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 3], "RSA with MD4"),
        (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 4], "RSA with MD5"),
        (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 5], "RSA with SHA-1"),
        (&[0x2b, 0x0e, 3, 2, 0x1d], "RSA with SHA-1"),
        (&[0x2a, 0x86, 0x48, 0xce, 0x38, 4, 3], "DSA with SHA-1"),
        (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1], "ECDSA with SHA-1"),
        (
            &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10],
            "RSA-PSS with SHA-1 or other parameters than usual",
        ),
    ];
    let oid = super::der::Der::new(algorithm).expect(super::der::OID)?.body;
    names
        .into_iter()
        .find(|(known, _)| *known == oid)
        .map(|(_, name)| name)
}
