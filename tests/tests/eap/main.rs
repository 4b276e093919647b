//! The EAP peer against servers, good and bad.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod certificates;
mod mschapv2;
mod peap;
mod tls;
mod ttls;
mod tunnels;

use std::time::Duration;

use peregrine_core::crypto::Secret;
use peregrine_core::eap::{Eap, EapError, Question, Step};
use peregrine_core::rng::Rng;
use peregrine_core::timer::UnixTime;
use peregrine_tests::eap_server::{EapServer, ServerStep};

/// 2026-11-21T00:00:00Z
pub(crate) const NOW: UnixTime = UnixTime(Duration::from_secs(1_795_219_200));

/// How a conversation went.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The peer's key, or its error.
    pub(crate) peer: Result<Vec<u8>, EapError>,
    /// The key of the server, if it was content.
    pub(crate) server: Option<[u8; 64]>,
    /// What the server sent.
    pub(crate) sent: Vec<Vec<u8>>,
    /// What the peer sent.
    pub(crate) replies: Vec<Vec<u8>>,
    /// What the user was asked.
    pub(crate) questions: Vec<Question>,
}

impl Outcome {
    /// Both have the same key.
    pub(crate) fn assert_success(&self) {
        let key = self.peer.as_ref().expect("the peer succeeds");
        assert_eq!(key.as_slice(), self.server.as_ref().expect("the server succeeds"));
        assert_ne!(key.as_slice(), [0; 64]);
    }

    pub(crate) fn error(self) -> EapError {
        self.peer.expect_err("the peer fails")
    }
}

pub(crate) fn converse(peer: &mut Eap, server: &mut EapServer) -> Outcome {
    converse_through(peer, server, |_, packet| packet)
}

/// A conversation in which the user answers this to what he is asked.
pub(crate) fn converse_with(peer: &mut Eap, server: &mut EapServer, answers: &[&str]) -> Outcome {
    talk(peer, server, answers, |_, packet| packet)
}

/// A conversation in which `change` may replace the server's packets, which it gets with their number.
pub(crate) fn converse_through(
    peer: &mut Eap,
    server: &mut EapServer,
    change: impl FnMut(usize, Vec<u8>) -> Vec<u8>,
) -> Outcome {
    talk(peer, server, &[], change)
}

fn talk(
    peer: &mut Eap,
    server: &mut EapServer,
    answers: &[&str],
    mut change: impl FnMut(usize, Vec<u8>) -> Vec<u8>,
) -> Outcome {
    let mut answers = answers.iter();
    let mut rng = Rng::new([3; 32]);
    let mut outcome = Outcome {
        peer: Ok(Vec::new()),
        server: None,
        sent: Vec::new(),
        replies: Vec::new(),
        questions: Vec::new(),
    };
    let mut packet = server.start();
    loop {
        let changed = change(outcome.sent.len(), packet);
        outcome.sent.push(changed.clone());
        let mut step = peer.handle(&changed, &mut rng, NOW);
        if let Ok(Step::Ask(question)) = step {
            outcome.questions.push(question);
            let answer = answers.next().expect("nothing more is asked");
            step = peer.answer(&Secret::from_slice(answer.as_bytes()));
        }
        match step {
            Ok(Step::Ask(question)) => panic!("{question:?}"),
            Ok(Step::Check(presented)) => panic!("{presented:?}"),
            Ok(Step::Reply(reply)) => {
                packet = match server.handle(&reply) {
                    ServerStep::Request(packet) | ServerStep::Failure(packet) => packet,
                    ServerStep::Success { packet, msk } => {
                        outcome.server = Some(msk.map_or([0; 64], |msk| *msk));
                        packet
                    }
                };
                outcome.replies.push(reply);
            }
            Ok(Step::Success(msk)) => {
                outcome.peer = Ok(msk.map_or_else(|| vec![0; 64], |msk| msk.as_bytes().to_vec()));
                return outcome;
            }
            Err(error) => {
                assert_eq!(peer.failure(), Some(&error));
                outcome.peer = Err(error);
                return outcome;
            }
        }
    }
}
