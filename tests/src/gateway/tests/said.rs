//! What the gateway said, decrypted.

use peregrine_core::command::Path;
use peregrine_core::esp;
use peregrine_core::wire::iana::{KeMethod, NotifyType, PayloadType, ProtocolId};
use peregrine_core::wire::{EspSpi, Header, Payload, TrafficSelector, Ts, decode_payloads};

/// A decrypted message of the gateway's.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) path: Path,
    pub(super) header: Header,
    /// As it was on the wire.
    pub(super) raw: Vec<u8>,
    pub(super) first: PayloadType,
    pub(super) body: Vec<u8>,
}

impl Said {
    pub(super) fn payloads(&self) -> Vec<Payload<'_>> {
        decode_payloads(self.first, &self.body, Header::LEN).unwrap()
    }

    pub(super) fn kinds(&self) -> Vec<PayloadType> {
        self.payloads().iter().map(Payload::kind).collect()
    }

    pub(super) fn notifies(&self) -> Vec<(NotifyType, Vec<u8>)> {
        let payloads = self.payloads();
        let notes = payloads.iter().filter_map(|payload| match payload {
            Payload::Notify(it) => Some((it.kind, it.data.to_vec())),
            _ => None,
        });
        notes.collect()
    }

    pub(super) fn notify(&self, kind: NotifyType) -> Option<Vec<u8>> {
        let found = self.notifies().into_iter().find(|(it, _)| *it == kind);
        found.map(|(_, data)| data)
    }

    /// The only notify of a message that has nothing else.
    pub(super) fn error(&self) -> NotifyType {
        assert_eq!(self.kinds(), [PayloadType::NOTIFY], "nothing but an error");
        self.notifies()[0].0
    }

    /// The SPIs of ESP SAs that it deletes.
    pub(super) fn deleted(&self) -> Vec<EspSpi> {
        let payloads = self.payloads();
        let deletes = payloads.iter().filter_map(|payload| match payload {
            Payload::Delete(it) if it.protocol == ProtocolId::ESP => Some(&it.spis),
            _ => None,
        });
        deletes.flatten().map(|spi| esp::spi(spi).unwrap()).collect()
    }

    pub(super) fn deletes_ike(&self) -> bool {
        self.payloads()
            .iter()
            .any(|payload| matches!(payload, Payload::Delete(it) if it.protocol == ProtocolId::IKE))
    }

    pub(super) fn rekeyed_spi(&self) -> Option<EspSpi> {
        self.payloads().iter().find_map(|payload| match payload {
            Payload::Notify(it) if it.kind == NotifyType::REKEY_SA => esp::spi(it.spi),
            _ => None,
        })
    }

    pub(super) fn nonce(&self) -> Vec<u8> {
        let payloads = self.payloads();
        let nonce = payloads.iter().find_map(|payload| match payload {
            Payload::Nonce(nonce) => Some(nonce.to_vec()),
            _ => None,
        });
        nonce.unwrap()
    }

    pub(super) fn ke(&self) -> Option<(KeMethod, Vec<u8>)> {
        self.payloads().iter().find_map(|payload| match payload {
            Payload::Ke(ke) => Some((ke.method, ke.data.to_vec())),
            _ => None,
        })
    }

    /// The SPI of its first proposal.
    pub(super) fn spi(&self) -> Vec<u8> {
        let payloads = self.payloads();
        let spi = payloads.iter().find_map(|payload| match payload {
            Payload::Sa(proposals) => Some(proposals[0].spi.to_vec()),
            _ => None,
        });
        spi.unwrap()
    }

    pub(super) fn selectors(&self) -> (Vec<TrafficSelector>, Vec<TrafficSelector>) {
        let ranges = |selectors: &[Ts<'_>]| {
            let only = selectors.iter().map(|ts| match ts {
                Ts::Range(range) => *range,
                Ts::Unknown { .. } => panic!("a selector of another kind"),
            });
            only.collect()
        };
        let (mut i, mut r) = (None, None);
        for payload in &self.payloads() {
            match payload {
                Payload::TsInitiator(selectors) => i = Some(ranges(selectors)),
                Payload::TsResponder(selectors) => r = Some(ranges(selectors)),
                _ => {}
            }
        }
        (i.unwrap(), r.unwrap())
    }
}

/// An unprotected message.
pub(super) fn clear(message: &[u8]) -> Said {
    let header = Header::decode(message).unwrap();
    Said {
        path: Path::udp("0.0.0.0:0".parse().unwrap(), "0.0.0.0:0".parse().unwrap()),
        header,
        raw: message.to_vec(),
        first: header.next_payload,
        body: message[Header::LEN..].to_vec(),
    }
}
