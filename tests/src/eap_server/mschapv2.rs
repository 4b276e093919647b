//! EAP-MSCHAPv2, and its computations for EAP-TTLS.

use peregrine_core::eap::mschapv2;

use super::Verdict;

/// An EAP-MSCHAPv2 server with one user.
#[derive(Debug)]
pub struct MsChapServer {
    username: String,
    password: String,
    challenge: [u8; 16],
    behaviour: MsChapBehaviour,
    state: MsChapState,
}

/// How an EAP-MSCHAPv2 server behaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MsChapBehaviour {
    /// As it should.
    #[default]
    Regular,
    /// It lets everybody in and answers this message in its Success packet, since it does not know the password.
    Impostor(String),
    /// It refuses everybody with this message.
    Refuse(String),
}

#[derive(Debug)]
enum MsChapState {
    Challenged,
    Proven(Box<[u8; 64]>),
    Refused,
}

impl MsChapServer {
    /// A server that lets `username` in with `password`, and asks with `challenge`.
    #[must_use]
    pub fn new(username: &str, password: &str, challenge: [u8; 16], behaviour: MsChapBehaviour) -> Self {
        Self {
            username: username.to_owned(),
            password: password.to_owned(),
            challenge,
            behaviour,
            state: MsChapState::Challenged,
        }
    }

    pub(super) fn challenge(&self) -> Vec<u8> {
        let name = b"gateway";
        let mut data = vec![1, MS_CHAP_ID, 0, 21 + name.len() as u8, 16];
        data.extend_from_slice(&self.challenge);
        data.extend_from_slice(name);
        data
    }

    pub(super) fn handle(&mut self, data: &[u8]) -> Verdict {
        match std::mem::replace(&mut self.state, MsChapState::Refused) {
            MsChapState::Challenged => self.judge(data),
            MsChapState::Proven(msk) if data == [3] => Verdict::Accept(Some(msk)),
            MsChapState::Proven(_) | MsChapState::Refused => Verdict::Refuse,
        }
    }

    fn judge(&mut self, data: &[u8]) -> Verdict {
        let [2, MS_CHAP_ID, high, low, 49, value @ ..] = data else {
            panic!("not an MSCHAPv2 response: {data:02x?}");
        };
        assert_eq!(
            usize::from(u16::from_be_bytes([*high, *low])),
            data.len(),
            "the length of the response"
        );
        let (peer_challenge, value) = value.split_first_chunk::<16>().expect("a challenge");
        let (reserved, value) = value.split_first_chunk::<8>().expect("reserved octets");
        let (nt_response, value) = value.split_first_chunk::<24>().expect("an NT response");
        let (flags, name) = value.split_first().expect("flags");
        assert_eq!((*reserved, *flags), ([0; 8], 0), "reserved octets and flags");

        let hash = mschapv2::challenge_hash(peer_challenge, &self.challenge, &self.username);
        let known =
            name == self.username.as_bytes() && *nt_response == mschapv2::nt_response(&self.password, &hash);
        let message = match &self.behaviour {
            MsChapBehaviour::Regular if known => {
                let proof = mschapv2::authenticator_response(&self.password, nt_response, &hash);
                let hex: String = proof.iter().map(|octet| format!("{octet:02X}")).collect();
                format!("S={hex} M=Welcome")
            }
            MsChapBehaviour::Impostor(message) => message.clone(),
            MsChapBehaviour::Regular => {
                return refusal("E=691 R=0 C=000102030405060708090A0B0C0D0E0F V=3 M=Authentication failed");
            }
            MsChapBehaviour::Refuse(message) => return refusal(message),
        };
        let msk = mschapv2::msk(&self.password, nt_response);
        self.state = MsChapState::Proven(Box::new(*msk.as_bytes().first_chunk().expect("64 octets")));
        Verdict::Continue(packet(3, &message))
    }
}

/// The MS-CHAPv2-ID of all packets.
const MS_CHAP_ID: u8 = 0x42;

fn refusal(message: &str) -> Verdict {
    Verdict::Continue(packet(4, message))
}

fn packet(op_code: u8, message: &str) -> Vec<u8> {
    let length = u16::try_from(4 + message.len())
        .expect("a message that fits")
        .to_be_bytes();
    let mut data = vec![op_code, MS_CHAP_ID, length[0], length[1]];
    data.extend_from_slice(message.as_bytes());
    data
}
