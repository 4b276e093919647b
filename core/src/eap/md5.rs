//! EAP-MD5 (RFC 3748, section 5.4), inside a tunnel only: it proves nothing of the server, makes no key, and lets
//! whoever sees it try passwords.

use super::{EapError, EapMd5};
use crate::crypto::md5;

/// The type data of the response to a challenge that came with `identifier`.
pub(super) fn response(config: &EapMd5, identifier: u8, data: &[u8]) -> Result<Vec<u8>, EapError> {
    // The server's name follows the value; it serves no purpose.
    let challenge = data
        .split_first()
        .and_then(|(size, rest)| rest.get(..usize::from(*size)))
        .filter(|challenge| !challenge.is_empty())
        .ok_or(EapError::Malformed("a truncated EAP-MD5 challenge"))?;
    let digest = md5(&[&[identifier], config.password.as_bytes(), challenge]);
    Ok([&[digest.len() as u8], digest.as_slice()].concat())
}

#[cfg(test)]
mod tests {
    use hex_literal::hex;

    use super::*;
    use crate::crypto::Secret;

    fn config() -> EapMd5 {
        EapMd5 {
            password: Secret::from_slice(b"secret"),
        }
    }

    /// What `printf '\x07secretchallenge' | md5sum` prints.
    #[test]
    fn the_identifier_the_password_and_the_challenge_are_hashed() {
        let data = [&[9], &b"challenge"[..], b"and a name"].concat();
        let expected = [&[16], &MD5_OF_ALL[..]].concat();
        assert_eq!(response(&config(), 7, &data).unwrap(), expected);
    }

    const MD5_OF_ALL: [u8; 16] = hex!("35524f3f6d24a5b27d3a2ff77c7c5060");

    #[test]
    fn truncated_challenges_are_refused() {
        for data in [&[][..], &[0], &[0, 1], &[3, 1, 2]] {
            assert!(response(&config(), 7, data).is_err(), "{data:?}");
        }
    }
}
