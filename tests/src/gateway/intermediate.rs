//! IKE_INTERMEDIATE: additional key exchanges, and what is proven of them (RFC 9242, section 3.3.2; RFC 9370, section
//! 2.2.2).

use std::collections::VecDeque;

use peregrine_core::command::Path;
use peregrine_core::crypto::{KeyExchange, Prf};
use peregrine_core::wire::iana::{KeMethod, NotifyType, PayloadType};
use peregrine_core::wire::{Header, Ke, Notify, Payload, encode_payloads};

use super::book::Cx;
use super::channel::Opened;
use super::session::Session;

/// The additional key exchanges of an SA that begins.
#[derive(Default)]
pub(super) struct Additional {
    /// Those still to come.
    pub(super) remaining: VecDeque<KeMethod>,
    /// IntAuth_i and IntAuth_r so far.
    proofs: [Vec<u8>; 2],
    /// The message ID of the first IKE_AUTH request.
    pub(super) first_auth: Option<u32>,
}

impl Additional {
    pub(super) fn new(methods: impl Iterator<Item = KeMethod>) -> Self {
        Self {
            remaining: methods.collect(),
            ..Self::default()
        }
    }

    /// `IntAuth = IntAuth_iN | IntAuth_rN | IKE_AUTH_MID`, or nothing where there was no IKE_INTERMEDIATE.
    pub(super) fn int_auth(&self) -> Vec<u8> {
        let [client, gateway] = &self.proofs;
        match self.first_auth {
            Some(id) if !client.is_empty() => [client, gateway, id.to_be_bytes().as_slice()].concat(),
            _ => Vec::new(),
        }
    }

    /// `IntAuth_n = prf(SK_p, IntAuth_(n-1) | IntAuth_A | IntAuth_P)`.
    fn add(&mut self, side: usize, prf: Prf, key: &[u8], message: &[u8]) {
        let proof = prf.compute(key, &[&self.proofs[side], message]);
        self.proofs[side] = proof.as_bytes().to_vec();
    }
}

/// The message as if it was neither encrypted nor divided.
fn in_clear(mut header: Header, first: PayloadType, body: &[u8]) -> Vec<u8> {
    let payload = u16::try_from(4 + body.len()).expect("a message of at most 64 KiB");
    header.next_payload = PayloadType::SK;
    header.length = u32::from(payload) + 28;
    let mut octets = Vec::new();
    header.encode(&mut octets);
    octets.extend([first.0, 0]);
    octets.extend(payload.to_be_bytes());
    octets.extend_from_slice(body);
    octets
}

impl Session {
    /// An additional key exchange.
    pub(super) fn add_key(&mut self, index: usize, opened: &Opened, path: Path, cx: &mut Cx<'_>) {
        let sa = &mut self.sas[index];
        let handshake = sa.handshake.as_deref_mut().expect("authentication is going on");
        let payloads = opened.payloads();
        let ke = payloads.iter().find_map(|payload| match payload {
            Payload::Ke(ke) => Some(*ke),
            _ => None,
        });
        let expected = handshake.additional.remaining.pop_front();
        let (Some(ke), Some(method)) = (ke.filter(|ke| Some(ke.method) == expected), expected) else {
            let error = Notify::new(NotifyType::INVALID_SYNTAX, &[]);
            return self.answer(index, &opened.header, &[Payload::Notify(error)], path, cx);
        };
        let (mut value, shared) =
            KeyExchange::respond(method, ke.data, &mut cx.book.rng).expect("a good value of the client's");
        if let Some(len) = cx.config.cut_ciphertext {
            value.truncate(len);
        }
        let reply = [Payload::Ke(Ke { method, data: &value })];
        let mut body = Vec::new();
        let first = encode_payloads(&reply, &mut body).expect("ours can be encoded");
        let response = sa.channel.response_header(&opened.header);
        let keys = &sa.channel.keys;
        let theirs = in_clear(opened.header, opened.first, &opened.body);
        let ours = in_clear(response, first, &body);
        let (pi, pr) = (&keys.proof_initiator, &keys.proof_responder);
        handshake.additional.add(0, keys.prf, pi.as_bytes(), &theirs);
        handshake.additional.add(1, keys.prf, pr.as_bytes(), &ours);
        let next = keys.next(&sa.suite, &shared, &handshake.nonces, sa.channel.spis);
        self.answer(index, &opened.header, &reply, path, cx);
        self.sas[index].channel.change_keys(next);
    }
}
