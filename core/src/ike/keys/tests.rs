use hex_literal::hex;

use super::*;
use crate::crypto::{Encr, Integ};
use crate::proposal::{AdditionalKeyExchanges, IkeProposal, select_ike};
use crate::wire::iana::KeMethod;

const AES_CBC_SHA1: CipherSuite = CipherSuite {
    encr: Encr::AesCbc { bits: 128 },
    integ: Some(Integ::HmacSha1_96),
};
const AES_CBC_SHA384: CipherSuite = CipherSuite {
    encr: Encr::AesCbc { bits: 128 },
    integ: Some(Integ::HmacSha2_384_192),
};
const AES_GCM: CipherSuite = CipherSuite {
    encr: Encr::AesGcm16 { bits: 256 },
    integ: None,
};

fn octets(from: u8, len: u8) -> Vec<u8> {
    (from..from + len).collect()
}

fn suite(cipher: CipherSuite, prf: Prf) -> IkeSuite {
    IkeSuite {
        cipher,
        prf,
        ke: KeMethod::CURVE25519,
        additional: AdditionalKeyExchanges::default(),
    }
}

/// The SA that the tests below go on from.
fn old() -> SaKeys {
    old_as(Role::Initiator)
}

fn old_as(role: Role) -> SaKeys {
    let suite = suite(AES_GCM, Prf::HmacSha2_256);
    let shared = Secret::new(octets(0x10, 32));
    SaKeys::derive(&suite, &shared, &old_nonces(), spis(0xd0, 0xe0), role).unwrap()
}

fn old_nonces() -> Nonces {
    Nonces {
        initiator: octets(0x40, 32),
        responder: octets(0x80, 32),
    }
}

fn spis(initiator: u8, responder: u8) -> Spis {
    let spi = |from| IkeSpi(octets(from, 8).try_into().unwrap());
    Spis {
        initiator: spi(initiator),
        responder: spi(responder),
    }
}

fn new_nonces() -> Nonces {
    Nonces {
        initiator: octets(0x20, 32),
        responder: octets(0x60, 32),
    }
}

fn secrets(additional: bool) -> SharedSecrets {
    let additional = if additional {
        vec![Secret::new(octets(0x33, 32)), Secret::new(octets(0x55, 66))]
    } else {
        Vec::new()
    };
    SharedSecrets {
        first: Secret::new(octets(1, 32)),
        additional,
    }
}

/// What `key` makes of a fixed packet: the same for two keys only if they are equal.
fn fingerprint(key: &PacketKey) -> Vec<u8> {
    let mut packet = vec![0; key.suite().iv_len() + 32 + key.suite().icv_len()];
    key.seal(7, b"associated", &[], &mut packet).unwrap();
    packet
}

fn is_key(key: &PacketKey, cipher: CipherSuite, encr: &[u8], integ: &[u8]) -> bool {
    fingerprint(key) == fingerprint(&PacketKey::new(cipher, encr, integ).unwrap())
}

/// NIST's CAVP, IKEv2 key derivation with HMAC-SHA1: SKEYSEED and 132 octets of keys, which are those of AES-CBC-128 with
/// HMAC-SHA1, and the SKEYSEED of a rekeying with the same nonces.
#[test]
fn nist_derives_the_same() {
    let nonces = Nonces {
        initiator: hex!("32b50d5f4a3763f3").to_vec(),
        responder: hex!("9206a04b26564cb1").to_vec(),
    };
    let spis = Spis {
        initiator: IkeSpi(hex!("34c9e7c188868785")),
        responder: IkeSpi(hex!("3ff77d760d2b2199")),
    };
    let shared = hex!("4b2c1f971981a8ad8d0abeafabf38cf75fc8349c148142465ed9c8b516b8be52");
    let dkm = hex!(
        "a14293677cc80ff8f9cc0eee30d895da9d8f405666e30ef0dfcb63c634a46002a2a63080e514a062768b76606f9fa5e9"
        "92204fc5a670bde3f10d6b027113936a5c55b648a194ae587b0088d52204b702c979fa280870d2ed41efa9c549fd1119"
        "8af1670b143d384bd275c5f594cf266b05ebadca855e4249520a441a81157435a7a56cc4"
    );
    for (role, first, second) in [(Role::Initiator, 0, 1), (Role::Responder, 1, 0)] {
        let suite = suite(AES_CBC_SHA1, Prf::HmacSha1);
        let keys = SaKeys::derive(&suite, &Secret::from_slice(&shared), &nonces, spis, role).unwrap();
        let integ = [&dkm[20..40], &dkm[40..60]];
        let encr = [&dkm[60..76], &dkm[76..92]];
        assert_eq!(keys.derive.as_bytes(), &dkm[..20]);
        assert!(
            is_key(&keys.seal, AES_CBC_SHA1, encr[first], integ[first]),
            "{role:?}"
        );
        assert!(
            is_key(&keys.open, AES_CBC_SHA1, encr[second], integ[second]),
            "{role:?}"
        );
        assert_eq!(keys.proof_initiator.as_bytes(), &dkm[92..112]);
        assert_eq!(keys.proof_responder.as_bytes(), &dkm[112..]);
        assert_eq!((keys.role, keys.next_iv), (role, 0));
        let shared = SharedSecrets {
            first: Secret::from_slice(&hex!(
                "863f3c9d06efd39d2b907b97f8699e5dd5251ef64a2a176f36ee40c87d4f9330"
            )),
            additional: Vec::new(),
        };
        assert_eq!(
            keys.rekeyed_seed(&shared, &nonces).as_bytes(),
            hex!("63e81194946ebd05df7df5ebf5d8750056bf1f1d")
        );
    }
}

/// RFC 9370 has no vectors: these and those of the tests below are of an independent implementation over Python's hmac.
#[test]
fn an_additional_key_exchange() {
    let encr = [
        hex!("c33c14e34adf1c93f95253f8ea6768f6982dde880e7dde6008e68cc4e7f2695ff63e762f"),
        hex!("8231906486f2bcef008691bfe37b032b724de12bd85e40d2c4998f7473ea102c4c026656"),
    ];
    for (role, ours, theirs) in [(Role::Initiator, 0, 1), (Role::Responder, 1, 0)] {
        let mut before = old_as(role);
        before.next_iv = 3;
        let keys = before
            .derive_next(
                &suite(AES_GCM, Prf::HmacSha2_256),
                &Secret::new(octets(0x33, 32)),
                &old_nonces(),
                spis(0xd0, 0xe0),
            )
            .unwrap();
        assert_eq!(
            keys.derive.as_bytes(),
            hex!("9c84079596efe037131804e310697c592794d8f8f3be170864c7438eea3b7f20")
        );
        assert!(is_key(&keys.seal, AES_GCM, &encr[ours], &[]), "{role:?}");
        assert!(is_key(&keys.open, AES_GCM, &encr[theirs], &[]), "{role:?}");
        assert_eq!(
            keys.proof_initiator.as_bytes(),
            hex!("bd22b7dffa3d94e3dada4e56cd22287ad659fba55c4671628251efc91e4a8484")
        );
        assert_eq!(
            keys.proof_responder.as_bytes(),
            hex!("c719d82abf719fd27903eee3577fe676cfc5506a624d6af09b544f2557a1a8b2")
        );
        assert_eq!((keys.role, keys.next_iv), (role, 0));
    }
}

/// What a post-quantum key exchange protected stays protected, for SK_d goes on from SA to SA.
#[test]
fn keys_know_of_a_post_quantum_key_exchange() {
    let classical = suite(AES_GCM, Prf::HmacSha2_256);
    let hybrid = "aes256gcm16-prfsha256-x25519-ke1_mlkem768";
    let offer = [IkeProposal::parse(hybrid).unwrap()];
    let hybrid = select_ike(&offer, &[offer[0].to_wire(1, &[])]).unwrap();
    let (shared, nonces, spis) = (Secret::new(octets(0x33, 32)), old_nonces(), spis(0xd0, 0xe0));
    let next = |suite| old().derive_next(suite, &shared, &nonces, spis).unwrap();
    let rekeyed = |keys: SaKeys, suite| {
        keys.derive_rekeyed(suite, &secrets(false), &nonces, spis, Role::Responder)
            .unwrap()
            .post_quantum
    };
    assert!(!old().post_quantum);
    assert!(!next(&classical).post_quantum);
    assert!(next(&hybrid).post_quantum);
    assert!(!rekeyed(old(), &classical));
    assert!(rekeyed(old(), &hybrid));
    assert!(rekeyed(next(&hybrid), &classical));
}

/// RFC 8784, section 3. What protects messages stays.
#[test]
fn a_ppk() {
    let ppk = Secret::new(octets(0x01, 40));
    let before = old();
    let mut keys = old();
    let without = keys.stir_in(&ppk).unwrap();
    assert!(keys.ppk && !before.ppk);
    assert_eq!(
        keys.derive.as_bytes(),
        hex!("d3e588a5c912d194a1fc4d5d9ba1a21d9b47e8a450d5ffbd3f5d9a2eeab46e78")
    );
    assert_eq!(
        keys.proof_initiator.as_bytes(),
        hex!("59531c27f2f897e8fc0b4e5616c712be30a2fdaae7bdefc04c795e823cc169c1")
    );
    assert_eq!(
        keys.proof_responder.as_bytes(),
        hex!("2e627440968b8434ac8a2090bbb1ed78e9791eb5af275ccd453c845b4ff4b363")
    );
    assert_eq!(fingerprint(&keys.seal), fingerprint(&before.seal));
    assert_eq!(fingerprint(&keys.open), fingerprint(&before.open));
    let nonces = new_nonces();
    let suite = suite(AES_GCM, Prf::HmacSha2_256);
    let next = keys
        .derive_rekeyed(&suite, &secrets(false), &nonces, spis(1, 2), Role::Initiator)
        .unwrap();
    assert!(next.ppk, "it is in SK_d, and so in all that comes after");
    keys.go_without(without);
    assert!(!keys.ppk);
    assert_eq!(keys.derive, before.derive);
    assert_eq!(keys.proof_initiator, before.proof_initiator);
    assert_eq!(keys.proof_responder, before.proof_responder);
}

/// Other PRF, cipher, nonces and SPIs than the old SA has.
#[test]
fn a_rekeyed_sa() {
    struct Expected {
        derive: [u8; 64],
        integ: [[u8; 48]; 2],
        encr: [[u8; 16]; 2],
        proof: [[u8; 64]; 2],
    }
    let one = Expected {
        derive: hex!(
            "a1760b45120a345e644bd882a43d7fbc021b4b9ef5960b9e223157ef728eac5a"
            "9804411eab3ec0251fbc1fb61020ab86d2135363ece395b04b7153ca0ba847a7"
        ),
        integ: [
            hex!(
                "b903975e90099e17179ec2797c093eb933a63717bc401116f21cc09f334eac78f380eb59d4e960a66036219d7928318e"
            ),
            hex!(
                "07df032ec0fb41eb35454a567617a38289c01d42ab2a29d445588affc66d0370b6d80662a54a5f3a87b80cb52326c231"
            ),
        ],
        encr: [
            hex!("7fab1515f76f6ebdbf5ed1a98ee16a75"),
            hex!("9d2f2f3fe8f7b5c98d26c5f70de0a613"),
        ],
        proof: [
            hex!(
                "a73bb3bd1c6466a0effd43223c833b021e38447bf4482d1bfe0d46cb4263ac79"
                "c29adea1ad4699a60742d798e52bd86ffd4fbc65e9d424061dc2e6e86c876f1c"
            ),
            hex!(
                "3c5daf925c036b935ac9f8fbfcc82295d7bce50f5f44404eda6e2539307dcc82"
                "899734067e1e9aa7e5a24368170573d21cc218464355ee6d6f38ff3d4a048e25"
            ),
        ],
    };
    let three = Expected {
        derive: hex!(
            "3fd0e8ee94701093e77cf823a6265d2a9f38c94a080b64406687376176fcbe4a"
            "42f248772cf91e4c5b0d90b7af491245a851f2b6994210d082af15232470a086"
        ),
        integ: [
            hex!(
                "87008536227de833d896d95221f58141113d3499c96243276cf8d9009b76ac57494834001e7a9f1adbc60946c45c76ef"
            ),
            hex!(
                "176aaaac53fda2c69d537dbc7d4671ca7a3b5d7688adb1ff37db2996b505481986fd059368a8c53cd3c41750c99e2cf3"
            ),
        ],
        encr: [
            hex!("528c86fdfff7021862e9184dcf077284"),
            hex!("e71701bf8ab79d73cab72f7ca89fbd11"),
        ],
        proof: [
            hex!(
                "5ea0b11e0c5dc1d4edbcd273e4bf64d8a4d88cdc0d026a2abfbb78c05952c9b1"
                "532708c78ceb48996a4ad1f4292c194594402d9a4cfcdd235809499605082d0d"
            ),
            hex!(
                "d93640426238c4ac462484e267e9fcecb76d31cbe589c3f7cbcb8713f1703464"
                "bfa8745794df859ed7ba634a4aa7cd70912def188e8d495086d8ffc50ddf95fb"
            ),
        ],
    };
    for (additional, expected) in [(false, one), (true, three)] {
        for (role, ours, theirs) in [(Role::Initiator, 0, 1), (Role::Responder, 1, 0)] {
            let suite = suite(AES_CBC_SHA384, Prf::HmacSha2_512);
            let keys = old()
                .derive_rekeyed(
                    &suite,
                    &secrets(additional),
                    &new_nonces(),
                    spis(0xa0, 0xb0),
                    role,
                )
                .unwrap();
            assert_eq!(keys.derive.as_bytes(), expected.derive);
            let is = |key: &PacketKey, side: usize| {
                is_key(key, AES_CBC_SHA384, &expected.encr[side], &expected.integ[side])
            };
            assert!(is(&keys.seal, ours) && is(&keys.open, theirs), "{role:?}");
            assert_eq!(keys.proof_initiator.as_bytes(), expected.proof[0]);
            assert_eq!(keys.proof_responder.as_bytes(), expected.proof[1]);
            assert_eq!((keys.role, keys.prf, keys.next_iv), (role, Prf::HmacSha2_512, 0));
        }
    }
}

#[test]
fn a_child_sa() {
    let expected = [
        (
            None,
            hex!(
                "f7b8202a66b89925ca985e688c516f1aeff385f5aefbe10e33d5ea9f4cd243c5e803f0f9f683f5c662dcd258e64942da"
                "b663505d1f066a909101d987d16223e028419a22b489abf173badee8911277297cda0da087bc803e11a72a9409f0338b"
                "878afa3909864c48202e089dc5f4085f7bcaf52af6bc50bad9140ee3f8a8dba5"
            ),
        ),
        (
            Some(secrets(false)),
            hex!(
                "a481f8039ced96a64e48e9fd4f8a0e1355da7a7f6f60bdbf231956611d01ef77137ec2ac9f7ccd2705821eb43bf3c22c"
                "afcfaffa9436cbda6ea5c2e42a09d5b3d07b3a8cbd24a7530d5acb1926a5b1c6d3f275a621e48a9bf4412508cba849e4"
                "27a41a7c02efa2dfbf3a40642eef4162aac1a36d608041f5873cbe7c5d411736"
            ),
        ),
        (
            Some(secrets(true)),
            hex!(
                "2a9e00e44f7136c83e2a1dcaa33eff7050165c9740da8c8c45949869c7de8d6f37db4f8cc8c8058292e99333b7b13eb2"
                "8f1636a5f65d8b156d03a79dc8c5a6156ff2ef1bee2bae6d92d59b5e0e56ebea8068c915280f415825efeb5aa6722ade"
                "5006b346d15c9b1c9c91c911a994251f582902767dcbe223d80f461bb0dada18"
            ),
        ),
    ];
    for (shared, material) in &expected {
        let (there, back) = material.split_at(64);
        for (role, ours, theirs) in [(Role::Initiator, there, back), (Role::Responder, back, there)] {
            let keys = old()
                .child_keys(AES_CBC_SHA384, shared.as_ref(), &new_nonces(), role)
                .unwrap();
            assert!(
                is_key(&keys.outbound, AES_CBC_SHA384, &ours[..16], &ours[16..]),
                "{role:?}"
            );
            assert!(
                is_key(&keys.inbound, AES_CBC_SHA384, &theirs[..16], &theirs[16..]),
                "{role:?}"
            );
        }
    }
}

#[test]
fn what_one_side_seals_the_other_opens() {
    let both = [Role::Initiator, Role::Responder].map(|role| {
        let suite = suite(AES_GCM, Prf::HmacSha2_384);
        let old = old();
        let keys = old
            .derive_rekeyed(&suite, &secrets(true), &new_nonces(), spis(0xa0, 0xb0), role)
            .unwrap();
        let child = keys.child_keys(AES_GCM, None, &new_nonces(), role).unwrap();
        (keys, child)
    });
    let [(initiator, child_initiator), (responder, child_responder)] = both;
    assert_eq!(fingerprint(&initiator.seal), fingerprint(&responder.open));
    assert_eq!(fingerprint(&initiator.open), fingerprint(&responder.seal));
    assert_ne!(fingerprint(&initiator.open), fingerprint(&initiator.seal));
    assert_eq!(
        fingerprint(&child_initiator.outbound),
        fingerprint(&child_responder.inbound)
    );
    assert_eq!(
        fingerprint(&child_initiator.inbound),
        fingerprint(&child_responder.outbound)
    );
    assert_ne!(
        fingerprint(&child_initiator.inbound),
        fingerprint(&child_initiator.outbound)
    );
}

/// What Libreswan 5.2 had in its log (`plutodebug=all`) when it resumed an IKE SA: SK_d of the SA before, the nonces, the
/// SPIs, and the keys that came of them.
#[test]
fn libreswan_makes_the_same_keys_of_a_ticket() {
    let derive = hex!(
        "04d8adcbcdb9f789fe6c5ab312c21e350e8878094a6165daf299ffa48196c496"
        "89a335972f87da925143ba86d8b14b878574fae69e37f9ca2325a4fcb8d98b26"
    );
    let ticket = Ticket::for_tests(Secret::new(derive.to_vec()), suite(AES_GCM, Prf::HmacSha2_512));
    let nonces = Nonces {
        initiator: hex!("e856ab359b37f1c0416e173831132fe2c47b409560c4b89e19cd28060618182c").to_vec(),
        responder: hex!("2e2feb59b423a33889eb3ffcf918dcd914f1da2126fdc4f00004b7023999e009").to_vec(),
    };
    let spis = Spis {
        initiator: IkeSpi(hex!("79762395e66d02e4")),
        responder: IkeSpi(hex!("29baf32a599a8e9f")),
    };
    let keys = SaKeys::derive_resumed(&ticket, &nonces, spis).unwrap();
    assert_eq!(
        keys.proof_initiator.as_bytes(),
        hex!(
            "20a441766de726713681ce23834cb0b7fd6297f5f226fda417d9f5842fa7788a"
            "284ae3fbf36d9fb99f711ea95b3955d51a1797d93513bb429492121be27b5c8c"
        )
    );
    assert_eq!(
        keys.proof_responder.as_bytes(),
        hex!(
            "88013d4520b0a53dca83360e1344c15283083679d9cc742b42e311ff2f536c90"
            "d317880c93c34c5f5ab7af9b14e44319f80857f6129bc06a6094583794b9e2cc"
        )
    );
}
