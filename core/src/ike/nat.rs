//! NAT detection (RFC 7296, section 2.23).

use std::net::{IpAddr, SocketAddr};

use super::keys::Spis;
use crate::crypto::sha1;
use crate::wire::Payload;
use crate::wire::iana::NotifyType;

/// Who is behind a NAT, as far as the IKE_SA_INIT exchange shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Nat {
    /// We are: our mapping needs keepalives.
    pub(crate) local: bool,
    /// The gateway is.
    pub(crate) remote: bool,
}

impl Nat {
    /// What the notifies in the response to our request say. A gateway that sends none knows no NAT traversal and
    /// cannot have rewritten our port.
    pub(crate) fn detect(
        payloads: &[Payload<'_>],
        spis: Spis,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Self {
        let differs = |kind: NotifyType, end: SocketAddr| {
            let mut hashes = payloads.iter().filter_map(|payload| match payload {
                Payload::Notify(notify) if notify.kind == kind => Some(notify.data),
                _ => None,
            });
            let expected = hash(spis, end);
            let mut seen = false;
            !hashes.any(|found| {
                seen = true;
                found == expected
            }) && seen
        };
        Self {
            local: differs(NotifyType::NAT_DETECTION_DESTINATION_IP, local),
            remote: differs(NotifyType::NAT_DETECTION_SOURCE_IP, remote),
        }
    }

    /// Whether a response says anything about NAT.
    pub(crate) fn is_told(payloads: &[Payload<'_>]) -> bool {
        let kinds = [
            NotifyType::NAT_DETECTION_SOURCE_IP,
            NotifyType::NAT_DETECTION_DESTINATION_IP,
        ];
        payloads
            .iter()
            .any(|payload| matches!(payload, Payload::Notify(notify) if kinds.contains(&notify.kind)))
    }

    /// The word of the status.
    pub(crate) fn name(self) -> &'static str {
        match (self.local, self.remote) {
            (false, false) => "none",
            (true, false) => "local",
            (false, true) => "remote",
            (true, true) => "both",
        }
    }
}

/// `SHA-1(SPIi | SPIr | address | port)`.
pub(crate) fn hash(spis: Spis, end: SocketAddr) -> [u8; 20] {
    let port = end.port().to_be_bytes();
    match end.ip() {
        IpAddr::V4(ip) => sha1(&[&spis.initiator.0, &spis.responder.0, &ip.octets(), &port]),
        IpAddr::V6(ip) => sha1(&[&spis.initiator.0, &spis.responder.0, &ip.octets(), &port]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{IkeSpi, Notify};

    const SPIS: Spis = Spis {
        initiator: IkeSpi([1; 8]),
        responder: IkeSpi([2; 8]),
    };

    fn notify(kind: NotifyType, data: &[u8]) -> Payload<'_> {
        Payload::Notify(Notify::new(kind, data))
    }

    #[test]
    fn nobody_is_behind_a_nat_when_any_hash_fits() {
        let (local, remote) = (
            "10.0.0.2:40000".parse().unwrap(),
            "[2001:db8::1]:4500".parse().unwrap(),
        );
        let (source, destination) = (hash(SPIS, remote), hash(SPIS, local));
        let payloads = [
            notify(NotifyType::NAT_DETECTION_SOURCE_IP, &[0; 20]),
            notify(NotifyType::NAT_DETECTION_SOURCE_IP, &source),
            notify(NotifyType::NAT_DETECTION_DESTINATION_IP, &destination),
        ];
        assert_eq!(
            Nat::detect(&payloads, SPIS, local, remote),
            Nat {
                local: false,
                remote: false
            }
        );
        let elsewhere = "10.0.0.2:40001".parse().unwrap();
        assert_eq!(
            Nat::detect(&payloads, SPIS, elsewhere, remote),
            Nat {
                local: true,
                remote: false
            }
        );
        assert_eq!(
            Nat::detect(&payloads[..1], SPIS, local, remote),
            Nat {
                local: false,
                remote: true
            }
        );
        assert_eq!(Nat::detect(&[], SPIS, local, remote), Nat::default());
    }
}
