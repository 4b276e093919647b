//! What a seed decides: the two ends, and what happens to them.

use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use peregrine_core::command::RekeyKind;
use peregrine_core::profile::{AuthKind, Host, Profile};
use peregrine_core::rng::Rng;
use peregrine_tests::cast::{Cast, esp, ike};
use peregrine_tests::gateway::{Elsewhere, End, GatewayConfig, Life, Pfs, Unique};
use peregrine_tests::link::{Interface, Way};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MS: Duration = Duration::from_millis(1);

/// One thing that happens.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Send(u64),
    GatewaySends(u64),
    Rekey(RekeyKind),
    GatewayRekeys(RekeyKind),
    BothRekey(RekeyKind, RekeyKind, Duration),
    GatewayDeletesChild,
    GatewayDeletesIke,
    GatewayLosesChildren,
    GatewayRestarts,
    GatewayIsSilent(Duration),
    GatewayAsksLiveness,
    GatewayAnnouncesLifetime(Duration),
    GatewayAnnouncesAddresses(Vec<IpAddr>),
    GatewayRefusesUs(Duration),
    GatewayRedirects(Elsewhere),
    Move(Interface),
    Join(Interface),
    Leave(String),
    Offline(Duration),
    BlackHole(String),
    Blocked(Option<IpAddr>),
    /// In the network of this name, UDP and TCP do not get through.
    Transports(String, bool, bool),
    ConnectionsReset,
    ConnectionsStuck,
    Cut(Way, usize),
    NatForgets,
    NatPatience(Option<Duration>),
    Sleep(Duration),
    Loss(u64),
    Repetition(u64),
    Damage(u64),
    Jitter(Duration),
    Latency(Duration),
    Pause(Duration),
}

pub(crate) fn networks() -> Vec<Interface> {
    vec![
        Interface::new("wifi", &["10.11.0.2", "2001:db8:11::2"]).behind("198.51.100.11"),
        Interface::new("lte", &["10.12.0.2"])
            .behind("198.51.100.12")
            .carrying(1400),
        Interface::new("six", &["2001:db8:13::2"]).carrying(1400),
        Interface::new("home", &["10.14.0.2"]).carrying(1492),
        Interface::new("wire", &["10.15.0.2", "2001:db8:15::2"]),
    ]
}

pub(crate) fn v4() -> IpAddr {
    "192.0.2.1".parse().unwrap()
}

pub(crate) fn v6() -> IpAddr {
    "2001:db8::1".parse().unwrap()
}

/// What a seed decides.
pub(crate) struct Dice(Rng);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        let mut octets = [0x6d; 32];
        octets[..8].copy_from_slice(&seed.to_be_bytes());
        Self(Rng::new(octets))
    }

    /// One time in `n`.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.0.below(n) == 0
    }

    pub(crate) fn between(&mut self, range: Range<u64>) -> u64 {
        range.start + self.0.below(range.end - range.start)
    }

    fn seconds(&mut self, range: Range<u64>) -> Duration {
        Duration::from_secs(self.between(range))
    }

    pub(crate) fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.0.below(of.len() as u64)).unwrap()].clone()
    }

    /// Milliseconds mostly, minutes sometimes.
    pub(crate) fn pause(&mut self) -> Duration {
        match self.0.below(10) {
            0..5 => MS * u32::try_from(self.0.below(500)).unwrap(),
            5..8 => MS * u32::try_from(self.0.below(20_000)).unwrap(),
            _ => self.seconds(1..200),
        }
    }

    fn kind(&mut self) -> RekeyKind {
        self.pick(&[RekeyKind::IkeSa, RekeyKind::ChildSa])
    }

    pub(crate) fn step(&mut self) -> Step {
        match self.0.below(40) {
            0..4 => Step::Send(self.between(1..6)),
            4 | 5 => Step::GatewaySends(self.between(1..6)),
            6 | 7 => Step::Rekey(self.kind()),
            8 | 9 => Step::GatewayRekeys(self.kind()),
            10 | 11 => {
                let apart = MS * u32::try_from(self.0.below(60)).unwrap();
                Step::BothRekey(self.kind(), self.kind(), apart)
            }
            12 => Step::GatewayDeletesChild,
            13 => Step::GatewayDeletesIke,
            14 => Step::GatewayLosesChildren,
            15 => Step::GatewayRestarts,
            16 => Step::GatewayIsSilent(self.seconds(1..200)),
            17 => Step::GatewayAsksLiveness,
            18 => Step::GatewayAnnouncesLifetime(self.seconds(30..600)),
            19 => Step::GatewayAnnouncesAddresses(self.pick(&[vec![], vec![v4()], vec![v4(), v6()]])),
            20..23 => Step::Move(self.pick(&networks())),
            23 => Step::Join(self.pick(&networks())),
            24 => Step::Leave(self.pick(&networks()).name),
            25 => {
                let longest = self.pick(&[20, 400, 4000]);
                Step::Offline(self.seconds(1..longest))
            }
            26 => Step::BlackHole(self.pick(&networks()).name),
            27 => Step::Blocked(self.pick(&[None, Some(v4()), Some(v6())])),
            28 => Step::NatForgets,
            29 => Step::NatPatience(self.pick(&[
                None,
                Some(30 * SECOND),
                Some(60 * SECOND),
                Some(120 * SECOND),
            ])),
            30 => {
                let longest = self.pick(&[10, 100, 3600, 43_200, 7 * 86_400]);
                Step::Sleep(self.seconds(1..longest))
            }
            31 => Step::Loss(self.0.below(300)),
            32 => Step::Repetition(self.0.below(300)),
            33 => match self.0.below(3) {
                0 => Step::Damage(self.0.below(100)),
                1 => Step::Jitter(MS * u32::try_from(self.0.below(300)).unwrap()),
                _ => Step::Latency(MS * u32::try_from(self.between(1..300)).unwrap()),
            },
            38 => Step::GatewayRedirects(self.pick(&[
                Elsewhere::Address(v4()),
                Elsewhere::Address(v6()),
                Elsewhere::Name("vpn.example.org".into()),
            ])),
            34 | 35 => Step::Transports(self.pick(&networks()).name, !self.one_in(3), self.one_in(4)),
            36 => Step::ConnectionsReset,
            37 => match self.0.below(3) {
                0 => Step::ConnectionsStuck,
                1 => Step::Cut(Way::Up, usize::try_from(self.0.below(3000)).unwrap()),
                _ => Step::Cut(Way::Down, usize::try_from(self.0.below(3000)).unwrap()),
            },
            _ if self.one_in(12) => Step::GatewayRefusesUs(self.seconds(1..60)),
            _ => Step::Pause(self.seconds(1..400)),
        }
    }

    /// A gateway and a profile for it.
    pub(crate) fn ends(&mut self, cast: &Cast) -> (GatewayConfig, Profile) {
        let (mut config, mut profile) = (cast.gateway(AuthKind::Psk), cast.profile(AuthKind::Psk));
        config.ike = ike("aes256gcm16-prfsha256-x25519");
        profile.ike.proposals = config.ike.clone();
        profile.ike.mobike = !self.one_in(5);
        config.mobike = !self.one_in(4);
        config.pfs = self.pick(&[Pfs::Never, Pfs::Optional, Pfs::Optional, Pfs::Required]);
        config.esp = esp(if config.pfs == Pfs::Never {
            "aes256gcm16-esn-noesn"
        } else {
            "aes256gcm16-x25519-esn-noesn"
        });
        profile.child.proposals = esp(self.pick(&[
            "aes256gcm16-esn",
            "aes256gcm16-x25519-esn",
            "aes256gcm16-x25519-noesn",
        ]));
        profile.child.require_pfs =
            config.pfs == Pfs::Required && profile.child.proposals == esp("aes256gcm16-x25519-esn");
        profile.child.rehearse = self.one_in(3);
        if config.pfs == Pfs::Required && profile.child.proposals == esp("aes256gcm16-esn") {
            config.pfs = Pfs::Optional;
        }
        // Several key exchanges (RFC 9370).
        if self.one_in(4) {
            config.ike = ike("aes256gcm16-prfsha256-x25519-ke1_ecp256");
            profile.ike.proposals = config.ike.clone();
            if config.pfs == Pfs::Optional {
                config.esp = esp("aes256gcm16-x25519-ke1_ecp256-esn-noesn");
                profile.child.proposals = config.esp.clone();
            }
        }
        if self.one_in(3) {
            profile.child.rekey = self.seconds(10..90);
        }
        if self.one_in(3) {
            profile.ike.rekey = self.seconds(30..300);
        }
        if self.one_in(3) {
            let end = self.pick(&[End::Rekey, End::Rekey, End::Delete]);
            config.child_life = Some(Life {
                age: self.seconds(10..120),
                end,
            });
        }
        if self.one_in(3) {
            let end = self.pick(&[End::Rekey, End::Rekey, End::Delete]);
            config.ike_life = Some(Life {
                age: self.seconds(60..300),
                end,
            });
        }
        profile.ike.dpd = self.seconds(10..60);
        config.dpd = self.pick(&[None, Some(20 * SECOND), Some(60 * SECOND)]);
        config.rekey_after_update = self.one_in(4);
        config.check_routability = self.one_in(4);
        config.complain = !self.one_in(3);
        config.unique = self.pick(&[Unique::Keep, Unique::Replace]);
        config.sticky = !self.one_in(3);
        if self.one_in(6) {
            config.auth_lifetime = Some(self.seconds(70..900));
        }
        if self.one_in(2) {
            config.tickets = Some(self.pick(&[30 * SECOND, 300 * SECOND, 3600 * SECOND]));
            config.tickets_survive = self.one_in(2);
        }
        config.fragment = self.pick(&[None, Some(1200), Some(576)]);
        profile.ike.fragment_size = self.pick(&[1280, 1400, 576]);
        if self.one_in(2) {
            config.addresses = vec![v4(), v6()];
        }
        if self.one_in(2) {
            profile.gateway.host = Host::Name("vpn.example.org".into());
        }
        // A number has to fit into every network.
        profile.network.mtu = self.pick(&[None, Some(1280)]);
        (config, profile)
    }
}
