//! What user interfaces show: the whole truth at one moment.

use super::up::Up;
use super::{Client, Phase};
use crate::command::{
    ChildSaStatus, Features, GatewayStatus, IkeSaStatus, PathStatus, State, Status, Traffic,
};
use crate::ike::{Established, add_traffic};
use crate::proposal::EspSuite;
use crate::timer::{Instant, UnixTime};
use crate::wire::TrafficSelector;

impl Client {
    /// The whole truth at this moment.
    #[must_use]
    pub fn status(&self) -> Status {
        let shown = &self.shown;
        let mut status = Status {
            state: match &self.phase {
                Phase::Idle if self.gate.is_locked() => State::Blocked,
                Phase::Idle => State::Idle,
                Phase::Connecting(_) => State::Connecting,
                Phase::Up(up) if !up.applied => State::Connecting,
                Phase::Up(up) if up.trouble.is_some() => State::Reconnecting,
                Phase::Up(_) => State::Connected,
                Phase::Lost(_) => State::Reconnecting,
                Phase::Leaving(_) => State::Disconnecting,
            },
            connection: self.connects,
            profile: shown.profile.clone(),
            since: shown.since,
            attempt: shown.attempt,
            stage: shown.stage,
            traffic: self.traffic(),
            failure: shown.failure.clone(),
            ..Status::default()
        };
        status.gateway = shown.host.as_ref().map(|host| GatewayStatus {
            host: host.clone(),
            address: None,
            identity: None,
            redirected_to: None,
        });
        match &self.phase {
            Phase::Idle | Phase::Leaving(_) => {}
            Phase::Connecting(attempt) => {
                if let (Some(gateway), Some(bound)) = (&mut status.gateway, attempt.bound()) {
                    gateway.address = Some(bound.path.remote);
                }
            }
            Phase::Lost(lost) => {
                status.attempt = lost.failures + 1;
                status.why = Some(lost.why);
                status.failure = Some(lost.failure.clone());
                status.stage = lost.attempt.as_ref().map(super::attempt::Attempt::stage);
                status.retry_at = lost.attempt.is_none().then(|| self.unix_at(lost.retry_at));
                status.addresses = lost.tunnel.addresses.clone();
                status.dns = lost.tunnel.dns.clone();
                status.mtu = Some(lost.tunnel.mtu);
            }
            Phase::Up(up) => {
                if let Some(sa) = up.sa.established() {
                    self.fill_connected(&mut status, up, sa);
                }
            }
        }
        status
    }

    /// What went through the tunnel, or through the last one.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let shown = &self.shown;
        let mut traffic = shown.traffic.clone();
        if let Phase::Up(up) = &self.phase
            && let Some(sa) = up.sa.established()
        {
            add_traffic(&mut traffic, sa.traffic());
        }
        for (reason, count) in [
            ("no_tunnel", shown.no_tunnel),
            ("unknown_spi", shown.unknown_spi),
            ("no_room", shown.no_room),
            ("congested", shown.congested),
        ] {
            if count > 0 {
                *traffic.dropped.entry(reason).or_default() += count;
            }
        }
        traffic
    }

    fn unix_at(&self, at: Instant) -> UnixTime {
        self.io.unix(at)
    }

    fn fill_connected(&self, status: &mut Status, up: &Up, sa: &Established) {
        let path = sa.path();
        if let Some(gateway) = &mut status.gateway {
            gateway.address = Some(path.remote);
            gateway.identity = Some(sa.identity().to_owned());
            gateway.redirected_to = up.config.redirected.last().map(|last| last.to.to_string());
        }
        if let Some((why, _)) = up.trouble {
            status.why = Some(why);
            if let Some(beside) = &up.beside {
                status.attempt = beside.failures + 1;
                status.retry_at = beside.attempt.is_none().then(|| self.unix_at(beside.retry_at));
            }
        }
        let (initiator_spi, responder_spi) = sa.spis();
        status.path = Some(PathStatus {
            local: path.local,
            remote: path.remote,
            transport: path.transport.name(),
            nat: sa.nat.name(),
            interface: up.bound.interface.clone(),
            rtt_ms: sa
                .round_trip()
                .map(|trip| u32::try_from(trip.as_millis()).unwrap_or(u32::MAX)),
        });
        status.ike_sa = Some(IkeSaStatus {
            initiator_spi,
            responder_spi,
            suite: sa.suite.to_string(),
            established: sa.since,
            rekey_at: Some(self.unix_at(sa.rekey_at)),
        });
        let texts = |selectors: &[TrafficSelector]| selectors.iter().map(ToString::to_string).collect();
        status.child_sas = sa
            .children
            .live()
            .map(|child| ChildSaStatus {
                inbound_spi: child.sa.inbound_spi.to_string(),
                outbound_spi: child.sa.outbound_spi.to_string(),
                suite: child.sa.suite.to_string(),
                local_ts: texts(&child.sa.selectors.local),
                remote_ts: texts(&child.sa.selectors.remote),
                rekey_at: Some(self.unix_at(child.rekey_at)),
            })
            .collect();
        status.addresses = up.tunnel.addresses.clone();
        status.notes = sa.notes.clone();
        status
            .notes
            .extend(sa.children.live().find_map(|child| slow(&child.sa.suite)));
        status.dns = up.tunnel.dns.clone();
        status.mtu = Some(up.tunnel.mtu);
        status.features = Features {
            mobike: sa.mobility.is_supported(),
            fragmentation: sa.fragments(),
            esn: sa.child_suite.esn,
            post_quantum: sa.is_post_quantum(),
            ppk: sa.has_ppk(),
        };
    }
}

/// What to know of a Child SA whose cipher costs several times what others do.
fn slow(suite: &EspSuite) -> Option<String> {
    (!suite.cipher.is_aead()).then(|| {
        format!(
            "The packets are protected by {suite}, which takes about ten times as much of the processor, and so of a battery, as \
             AES-GCM (`aes256gcm16`), which the gateway's administrator can allow there."
        )
    })
}
