//! Both ends act on the same SA at once, while the network loses one or two of the messages: every pair of actions,
//! every loss, both outcomes of the comparison of nonces (RFC 7296, sections 2.8.1, 2.8.2 and 2.25).

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::time::Duration;

use peregrine_core::command::{RekeyKind, State};
use peregrine_core::profile::AuthKind;
use peregrine_tests::cast::{Cast, esp, ike, packet};
use peregrine_tests::gateway::{Gateway, Side};
use peregrine_tests::link::{Fate, Rule, Way};
use peregrine_tests::world::World;

/// What the gateway does.
#[derive(Clone, Copy, Debug)]
enum Theirs {
    RekeyChild,
    RekeyIke,
    DeleteChild,
    DeleteIke,
}

const THEIRS: [Theirs; 4] = [
    Theirs::RekeyChild,
    Theirs::RekeyIke,
    Theirs::DeleteChild,
    Theirs::DeleteIke,
];

/// The numbers of the messages that are lost, each way.
const LOSSES: [&[(Way, u32)]; 37] = {
    use Way::{Down, Up};
    [
        &[],
        &[(Up, 0)],
        &[(Up, 1)],
        &[(Up, 2)],
        &[(Up, 3)],
        &[(Down, 0)],
        &[(Down, 1)],
        &[(Down, 2)],
        &[(Down, 3)],
        &[(Up, 0), (Up, 1)],
        &[(Up, 0), (Up, 2)],
        &[(Up, 0), (Up, 3)],
        &[(Up, 1), (Up, 2)],
        &[(Up, 1), (Up, 3)],
        &[(Up, 2), (Up, 3)],
        &[(Down, 0), (Down, 1)],
        &[(Down, 0), (Down, 2)],
        &[(Down, 0), (Down, 3)],
        &[(Down, 1), (Down, 2)],
        &[(Down, 1), (Down, 3)],
        &[(Down, 2), (Down, 3)],
        &[(Up, 0), (Down, 0)],
        &[(Up, 0), (Down, 1)],
        &[(Up, 0), (Down, 2)],
        &[(Up, 0), (Down, 3)],
        &[(Up, 1), (Down, 0)],
        &[(Up, 1), (Down, 1)],
        &[(Up, 1), (Down, 2)],
        &[(Up, 1), (Down, 3)],
        &[(Up, 2), (Down, 0)],
        &[(Up, 2), (Down, 1)],
        &[(Up, 2), (Down, 2)],
        &[(Up, 2), (Down, 3)],
        &[(Up, 3), (Down, 0)],
        &[(Up, 3), (Down, 1)],
        &[(Up, 3), (Down, 2)],
        &[(Up, 3), (Down, 3)],
    ]
};

fn act(world: &mut World, theirs: Theirs) {
    world.gateway_does(|gateway, now| match theirs {
        Theirs::RekeyChild => gateway.rekey_child(now),
        Theirs::RekeyIke => gateway.rekey_ike(now),
        Theirs::DeleteChild => gateway.delete_child(now),
        Theirs::DeleteIke => gateway.delete_ike(now),
    });
}

/// How many key exchanges an SA takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exchanges {
    One,
    /// One of them in IKE_FOLLOWUP_KE (RFC 9370, section 2.2.4).
    Two,
}

/// What happens in one case.
#[derive(Clone, Copy, Debug)]
struct Case {
    exchanges: Exchanges,
    ours: RekeyKind,
    theirs: Theirs,
    loser: Side,
    /// Milliseconds by which we are first.
    ahead: i64,
    lost: &'static [(Way, u32)],
}

/// Runs one case and fails unless both ends have the same SAs in the end and packets go through them.
fn converges(cast: &Cast, case: Case) {
    let Case {
        exchanges,
        ours,
        theirs,
        loser,
        ahead,
        lost,
    } = case;
    let case = format!("{case:?}");
    let (mut config, mut profile) = (cast.gateway(AuthKind::Psk), cast.profile(AuthKind::Psk));
    config.loser = Some(loser);
    if exchanges == Exchanges::Two {
        config.ike = ike("aes256gcm16-prfsha256-x25519-ke1_ecp256");
        config.esp = esp("aes256gcm16-x25519-ke1_ecp256-esn");
        profile.ike.proposals = config.ike.clone();
        profile.child.proposals = config.esp.clone();
    }
    let mut world = World::new(Gateway::new(config, 0x47), 1);
    world.connect_and_wait(profile, cast.credentials()).unwrap();
    world.link.rules = lost
        .iter()
        .map(|(way, number)| Rule {
            way: *way,
            exchange: None,
            message_id: None,
            skip: *number,
            times: 1,
            fate: Fate::Drop,
        })
        .collect();
    let apart = Duration::from_millis(ahead.unsigned_abs());
    if ahead >= 0 {
        world.rekey(ours);
        world.run(apart);
        act(&mut world, theirs);
    } else {
        act(&mut world, theirs);
        world.run(apart);
        world.rekey(ours);
    }
    let agreed = world.run_until(Duration::from_secs(100), |world| {
        world.link.rules.iter().all(|rule| rule.times == 0)
            && world.status().state == State::Connected
            && world.ends_agree()
    });
    let _ = agreed;
    world.run(Duration::from_secs(60));
    assert_eq!(world.status().state, State::Connected, "{case}");
    assert!(
        world.ends_agree(),
        "{case}: {:?} here, {:?} there",
        world.client_sa_set(),
        world.gateway.sa_set()
    );
    let set = world.gateway.sa_set();
    assert_eq!(set.len(), 1, "{case}: {set:?}");
    assert_eq!(
        set.values().map(std::collections::BTreeSet::len).sum::<usize>(),
        1,
        "{case}"
    );
    let (up, down) = (world.gateway.received.len(), world.received.len());
    world.send(&packet("10.3.0.1", "10.9.9.9", 100));
    world.run(Duration::from_secs(1));
    assert_eq!(world.gateway.received.len(), up + 1, "{case}");
    assert_eq!(world.received.len(), down + 1, "{case}");
}

fn matrix(exchanges: Exchanges, ours: RekeyKind) {
    let cast = Cast::default();
    // An exchange takes 20 ms.
    let offsets = match exchanges {
        Exchanges::One => [0, 4, -4, 12, -12],
        Exchanges::Two => [0, 12, -12, 24, -24],
    };
    for theirs in THEIRS {
        for loser in [Side::Client, Side::Gateway] {
            for ahead in offsets {
                for lost in LOSSES {
                    let case = Case {
                        exchanges,
                        ours,
                        theirs,
                        loser,
                        ahead,
                        lost,
                    };
                    converges(&cast, case);
                }
            }
        }
    }
}

#[test]
fn whatever_the_gateway_does_while_we_rekey_the_child() {
    matrix(Exchanges::One, RekeyKind::ChildSa);
}

#[test]
fn whatever_the_gateway_does_while_we_rekey_the_ike_sa() {
    matrix(Exchanges::One, RekeyKind::IkeSa);
}

#[test]
fn the_same_with_several_key_exchanges_for_the_child() {
    matrix(Exchanges::Two, RekeyKind::ChildSa);
}

#[test]
fn the_same_with_several_key_exchanges_for_the_ike_sa() {
    matrix(Exchanges::Two, RekeyKind::IkeSa);
}
