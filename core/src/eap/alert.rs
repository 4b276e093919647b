//! TLS alerts.

use std::fmt;

/// A TLS alert (RFC 8446, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TlsAlert(pub u8);

impl TlsAlert {
    /// The alert says that the receiver of our certificate, or of a signature made with its key, does not accept it.
    #[must_use]
    pub const fn is_about_our_certificate(self) -> bool {
        // bad_certificate, unsupported_certificate, certificate_revoked, certificate_expired, certificate_unknown,
        // unknown_ca, access_denied, decrypt_error, certificate_required
        matches!(self.0, 42..=46 | 48 | 49 | 51 | 116)
    }

    /// Its name in RFC 8446, or in RFC 5246 when it is older.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        Some(match self.0 {
            0 => "close_notify",
            10 => "unexpected_message",
            20 => "bad_record_mac",
            21 => "decryption_failed",
            22 => "record_overflow",
            30 => "decompression_failure",
            40 => "handshake_failure",
            41 => "no_certificate",
            42 => "bad_certificate",
            43 => "unsupported_certificate",
            44 => "certificate_revoked",
            45 => "certificate_expired",
            46 => "certificate_unknown",
            47 => "illegal_parameter",
            48 => "unknown_ca",
            49 => "access_denied",
            50 => "decode_error",
            51 => "decrypt_error",
            60 => "export_restriction",
            70 => "protocol_version",
            71 => "insufficient_security",
            80 => "internal_error",
            86 => "inappropriate_fallback",
            90 => "user_canceled",
            100 => "no_renegotiation",
            109 => "missing_extension",
            110 => "unsupported_extension",
            112 => "unrecognized_name",
            113 => "bad_certificate_status_response",
            115 => "unknown_psk_identity",
            116 => "certificate_required",
            120 => "no_application_protocol",
            _ => return None,
        })
    }
}

impl fmt::Display for TlsAlert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.is_about_our_certificate() {
            "rejected our certificate"
        } else {
            "ended the TLS handshake"
        };
        match self.name() {
            Some(name) => write!(f, "{what} (alert {name})"),
            None => write!(f, "{what} (alert {})", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_have_names() {
        assert_eq!(
            TlsAlert(48).to_string(),
            "rejected our certificate (alert unknown_ca)"
        );
        assert_eq!(
            TlsAlert(40).to_string(),
            "ended the TLS handshake (alert handshake_failure)"
        );
        assert_eq!(TlsAlert(200).to_string(), "ended the TLS handshake (alert 200)");
    }
}
