//! CREATE_CHILD_SA by hand, from either end.

use std::net::IpAddr;

use peregrine_core::crypto::hash::hmac;
use peregrine_core::crypto::{HashKind, KeyExchange};
use peregrine_core::esp;
use peregrine_core::proposal::IkeProposal;
use peregrine_core::wire::iana::{
    ExchangeType, KeMethod, NotifyType, PayloadType, ProtocolId, TransformType,
};
use peregrine_core::wire::{
    EspSpi, IkeSpi, Ke, Notify, Payload, Proposal, TrafficSelector, Transform, Ts, decode_payloads,
    encode_payloads,
};

use super::peer::{GCM, INNER, Keys, Sa, Table};
use super::said::Said;

/// A Child SA or IKE SA that the client asks for.
pub(super) struct Draft {
    pub(super) spi: Vec<u8>,
    pub(super) nonce: Vec<u8>,
    pub(super) ke: Option<KeyExchange>,
    first: PayloadType,
    body: Vec<u8>,
}

impl Draft {
    pub(super) fn payloads(&self) -> Vec<Payload<'_>> {
        decode_payloads(self.first, &self.body, 0).unwrap()
    }
}

pub(super) fn ke_payload(ke: &KeyExchange) -> Payload<'_> {
    Payload::Ke(Ke {
        method: ke.method(),
        data: ke.public(),
    })
}

fn ts(address: &str) -> Ts<'static> {
    let ip: IpAddr = address.parse().unwrap();
    Ts::from(TrafficSelector::addresses(ip, ip))
}

impl Table {
    fn esp_transforms(&self, methods: &[KeMethod]) -> Vec<Transform> {
        let mut transforms = if self.esp_cipher == GCM {
            vec![Transform::new(TransformType::ENCR, 20, Some(256))]
        } else {
            vec![
                Transform::new(TransformType::ENCR, 12, Some(256)),
                Transform::new(TransformType::INTEG, 12, None),
            ]
        };
        transforms.push(Transform::new(TransformType::ESN, 0, None));
        let kes = methods
            .iter()
            .map(|method| Transform::new(TransformType::KE, method.0, None));
        transforms.extend(kes);
        transforms
    }

    /// What to ask for to get a Child SA, in place of another one or beside all. `methods` are on offer, the first
    /// one with a public value.
    pub(super) fn draft_child(&mut self, rekeys: Option<usize>, methods: &[KeMethod]) -> Draft {
        let spi = (u32::from_be_bytes(self.bytes()) | 0x100).to_be_bytes();
        let nonce: [u8; 32] = self.bytes();
        let ke = methods
            .first()
            .map(|method| KeyExchange::generate(*method, &mut self.rng).unwrap());
        let old = rekeys.map(|child| self.children[child].inbound.spi().0.to_be_bytes());
        let mut payloads = Vec::new();
        payloads.extend(old.as_ref().map(|spi| {
            Payload::Notify(Notify {
                protocol: ProtocolId::ESP,
                spi,
                kind: NotifyType::REKEY_SA,
                data: &[],
            })
        }));
        payloads.push(Payload::Sa(vec![Proposal {
            number: 1,
            protocol: ProtocolId::ESP,
            spi: spi.to_vec().into(),
            transforms: self.esp_transforms(methods),
        }]));
        payloads.push(Payload::Nonce(&nonce));
        payloads.extend(ke.as_ref().map(ke_payload));
        payloads.push(Payload::TsInitiator(vec![ts(INNER)]));
        payloads.push(Payload::TsResponder(vec![Ts::from(TrafficSelector::ANY_V4)]));
        let mut body = Vec::new();
        let first = encode_payloads(&payloads, &mut body).unwrap();
        Draft {
            spi: spi.to_vec(),
            nonce: nonce.to_vec(),
            ke,
            first,
            body,
        }
    }

    /// Makes what the gateway granted of a draft; the new Child SA's index.
    pub(super) fn make_child(&mut self, sa: usize, draft: &Draft, granted: &Said) -> usize {
        let shared = match (&draft.ke, granted.ke()) {
            (Some(ke), Some((method, theirs))) => {
                assert_eq!(method, ke.method());
                ke.agree(&theirs).unwrap().as_bytes().to_vec()
            }
            (None, None) => vec![],
            other => panic!("one key exchange without the other: {:?}", other.1),
        };
        let seed = [shared, draft.nonce.clone(), granted.nonce()].concat();
        let (local, remote) = granted.selectors();
        let keys = &self.sas[sa].keys;
        let (hash, d) = (keys.hash, keys.d.clone());
        let (inbound, outbound) = (esp::spi(&draft.spi).unwrap(), esp::spi(&granted.spi()).unwrap());
        self.add_child(&d, hash, &seed, true, inbound, outbound, local, remote);
        self.children.len() - 1
    }

    /// Rekeys a Child SA on an IKE SA; the new one's index.
    pub(super) fn rekey_child(&mut self, sa: usize, child: usize, methods: &[KeMethod]) -> usize {
        let draft = self.draft_child(Some(child), methods);
        let granted = self.ask(sa, ExchangeType::CREATE_CHILD_SA, &draft.payloads());
        self.make_child(sa, &draft, &granted)
    }

    /// Grants a Child SA that the gateway asked for: the answer as a datagram, and the new one's index.
    pub(super) fn grant_child(&mut self, sa: usize, request: &Said) -> (Vec<u8>, usize) {
        let spi = (u32::from_be_bytes(self.bytes()) | 0x100).to_be_bytes();
        let nonce: [u8; 32] = self.bytes();
        let ke = request.ke().map(|(method, theirs)| {
            let ke = KeyExchange::generate(method, &mut self.rng).unwrap();
            let shared = ke.agree(&theirs).unwrap().as_bytes().to_vec();
            (ke, shared)
        });
        let methods: Vec<KeMethod> = ke.iter().map(|(ke, _)| ke.method()).collect();
        let (remote, local) = request.selectors();
        let as_ts = |ranges: &[TrafficSelector]| ranges.iter().copied().map(Ts::from).collect();
        let mut payloads = vec![
            Payload::Sa(vec![Proposal {
                number: 1,
                protocol: ProtocolId::ESP,
                spi: spi.to_vec().into(),
                transforms: self.esp_transforms(&methods),
            }]),
            Payload::Nonce(&nonce),
        ];
        payloads.extend(ke.iter().map(|(ke, _)| ke_payload(ke)));
        payloads.push(Payload::TsInitiator(as_ts(&remote)));
        payloads.push(Payload::TsResponder(as_ts(&local)));
        let datagram = self.seal_reply(request, &payloads);
        let shared = ke.map(|(_, shared)| shared).unwrap_or_default();
        let seed = [shared, request.nonce(), nonce.to_vec()].concat();
        let keys = &self.sas[sa].keys;
        let (hash, d) = (keys.hash, keys.d.clone());
        let outbound = esp::spi(&request.spi()).unwrap();
        let inbound = EspSpi(u32::from_be_bytes(spi));
        self.said_nonce = nonce.to_vec();
        self.add_child(&d, hash, &seed, false, inbound, outbound, local, remote);
        (datagram, self.children.len() - 1)
    }

    /// What to ask for to get an IKE SA in place of another one.
    pub(super) fn draft_ike(&mut self, keywords: &str) -> Draft {
        let spi: [u8; 8] = self.bytes();
        let nonce: [u8; 32] = self.bytes();
        let offer = IkeProposal::parse(keywords).unwrap();
        let method = offer.key_exchanges().next().unwrap();
        let ke = KeyExchange::generate(method, &mut self.rng).unwrap();
        let payloads = [
            Payload::Sa(vec![offer.to_wire(1, &spi)]),
            Payload::Nonce(&nonce),
            ke_payload(&ke),
        ];
        let mut body = Vec::new();
        let first = encode_payloads(&payloads, &mut body).unwrap();
        Draft {
            spi: spi.to_vec(),
            nonce: nonce.to_vec(),
            ke: Some(ke),
            first,
            body,
        }
    }

    /// Makes what the gateway granted of a draft; the new IKE SA's index. `hash` is that of its PRF.
    pub(super) fn make_ike(&mut self, old: usize, draft: &Draft, granted: &Said, hash: HashKind) -> usize {
        let (method, theirs) = granted.ke().expect("a key exchange is never missing");
        let ke = draft.ke.as_ref().unwrap();
        assert_eq!(method, ke.method());
        let shared = ke.agree(&theirs).unwrap().as_bytes().to_vec();
        let nonces = [draft.nonce.clone(), granted.nonce()].concat();
        let i = IkeSpi(draft.spi.clone().try_into().unwrap());
        let r = IkeSpi(granted.spi().try_into().unwrap());
        self.add_ike(old, hash, &shared, &nonces, i, r, true)
    }

    /// `SKEYSEED = prf(SK_d (old), g^ir (new) | Ni | Nr)`, with the old PRF.
    #[expect(clippy::too_many_arguments, reason = "all that an IKE SA is made of")]
    fn add_ike(
        &mut self,
        old: usize,
        hash: HashKind,
        shared: &[u8],
        nonces: &[u8],
        i: IkeSpi,
        r: IkeSpi,
        is_initiator: bool,
    ) -> usize {
        let old = &self.sas[old].keys;
        let skeyseed = hmac(old.hash, &old.d, &[shared, nonces]);
        let keys = Keys::expand(self.ike_cipher, hash, skeyseed.as_bytes(), nonces, i, r);
        self.sas.push(Sa::new(i, r, is_initiator, keys, 0));
        self.sas.len() - 1
    }

    /// Rekeys an IKE SA; the new one's index.
    pub(super) fn rekey_ike(&mut self, old: usize) -> usize {
        let draft = self.draft_ike("aes256gcm16-prfsha256-x25519");
        let granted = self.ask(old, ExchangeType::CREATE_CHILD_SA, &draft.payloads());
        self.make_ike(old, &draft, &granted, HashKind::Sha2_256)
    }

    /// Grants an IKE SA that the gateway asked for: the answer as a datagram, and the new one's index.
    pub(super) fn grant_ike(&mut self, old: usize, request: &Said) -> (Vec<u8>, usize) {
        let spi: [u8; 8] = self.bytes();
        let nonce: [u8; 32] = self.bytes();
        let (method, theirs) = request.ke().expect("a key exchange is never missing");
        let ke = KeyExchange::generate(method, &mut self.rng).unwrap();
        let shared = ke.agree(&theirs).unwrap().as_bytes().to_vec();
        let transforms = vec![
            Transform::new(TransformType::ENCR, 20, Some(256)),
            Transform::new(TransformType::PRF, 5, None),
            Transform::new(TransformType::KE, method.0, None),
        ];
        let payloads = [
            Payload::Sa(vec![Proposal {
                number: 1,
                protocol: ProtocolId::IKE,
                spi: spi.to_vec().into(),
                transforms,
            }]),
            Payload::Nonce(&nonce),
            ke_payload(&ke),
        ];
        let datagram = self.seal_reply(request, &payloads);
        let nonces = [request.nonce(), nonce.to_vec()].concat();
        let i = IkeSpi(request.spi().try_into().unwrap());
        let new = self.add_ike(old, HashKind::Sha2_256, &shared, &nonces, i, IkeSpi(spi), false);
        (datagram, new)
    }
}
