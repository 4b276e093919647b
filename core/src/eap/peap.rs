//! PEAP version 0 (draft-kamath-pppext-peapv0, \[MS-PEAP\]): a tunnel to the server, which proves itself by certificate,
//! in it an EAP method that proves the user, and at the end the server's word in the tunnel that it is content, which
//! we repeat.

use std::fmt;

use rustls::SupportedProtocolVersion;
use rustls::version::TLS12;
use zeroize::Zeroizing;

use super::binding::Binding;
use super::packet::{self, Code, Packet};
use super::tunnel::{Heard, Inside, Peer, Setup, Then, Tls};
use super::{Eap, EapError, EapPeap, Msk, Progress, Step, Turn};
use crate::crypto::Secret;
use crate::timer::UnixTime;
use crate::wire::iana::EapType;

const VERSIONS: &[&SupportedProtocolVersion] = &[&TLS12];

/// Answers the Start packet.
pub(super) fn start(
    config: EapPeap,
    data: &[u8],
    now: UnixTime,
) -> Result<(Peer<Tunnelled>, Progress), EapError> {
    let EapPeap {
        server,
        username,
        inner,
    } = config;
    let inside = Tunnelled {
        eap: Eap::inner(&username, inner),
        bound: None,
    };
    let setup = Setup {
        server,
        ours: None,
        versions: VERSIONS,
        // Windows Server misreads a ClientHello without it when it binds the inner method to the tunnel.
        announce: true,
    };
    Peer::start(setup, inside, data, now)
}

/// What is said in the tunnel.
pub(super) struct Tunnelled {
    eap: Eap,
    /// The key of both, once the server has bound the inner method to the tunnel.
    bound: Option<Msk>,
}

impl Inside for Tunnelled {
    fn start(&mut self, _outer_tlvs: &[u8]) -> Result<(), EapError> {
        Ok(())
    }

    fn advance(&mut self, tls: &mut Tls, heard: &Heard, turn: &mut Turn<'_>) -> Result<Then, EapError> {
        if heard.is_early(tls) {
            return Err(EapError::Tls(
                "the server sent application data too early".to_owned(),
            ));
        }
        if heard.closed {
            return Err(EapError::Refused);
        }
        // The first word in the tunnel is the server's.
        if heard.plaintext.is_empty() {
            return Ok(Then::Continue);
        }
        let request = Inner::of(&heard.plaintext, turn.identifier)?;
        if request.kind == EapType::TLV {
            return self.conclude(tls, &request, turn);
        }
        let packet = packet::request(turn.identifier, request.kind, request.data)?;
        let step = self.eap.handle_inner(&packet, turn)?;
        follow(step, tls)
    }

    fn answer(&mut self, tls: &mut Tls, answer: &Secret) -> Result<Then, EapError> {
        let step = self.eap.answer(answer)?;
        follow(step, tls)
    }

    fn key(&self, tls: &Tls) -> Result<Msk, EapError> {
        match &self.bound {
            Some(msk) => Ok(msk.clone()),
            None => tunnel_key(tls),
        }
    }
}

impl Tunnelled {
    /// Answers the server's result with our own.
    fn conclude(
        &mut self,
        tls: &mut Tls,
        request: &Inner<'_>,
        turn: &mut Turn<'_>,
    ) -> Result<Then, EapError> {
        let extensions = Extensions::decode(request.data)?;
        let (verdict, then) = match (extensions.result, self.eap.is_content()) {
            (Verdict::Success, true) => (Verdict::Success, Then::Complete),
            (Verdict::Success, false) => (Verdict::Failure, Then::Abort(EapError::EarlySuccess)),
            (Verdict::Failure, _) => (Verdict::Failure, Then::Abort(EapError::Refused)),
        };
        let mut answer = tlv::encode(tlv::MANDATORY | tlv::RESULT, &verdict.code());
        if let (Verdict::Success, Some(proof)) = (verdict, extensions.binding) {
            let binding = Binding::new(&tunnel_key(tls)?, self.eap.key());
            binding.check(proof)?;
            answer.extend(tlv::encode(
                tlv::CRYPTO_BINDING,
                &binding.answer(turn.rng.bytes()),
            ));
            self.bound = Some(binding.msk());
        }
        tls.say(&packet::response(request.identifier, EapType::TLV, &answer)?)?;
        Ok(then)
    }
}

impl fmt::Debug for Tunnelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnelled")
            .field("eap", &self.eap)
            .finish_non_exhaustive()
    }
}

fn tunnel_key(tls: &Tls) -> Result<Msk, EapError> {
    tls.msk(EapType::PEAP, b"client EAP encryption")
}

fn follow(step: Step, tls: &mut Tls) -> Result<Then, EapError> {
    match step {
        Step::Reply(packet) => {
            let packet = Zeroizing::new(packet);
            // Type and data alone: the peer's half of what `Inner` undoes.
            tls.say(packet.get(4..).unwrap_or_default())?;
            Ok(Then::Continue)
        }
        Step::Ask(question) => Ok(Then::Ask(question)),
        // No method in a tunnel has a tunnel of its own.
        Step::Check(_) => Err(EapError::Malformed("TLS in TLS")),
        // Only the result counts.
        Step::Success(_) => Ok(Then::Continue),
    }
}

/// A request in the tunnel. Version 0 leaves its header out, except from those with the result; FreeRADIUS leaves it
/// in its first one, too.
struct Inner<'a> {
    identifier: u8,
    kind: EapType,
    data: &'a [u8],
}

impl<'a> Inner<'a> {
    fn of(plaintext: &'a [u8], outer: u8) -> Result<Self, EapError> {
        if let Ok(Packet { identifier, code }) = Packet::decode(plaintext) {
            match code {
                Code::Request { kind, data } => {
                    return Ok(Self {
                        identifier,
                        kind,
                        data,
                    });
                }
                // In version 0 the result alone says this.
                Code::Success | Code::Failure => {
                    return Err(EapError::Malformed("EAP-Success or EAP-Failure in the tunnel"));
                }
            }
        }
        match plaintext {
            [kind, data @ ..] => Ok(Self {
                identifier: outer,
                kind: EapType(*kind),
                data,
            }),
            [] => Err(EapError::Malformed("an empty packet in the tunnel")),
        }
    }
}

/// What the EAP Extensions method tells (\[MS-PEAP\], section 2.2.8.1).
struct Extensions<'a> {
    result: Verdict,
    binding: Option<&'a [u8; 56]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Success,
    Failure,
}

impl Verdict {
    fn code(self) -> [u8; 2] {
        match self {
            Self::Success => [0, 1],
            Self::Failure => [0, 2],
        }
    }
}

impl<'a> Extensions<'a> {
    fn decode(mut data: &'a [u8]) -> Result<Self, EapError> {
        const BROKEN: EapError = EapError::Malformed("a PEAP extension that does not fit its length");
        let (mut result, mut binding) = (None, None);
        while !data.is_empty() {
            let (&[k0, k1, l0, l1], rest) = data.split_first_chunk().ok_or(BROKEN)?;
            let kind = u16::from_be_bytes([k0, k1]);
            let length = usize::from(u16::from_be_bytes([l0, l1]));
            let (value, rest) = rest.split_at_checked(length).ok_or(BROKEN)?;
            data = rest;
            let repeated = match kind & tlv::TYPE {
                tlv::RESULT => {
                    let verdict = match value {
                        [0, 1] => Verdict::Success,
                        [0, 2] => Verdict::Failure,
                        _ => return Err(EapError::Malformed("a PEAP result that is neither yes nor no")),
                    };
                    result.replace(verdict).is_some()
                }
                tlv::CRYPTO_BINDING => binding.replace(value.try_into().map_err(|_| BROKEN)?).is_some(),
                _ if kind & tlv::MANDATORY != 0 => {
                    return Err(EapError::Malformed(
                        "a mandatory PEAP extension that we do not know",
                    ));
                }
                _ => false,
            };
            if repeated {
                return Err(EapError::Malformed("a PEAP extension that is there twice"));
            }
        }
        let result = result.ok_or(EapError::Malformed("PEAP extensions without a result"))?;
        Ok(Self { result, binding })
    }
}

/// The parts of the EAP Extensions method (\[MS-PEAP\], sections 2.2.8.1.1 and 2.2.8.1.2).
mod tlv {
    pub(super) const MANDATORY: u16 = 0x8000;
    pub(super) const TYPE: u16 = 0x3fff;
    pub(super) const RESULT: u16 = 3;
    pub(super) const CRYPTO_BINDING: u16 = 12;

    pub(super) fn encode(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
        [&kind.to_be_bytes(), &length.to_be_bytes(), value].concat()
    }
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_come_with_and_without_header() {
        let compressed = Inner::of(b"\x1achallenge", 9).unwrap();
        assert_eq!(
            (compressed.identifier, compressed.kind, compressed.data),
            (9, EapType::MSCHAPV2, &b"challenge"[..])
        );
        let whole = Inner::of(&hex!("01 07 0005 01"), 9).unwrap();
        assert_eq!(
            (whole.identifier, whole.kind, whole.data),
            (7, EapType::IDENTITY, &b""[..])
        );
        let result = Inner::of(&hex!("01 07 000b 21 8003 0002 0001"), 9).unwrap();
        assert_eq!((result.identifier, result.kind), (7, EapType::TLV));
        for packet in [&hex!("03 07 0004"), &hex!("04 07 0004")] {
            assert!(matches!(Inner::of(packet, 9), Err(EapError::Malformed(_))));
        }
    }

    fn verdict(data: &[u8]) -> Result<(Verdict, bool), EapError> {
        Extensions::decode(data).map(|it| (it.result, it.binding.is_some()))
    }

    #[test]
    fn results_are_read() {
        assert_eq!(verdict(&hex!("8003 0002 0001")), Ok((Verdict::Success, false)));
        assert_eq!(verdict(&hex!("0003 0002 0002")), Ok((Verdict::Failure, false)));
        let unknown = hex!("0007 0001 ff 8003 0002 0001");
        assert_eq!(verdict(&unknown), Ok((Verdict::Success, false)));
        let bound = [&hex!("8003 0002 0001 000c 0038")[..], &[0; 56]].concat();
        assert_eq!(verdict(&bound), Ok((Verdict::Success, true)));
    }

    #[test]
    fn broken_extensions_are_refused() {
        for data in [
            &hex!("")[..],
            &hex!("8003"),
            &hex!("8003 0002"),
            &hex!("8003 0002 00"),
            &hex!("8003 0001 01"),
            &hex!("8003 0003 000100"),
            &hex!("8003 0002 0000"),
            &hex!("8003 0002 0003"),
            &hex!("8003 0002 0001 8003 0002 0001"),
            &hex!("8003 0002 0001 8007 0000"),
            &hex!("8003 0002 0001 000c 0001 00"),
            &hex!("8003 0002 0001 00"),
            &hex!("0007 0000"),
        ] {
            assert!(
                matches!(verdict(data), Err(EapError::Malformed(_))),
                "{data:02x?}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_packet_panics(data in prop::collection::vec(any::<u8>(), 0..80), identifier in any::<u8>()) {
            drop(Inner::of(&data, identifier));
            drop(Extensions::decode(&data));
        }
    }
}
