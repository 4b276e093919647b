//! EAP-MSCHAPv2 (draft-kamath-pppext-eap-mschapv2; RFC 2759, RFC 3079).
//!
//! Broken by today's measure: whoever sees a challenge and its response finds the password with 2^56 work. That is
//! why nothing of it leaves before the gateway is authenticated by certificate, or outside of a tunnel to a server that
//! is.
//!
//! The computations are public because a server makes the same ones.

use std::fmt;

use super::text::harmless;
use super::{EapError, EapMsChapV2, Msk, Progress};
use crate::crypto::{Secret, constant_time_eq, des_encrypt, md4, sha1};
use crate::rng::Rng;

/// What a server or a peer means by a packet (draft-kamath-pppext-eap-mschapv2, section 2).
mod op_code {
    pub(super) const CHALLENGE: u8 = 1;
    pub(super) const RESPONSE: u8 = 2;
    pub(super) const SUCCESS: u8 = 3;
    pub(super) const FAILURE: u8 = 4;
}

/// Why the server refuses (RFC 2759, section 6).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MsChapCode(pub u32);

impl MsChapCode {
    /// The account may not be used at this time.
    pub const RESTRICTED_LOGON_HOURS: Self = Self(646);
    /// The account is disabled.
    pub const ACCOUNT_DISABLED: Self = Self(647);
    /// The password has expired.
    pub const PASSWORD_EXPIRED: Self = Self(648);
    /// The account has no dial-in permission.
    pub const NO_DIALIN_PERMISSION: Self = Self(649);
    /// The user name or the password is wrong.
    pub const AUTHENTICATION_FAILURE: Self = Self(691);
    /// The new password was not accepted.
    pub const CHANGING_PASSWORD: Self = Self(709);

    const fn meaning(self) -> Option<&'static str> {
        Some(match self {
            Self::RESTRICTED_LOGON_HOURS => "the account may not be used at this time",
            Self::ACCOUNT_DISABLED => "the account is disabled",
            Self::PASSWORD_EXPIRED => "the password has expired",
            Self::NO_DIALIN_PERMISSION => "the account has no dial-in permission",
            Self::AUTHENTICATION_FAILURE => "the user name or the password is wrong",
            Self::CHANGING_PASSWORD => "the password could not be changed",
            _ => return None,
        })
    }
}

impl fmt::Display for MsChapCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.meaning() {
            Some(meaning) => write!(f, "{meaning} (error {})", self.0),
            None => write!(f, "error {}", self.0),
        }
    }
}

impl fmt::Debug for MsChapCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MsChapCode({self})")
    }
}

/// Our response to a challenge, wherever it travels, and what follows from it.
pub(super) struct Response {
    pub(super) peer_challenge: [u8; 16],
    pub(super) nt_response: [u8; 24],
    /// What only one who knows the password can answer to our challenge.
    expected: [u8; 20],
    msk: Msk,
}

impl Response {
    pub(super) fn new(config: &EapMsChapV2, challenge: &[u8; 16], rng: &mut Rng) -> Result<Self, EapError> {
        let password = std::str::from_utf8(config.password.as_bytes())
            .map_err(|_| EapError::Credential("the password is not UTF-8".to_owned()))?;
        if config.username.len() > MAX_TEXT || password.encode_utf16().count() > MAX_TEXT {
            return Err(EapError::Credential(
                "the user name or the password is longer than 256 characters".to_owned(),
            ));
        }
        let peer_challenge: [u8; 16] = rng.bytes();
        let hash = challenge_hash(&peer_challenge, challenge, &config.username);
        let nt_response = nt_response(password, &hash);
        Ok(Self {
            peer_challenge,
            nt_response,
            expected: authenticator_response(password, &nt_response, &hash),
            msk: msk(password, &nt_response),
        })
    }

    /// Checks the server's Success message, `S=<40 hexadecimal digits> M=<text>`.
    pub(super) fn check(&self, message: &[u8]) -> Result<(), EapError> {
        let received = authenticator_response_in(message).ok_or(EapError::ServerUnproven)?;
        if constant_time_eq(&received, &self.expected) {
            Ok(())
        } else {
            Err(EapError::ServerUnproven)
        }
    }
}

/// The peer's side once it has answered the challenge.
pub(super) struct Peer(Response);

impl Peer {
    /// Answers the Challenge with which the method starts.
    pub(super) fn start(
        config: &EapMsChapV2,
        data: &[u8],
        rng: &mut Rng,
    ) -> Result<(Self, Vec<u8>), EapError> {
        let challenge = Challenge::decode(data)?;
        let response = Response::new(config, &challenge.value, rng)?;

        let mut value = Vec::with_capacity(VALUE_SIZE);
        value.extend_from_slice(&response.peer_challenge);
        value.extend_from_slice(&[0; 8]);
        value.extend_from_slice(&response.nt_response);
        value.push(0);
        let mut reply = Vec::with_capacity(5 + VALUE_SIZE + config.username.len());
        reply.extend_from_slice(&[op_code::RESPONSE, challenge.id]);
        // The length without EAP's header; at most 310, see MAX_TEXT.
        let length = u16::try_from(5 + VALUE_SIZE + config.username.len()).unwrap_or(u16::MAX);
        reply.extend_from_slice(&length.to_be_bytes());
        reply.push(VALUE_SIZE as u8);
        reply.extend_from_slice(&value);
        reply.extend_from_slice(config.username.as_bytes());
        Ok((Self(response), reply))
    }

    /// Takes the request that follows our response.
    pub(super) fn handle(&mut self, data: &[u8]) -> Result<Progress, EapError> {
        // MS-Length repeats EAP's own length; servers that fill it in wrongly are common, and we do not need it.
        let (op_code, message) = match data {
            [op_code, _id, _high, _low, message @ ..] => (*op_code, message),
            _ => return Err(EapError::Malformed("a truncated EAP-MSCHAPv2 packet")),
        };
        match op_code {
            op_code::SUCCESS => {
                self.0.check(message)?;
                let msk = self.0.msk.clone();
                Ok(Progress::Complete(vec![op_code::SUCCESS], Some(msk)))
            }
            // There is nobody to ask for another password in the middle of a conversation, and servers disagree on
            // the answer to this packet: Windows 2008 R2 takes a Failure response amiss.
            op_code::FAILURE => Err(failure_in(message)),
            _ => Err(EapError::Malformed("an EAP-MSCHAPv2 packet out of order")),
        }
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Peer(..)")
    }
}

/// A Challenge packet.
struct Challenge {
    id: u8,
    value: [u8; 16],
}

impl Challenge {
    fn decode(data: &[u8]) -> Result<Self, EapError> {
        let &[op_code, id, _high, _low, ref rest @ ..] = data else {
            return Err(EapError::Malformed("a truncated EAP-MSCHAPv2 packet"));
        };
        if op_code != op_code::CHALLENGE {
            return Err(EapError::Malformed(
                "EAP-MSCHAPv2 does not start with a challenge",
            ));
        }
        // The server's name follows; it is not authenticated and serves no purpose.
        match rest.split_first() {
            Some((16, rest)) => match rest.first_chunk() {
                Some(value) => Ok(Self { id, value: *value }),
                None => Err(EapError::Malformed("a truncated EAP-MSCHAPv2 challenge")),
            },
            _ => Err(EapError::Malformed(
                "an EAP-MSCHAPv2 challenge that is not of 16 octets",
            )),
        }
    }
}

/// The authenticator response of a Success message, `S=<40 hexadecimal digits> M=<text>` (RFC 2759, section 5).
fn authenticator_response_in(message: &[u8]) -> Option<[u8; 20]> {
    let (digits, rest) = message.strip_prefix(b"S=")?.split_first_chunk::<40>()?;
    if !matches!(rest.first(), None | Some(b' ' | 0)) {
        return None;
    }
    let mut response = [0; 20];
    for (octet, pair) in response.iter_mut().zip(digits.chunks_exact(2)) {
        for &digit in pair {
            let value = char::from(digit).to_digit(16)?;
            *octet = *octet << 4 | u8::try_from(value).ok()?;
        }
    }
    Some(response)
}

/// What a Failure message says, `E=<code> R=<0 or 1> C=<challenge> V=3 M=<text>` (RFC 2759, section 6).
///
/// Taken as it comes: what cannot be read is left out (CVE-2025-62291 was an overflow in such a parser).
pub(super) fn failure_in(message: &[u8]) -> EapError {
    let message = String::from_utf8_lossy(message.get(..MAX_MESSAGE).unwrap_or(message));
    let (fields, text) = match message.find("M=") {
        Some(at) => (
            message.get(..at).unwrap_or(""),
            message.get(at + 2..).unwrap_or(""),
        ),
        None => (&*message, ""),
    };
    let code = fields
        .split_ascii_whitespace()
        .find_map(|field| field.strip_prefix("E=")?.parse().ok());
    match code {
        Some(code) => EapError::MsChap {
            code: MsChapCode(code),
            message: harmless(text, MAX_MESSAGE),
        },
        None => EapError::Refused,
    }
}

/// ChallengeHash (RFC 2759, section 8.2). `username` may have a domain, which does not count.
#[must_use]
pub fn challenge_hash(
    peer_challenge: &[u8; 16],
    authenticator_challenge: &[u8; 16],
    username: &str,
) -> [u8; 8] {
    let name = username.split_once('\\').map_or(username, |(_domain, name)| name);
    let [a, b, c, d, e, f, g, h, ..] = sha1(&[peer_challenge, authenticator_challenge, name.as_bytes()]);
    [a, b, c, d, e, f, g, h]
}

/// ChallengeResponse (RFC 2759, section 8.5): what `password` makes of the challenge hash.
#[must_use]
pub fn nt_response(password: &str, challenge_hash: &[u8; 8]) -> [u8; 24] {
    let mut keys = Vec::with_capacity(21);
    keys.extend_from_slice(password_hash(password).as_bytes());
    keys.resize(21, 0);
    let keys = Secret::new(keys);
    let mut response = [0; 24];
    for (out, key) in response
        .as_chunks_mut()
        .0
        .iter_mut()
        .zip(keys.as_bytes().as_chunks().0)
    {
        *out = des_encrypt(key, challenge_hash);
    }
    response
}

/// GenerateAuthenticatorResponse (RFC 2759, section 8.7): the server's proof, before it is written in hexadecimal.
#[must_use]
pub fn authenticator_response(password: &str, nt_response: &[u8; 24], challenge_hash: &[u8; 8]) -> [u8; 20] {
    let digest = sha1(&[
        password_hash_hash(password).as_bytes(),
        nt_response,
        b"Magic server to client signing constant",
    ]);
    sha1(&[
        &digest,
        challenge_hash,
        b"Pad to make it do more than one iteration",
    ])
}

/// The MSK: the key with which the client sends, the one with which it receives, and zeros (RFC 3079, section 3.4).
#[must_use]
pub fn msk(password: &str, nt_response: &[u8; 24]) -> Msk {
    const CLIENT_SENDS: &[u8; 84] =
        b"On the client side, this is the send key; on the server side, it is the receive key.";
    const CLIENT_RECEIVES: &[u8; 84] =
        b"On the client side, this is the receive key; on the server side, it is the send key.";

    let master_key = master_key(password, nt_response);
    let mut msk = Vec::with_capacity(64);
    for magic in [CLIENT_SENDS, CLIENT_RECEIVES] {
        let digest = sha1(&[master_key.as_bytes(), &[0; 40], magic, &[0xf2; 40]]);
        msk.extend_from_slice(&digest[..16]);
    }
    msk.resize(64, 0);
    Msk(Secret::new(msk))
}

/// GetMasterKey (RFC 3079, section 3.4).
fn master_key(password: &str, nt_response: &[u8; 24]) -> Secret {
    let digest = sha1(&[
        password_hash_hash(password).as_bytes(),
        nt_response,
        b"This is the MPPE Master Key",
    ]);
    Secret::new(digest[..16].to_vec())
}

/// NtPasswordHash (RFC 2759, section 8.3).
fn password_hash(password: &str) -> Secret {
    // Room for all of it at once, so that no copy is left behind by a growing vector.
    let mut utf16 = Vec::with_capacity(2 * password.len());
    utf16.extend(password.encode_utf16().flat_map(u16::to_le_bytes));
    Secret::new(md4(Secret::new(utf16).as_bytes()).to_vec())
}

/// HashNtPasswordHash (RFC 2759, section 8.4).
fn password_hash_hash(password: &str) -> Secret {
    Secret::new(md4(password_hash(password).as_bytes()).to_vec())
}

/// Our challenge, 8 octets of zero, the NT response, and flags.
const VALUE_SIZE: usize = 49;

/// RFC 2759 allows 256 characters of user name and as many of password.
const MAX_TEXT: usize = 256;

/// As much of a Failure message as we look at, in octets. RFC 2759 needs 70 and the text.
const MAX_MESSAGE: usize = 512;

#[cfg(test)]
mod tests {
    use hex_literal::hex;
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Rng;

    const AUTHENTICATOR_CHALLENGE: [u8; 16] = hex!("5B5D7C7D7B3F2F3E3C2C602132262628");
    const PEER_CHALLENGE: [u8; 16] = hex!("21402324255E262A28295F2B3A337C7E");
    const CHALLENGE: [u8; 8] = hex!("D02E4386BCE91226");
    const NT_RESPONSE: [u8; 24] = hex!("82309ECD8D708B5EA08FAA3981CD83544233114A3D85D6DF");

    /// RFC 2759, section 9.2.
    #[test]
    fn rfc_2759_example() {
        assert_eq!(
            challenge_hash(&PEER_CHALLENGE, &AUTHENTICATOR_CHALLENGE, "User"),
            CHALLENGE
        );
        assert_eq!(
            password_hash("clientPass").as_bytes(),
            hex!("44EBBA8D5312B8D611474411F56989AE")
        );
        assert_eq!(
            password_hash_hash("clientPass").as_bytes(),
            hex!("41C00C584BD2D91C4017A2A12FA59F3F")
        );
        assert_eq!(nt_response("clientPass", &CHALLENGE), NT_RESPONSE);
        assert_eq!(
            authenticator_response("clientPass", &NT_RESPONSE, &CHALLENGE),
            hex!("407A5589115FD0D6209F510FE9C04566932CDA56")
        );
    }

    /// RFC 3079, section 3.5.3, whose server sends with what our client receives with. The first key is computed
    /// from its master key by other means.
    #[test]
    fn rfc_3079_example() {
        assert_eq!(
            master_key("clientPass", &NT_RESPONSE).as_bytes(),
            hex!("FDECE3717A8C838CB388E527AE3CDD31")
        );
        let msk = msk("clientPass", &NT_RESPONSE);
        let (send, rest) = msk.as_bytes().split_at(16);
        let (receive, zeros) = rest.split_at(16);
        assert_eq!(send, hex!("d5f0e9521e3ea9589645e86051c82226"));
        assert_eq!(receive, hex!("8B7CDC149B993A1BA118CB153F56DCCB"));
        assert_eq!(zeros, [0; 32]);
    }

    #[test]
    fn the_domain_is_not_hashed() {
        let hash = |name| challenge_hash(&PEER_CHALLENGE, &AUTHENTICATOR_CHALLENGE, name);
        assert_eq!(hash(r"CORP\User"), CHALLENGE);
        assert_ne!(hash("User@corp"), CHALLENGE);
    }

    #[test]
    fn the_password_is_hashed_as_utf_16() {
        // U+1F511 is a surrogate pair in UTF-16: the hash of its four octets D83D DD11, little endian.
        assert_eq!(password_hash("🔑").as_bytes(), md4(&[0x3d, 0xd8, 0x11, 0xdd]));
    }

    fn config() -> EapMsChapV2 {
        EapMsChapV2 {
            username: r"CORP\User".to_owned(),
            password: Secret::from_slice(b"clientPass"),
        }
    }

    fn challenge() -> Vec<u8> {
        let mut data = vec![1, 7, 0, 28, 16];
        data.extend_from_slice(&AUTHENTICATOR_CHALLENGE);
        data.extend_from_slice(b"gateway");
        data
    }

    fn started() -> (Peer, Vec<u8>) {
        Peer::start(&config(), &challenge(), &mut Rng::new([1; 32])).unwrap()
    }

    /// What a server that knows the password answers to `reply`.
    fn success_for(reply: &[u8]) -> Vec<u8> {
        let ours = reply[5..21].try_into().unwrap();
        let nt_response = reply[29..53].try_into().unwrap();
        let hash = challenge_hash(&ours, &AUTHENTICATOR_CHALLENGE, "User");
        let proof = authenticator_response("clientPass", &nt_response, &hash);
        let hex: String = proof.iter().map(|octet| format!("{octet:02X}")).collect();
        packet(3, format!("S={hex} M=Welcome").as_bytes())
    }

    fn packet(op_code: u8, message: &[u8]) -> Vec<u8> {
        let mut data = vec![op_code, 7];
        data.extend_from_slice(&u16::try_from(4 + message.len()).unwrap().to_be_bytes());
        data.extend_from_slice(message);
        data
    }

    #[test]
    fn the_response_has_the_right_form() {
        let (_, reply) = started();
        assert_eq!(reply[..5], [2, 7, 0, 63, 49]);
        assert_eq!(reply.len(), 63);
        let ours = reply[5..21].try_into().unwrap();
        assert_eq!(reply[21..29], [0; 8]);
        let hash = challenge_hash(&ours, &AUTHENTICATOR_CHALLENGE, "User");
        assert_eq!(reply[29..53], nt_response("clientPass", &hash));
        assert_eq!(reply[53], 0);
        assert_eq!(&reply[54..], br"CORP\User");
    }

    #[test]
    fn a_server_that_knows_the_password_is_believed() {
        let (mut peer, reply) = started();
        let nt_response = reply[29..53].try_into().unwrap();
        let Ok(Progress::Complete(answer, key)) = peer.handle(&success_for(&reply)) else {
            panic!("not complete")
        };
        assert_eq!(answer, [3]);
        assert_eq!(
            key.unwrap().as_bytes(),
            msk("clientPass", &nt_response).as_bytes()
        );
    }

    #[test]
    fn a_server_that_does_not_know_the_password_is_not_believed() {
        let (_, reply) = started();
        let right = success_for(&reply);
        let with = |message: &[u8]| started().0.handle(&packet(3, message)).unwrap_err();
        for at in 6..46 {
            let mut wrong = right.clone();
            wrong[at] = if wrong[at] == b'0' { b'1' } else { b'0' };
            assert_eq!(
                started().0.handle(&wrong).unwrap_err(),
                EapError::ServerUnproven,
                "digit {at}"
            );
        }
        for message in [
            &b""[..],
            b"S=",
            b"M=Welcome",
            b"S=407A5589115FD0D6209F510FE9C04566932CDA5",
            b"S=407A5589115FD0D6209F510FE9C04566932CDA5+",
            b"S=+07A5589115FD0D6209F510FE9C04566932CDA56",
            b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        ] {
            assert_eq!(with(message), EapError::ServerUnproven, "{message:?}");
        }
        // Trailing digits: the proof is not a prefix of something else.
        let mut longer = right[4..46].to_vec();
        longer.push(b'0');
        assert_eq!(with(&longer), EapError::ServerUnproven);
    }

    #[test]
    fn the_proof_may_be_in_lower_case_and_without_text() {
        let (mut peer, reply) = started();
        let message = success_for(&reply)[4..46].to_ascii_lowercase();
        let message = [b"S=", &message[2..]].concat();
        assert!(matches!(
            peer.handle(&packet(3, &message)),
            Ok(Progress::Complete(..))
        ));
    }

    #[test]
    fn only_a_challenge_starts_the_method() {
        for op_code in (0..=u8::MAX).filter(|op_code| *op_code != op_code::CHALLENGE) {
            let mut data = challenge();
            data[0] = op_code;
            let error = Peer::start(&config(), &data, &mut Rng::new([1; 32])).unwrap_err();
            assert_eq!(
                error,
                EapError::Malformed("EAP-MSCHAPv2 does not start with a challenge")
            );
        }
    }

    #[test]
    fn only_success_or_failure_follows_the_response() {
        for op_code in (0..=u8::MAX).filter(|op_code| ![op_code::SUCCESS, op_code::FAILURE].contains(op_code))
        {
            let (mut peer, reply) = started();
            let mut data = success_for(&reply);
            data[0] = op_code;
            let error = peer.handle(&data).unwrap_err();
            assert_eq!(error, EapError::Malformed("an EAP-MSCHAPv2 packet out of order"));
        }
    }

    #[test]
    fn truncated_challenges_are_refused() {
        let whole = challenge();
        for length in 0..21 {
            assert!(
                Peer::start(&config(), &whole[..length], &mut Rng::new([1; 32])).is_err(),
                "{length}"
            );
        }
        assert!(Peer::start(&config(), &whole[..21], &mut Rng::new([1; 32])).is_ok());
        for size in [0, 15, 17, 255] {
            let mut data = whole.clone();
            data[4] = size;
            assert!(
                Peer::start(&config(), &data, &mut Rng::new([1; 32])).is_err(),
                "{size}"
            );
        }
    }

    #[test]
    fn overlong_credentials_are_not_sent() {
        let mut rng = Rng::new([1; 32]);
        let long = "x".repeat(257);
        let name = EapMsChapV2 {
            username: long.clone(),
            ..config()
        };
        let password = EapMsChapV2 {
            password: Secret::new(long.into_bytes()),
            ..config()
        };
        let binary = EapMsChapV2 {
            password: Secret::from_slice(&[0xff]),
            ..config()
        };
        for config in [name, password, binary] {
            assert!(matches!(
                Peer::start(&config, &challenge(), &mut rng),
                Err(EapError::Credential(_))
            ));
        }
    }

    fn refused(code: MsChapCode, message: &str) -> EapError {
        EapError::MsChap {
            code,
            message: message.to_owned(),
        }
    }

    #[test]
    fn failure_codes_are_told() {
        for code in [646, 647, 648, 649, 691, 709, 1, u32::MAX] {
            let message = format!("E={code} R=1 C=000102030405060708090A0B0C0D0E0F V=3 M=No entry");
            let error = started().0.handle(&packet(4, message.as_bytes())).unwrap_err();
            assert_eq!(error, refused(MsChapCode(code), "No entry"));
        }
        assert_eq!(
            refused(MsChapCode::PASSWORD_EXPIRED, "No entry").to_string(),
            "the server refused the user name or password: the password has expired (error 648), in its words: “No entry”"
        );
        assert_eq!(
            refused(MsChapCode(1), "").to_string(),
            "the server refused the user name or password: error 1"
        );
    }

    #[test]
    fn odd_failure_messages_are_still_refusals() {
        let with = |message: &[u8]| started().0.handle(&packet(4, message)).unwrap_err();
        for message in [
            &b""[..],
            b"E=",
            b"E=x",
            b"E=99999999999",
            b"\xff\xfe",
            b"M=E=691",
            b"R=1 C=",
            b"E=-1",
        ] {
            assert_eq!(with(message), EapError::Refused, "{message:?}");
        }
        assert_eq!(
            with(b"R=0 E=691"),
            refused(MsChapCode::AUTHENTICATION_FAILURE, "")
        );
        assert_eq!(with(b"E=691 M="), refused(MsChapCode::AUTHENTICATION_FAILURE, ""));
        assert_eq!(
            with(b"E=691 M=it's \x1b[2J\r\n\xe2\x80\xae<b>\0\0"),
            refused(
                MsChapCode::AUTHENTICATION_FAILURE,
                r"it's \u{1b}[2J\r\n\u{202e}<b>"
            )
        );
        let mut long = b"E=691 M=".to_vec();
        long.resize(60_000, b'x');
        assert_eq!(
            with(&long),
            refused(MsChapCode::AUTHENTICATION_FAILURE, &"x".repeat(MAX_MESSAGE - 8))
        );
    }

    proptest! {
        #[test]
        fn no_packet_panics(data in prop::collection::vec(any::<u8>(), 0..80), op_code in 1..5_u8) {
            drop(Peer::start(&config(), &data, &mut Rng::new([1; 32])));
            let (mut peer, _) = started();
            drop(peer.handle(&data));
            drop(started().0.handle(&packet(op_code, &data)));
        }

        #[test]
        fn no_message_panics(message in "[EMRCVS=0-9 ]{0,60}", cut in 0..60_usize) {
            let message = message.as_bytes();
            drop(started().0.handle(&packet(4, &message[..cut.min(message.len())])));
            drop(started().0.handle(&packet(3, message)));
        }
    }
}
