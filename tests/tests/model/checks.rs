//! What must never happen.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Write as _};

use peregrine_core::command::State;
use peregrine_core::wire::Header;
use peregrine_core::wire::iana::{ExchangeType, PayloadType};
use peregrine_tests::world::World;

/// More timeouts of the client's at one instant are a loop.
const MAX_TIMEOUTS: u32 = 40;
/// What every inner packet has inside.
pub(crate) const MARK: &[u8; 16] = b"nobody sees this";

thread_local! {
    pub(crate) static ERRORS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Keeps every `error!`: the client never logs one, whatever happens to it.
pub(crate) struct Complaints;

struct Text(String);

impl tracing::field::Visit for Text {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn Debug) {
        let _ = write!(self.0, "{field}={value:?} ");
    }
}

impl tracing::Subscriber for Complaints {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(tracing::level_filters::LevelFilter::ERROR)
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        ERRORS.with_borrow_mut(|errors| errors.push(text.0));
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// What must never happen, checked against what has happened since the last look.
#[derive(Default)]
pub(crate) struct Checks {
    sent: usize,
    statuses: usize,
    up: usize,
    down: usize,
    /// What was sealed under which key and initialization vector.
    sealed: BTreeMap<(Vec<u8>, Vec<u8>), Vec<u8>>,
    delivered_up: BTreeSet<Vec<u8>>,
    delivered_down: BTreeSet<Vec<u8>>,
}

impl Checks {
    pub(crate) fn look(&mut self, world: &World) {
        for (_, path, datagram) in &world.sent[self.sent..] {
            self.datagram(path.remote.port(), datagram);
        }
        self.sent = world.sent.len();
        for packet in &world.gateway.received[self.up..] {
            assert!(
                self.delivered_up.insert(packet.clone()),
                "delivered to the gateway twice"
            );
        }
        self.up = world.gateway.received.len();
        for packet in &world.received[self.down..] {
            assert!(
                self.delivered_down.insert(packet.clone()),
                "delivered to the client twice"
            );
        }
        self.down = world.received.len();
        for (_, status) in &world.statuses[self.statuses..] {
            match status.state {
                State::Connected => {
                    assert!(status.ike_sa.is_some() && status.path.is_some(), "{status:?}");
                    assert!(!status.addresses.is_empty() && status.why.is_none(), "{status:?}");
                }
                State::Reconnecting => {
                    assert!(status.why.is_some() && !status.addresses.is_empty(), "{status:?}");
                }
                State::Idle => assert!(status.failure.is_some() || status.profile.is_none(), "{status:?}"),
                _ => {}
            }
        }
        self.statuses = world.statuses.len();
        let goes_down = world.plans.iter().any(|plan| plan.tunnel.is_none());
        let ends = matches!(world.status().state, State::Idle | State::Disconnecting);
        assert!(
            !goes_down || ends,
            "the tunnel was taken away: {:?}",
            world.statuses
        );
        assert!(
            world.busiest <= MAX_TIMEOUTS,
            "{} timeouts at one instant",
            world.busiest
        );
        ERRORS.with_borrow(|errors| assert!(errors.is_empty(), "logged: {errors:?}"));
    }

    /// A datagram of the client's is IKE, a keepalive or ESP, and no initialization vector is used for two messages.
    fn datagram(&mut self, port: u16, datagram: &[u8]) {
        assert!(
            !datagram.windows(MARK.len()).any(|window| window == MARK),
            "an inner packet in clear"
        );
        let message = match datagram {
            _ if port == 500 => datagram,
            [0xff] => return,
            [0, 0, 0, 0, message @ ..] => message,
            _ => {
                assert!(
                    datagram.len() >= 4 + 4 + 8 + 16,
                    "too short for ESP: {datagram:02x?}"
                );
                return self.use_iv(&datagram[..4], &datagram[8..16], datagram);
            }
        };
        let header = Header::decode(message).unwrap();
        assert_ne!(header.initiator_spi.0, [0; 8]);
        if matches!(
            header.exchange,
            ExchangeType::IKE_SA_INIT | ExchangeType::IKE_SESSION_RESUME
        ) {
            return;
        }
        assert_ne!(header.responder_spi.0, [0; 8]);
        let iv = match header.next_payload {
            PayloadType::SK => 32..40,
            PayloadType::SKF => 36..44,
            other => panic!("a message without protection: {other:?}"),
        };
        // The key exchange of IKE_INTERMEDIATE, of which there is one here, changes the keys (RFC 9370, section 2.2.2).
        let is_before = u8::from(header.exchange == ExchangeType::IKE_INTERMEDIATE);
        let key = [&message[..16], &[is_before]].concat();
        self.use_iv(&key, &message[iv], message);
    }

    fn use_iv(&mut self, key: &[u8], iv: &[u8], sealed: &[u8]) {
        let before = self.sealed.entry((key.to_vec(), iv.to_vec()));
        let before = before.or_insert_with(|| sealed.to_vec());
        assert!(before == sealed, "an initialization vector was used twice");
    }
}
