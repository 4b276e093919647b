//! Connecting, in virtual time: every way to authenticate, over good and bad networks.

use std::time::Duration;

use peregrine_core::command::{Stage, State};
use peregrine_core::profile::{AuthKind, PeapInner, TtlsInner};
use peregrine_tests::cast::{Cast, packet};
use peregrine_tests::world::World;

const METHODS: [AuthKind; 12] = [
    AuthKind::Psk,
    AuthKind::Certificate,
    AuthKind::EapTls,
    AuthKind::EapMsChapV2,
    AuthKind::EapTtls(TtlsInner::MsChapV2),
    AuthKind::EapTtls(TtlsInner::EapMsChapV2),
    AuthKind::EapTtls(TtlsInner::Pap),
    AuthKind::EapTtls(TtlsInner::Gtc),
    AuthKind::EapTtls(TtlsInner::Md5),
    AuthKind::EapPeap(PeapInner::MsChapV2),
    AuthKind::EapPeap(PeapInner::Gtc),
    AuthKind::EapGtc,
];

fn carries_traffic(world: &mut World) {
    for (ours, theirs) in [("10.3.0.1", "10.9.9.9"), ("fd00:3::1", "fd00:9::9")] {
        let before = world.received.len();
        world.send(&packet(ours, theirs, 300));
        assert!(
            world.run_until(Duration::from_secs(1), |world| world.received.len() > before),
            "no echo: {:?}, {} at the gateway",
            world.status().traffic,
            world.gateway.received.len()
        );
        assert_eq!(world.received.last(), Some(&packet(theirs, ours, 300)));
    }
}

#[test]
fn every_method_connects_and_carries_both_families() {
    let cast = Cast::default();
    for method in METHODS {
        let mut world = cast.world(method, 1);
        world
            .connect_and_wait(cast.profile(method), cast.credentials())
            .unwrap_or_else(|it| panic!("{method:?}: {it}"));
        assert_eq!(world.gateway.established(), 1, "{method:?}");
        carries_traffic(&mut world);
        let stages: Vec<Stage> = world
            .statuses
            .iter()
            .filter_map(|(_, status)| status.stage)
            .collect();
        assert!(stages.is_sorted(), "{method:?}: {stages:?}");
        assert_eq!(stages.last(), Some(&Stage::Apply));
        world.disconnect();
        assert!(
            world.run_until(Duration::from_secs(3), |world| world.status().state
                == State::Idle)
        );
        assert_eq!(world.gateway.sas(), 0, "{method:?}: the gateway was told");
        assert!(world.plans.last().is_some_and(|plan| plan.tunnel.is_none()));
        assert_eq!(world.failure(), None);
    }
}
