//! What EAP methods need to know.

use crate::crypto::Secret;
use crate::pki::{Certificate, PrivateKey};
use crate::profile::Identity;

/// What an EAP conversation needs to know.
#[derive(Clone, Debug)]
pub struct EapConfig {
    /// What to answer to a request for our identity, in UTF-8. Not secret, and not authenticated.
    pub identity: String,
    /// The one method that may run.
    pub method: EapMethod,
}

/// An EAP method with what it needs.
#[derive(Clone, Debug)]
pub enum EapMethod {
    /// EAP-TLS (RFC 5216, RFC 9190).
    Tls(EapTls),
    /// EAP-TTLS (RFC 5281).
    Ttls(EapTtls),
    /// PEAP version 0.
    Peap(EapPeap),
    /// EAP-MSCHAPv2.
    MsChapV2(EapMsChapV2),
    /// EAP-GTC (RFC 3748, section 5.6).
    Gtc(EapGtc),
}

/// Whom TLS inside EAP must meet, and how it is packed.
#[derive(Clone, Debug)]
pub struct TlsServer {
    /// The certification authorities that may vouch for the server.
    pub anchors: Vec<Certificate>,
    /// The name that the server's certificate must carry.
    pub identity: Identity,
    /// The largest EAP packet that we send, in octets; brought into 256..=1400.
    pub fragment_size: usize,
    /// Wait, with the server's certificate verified and before anything of ours is sent, for word of its revocation.
    pub check_revocation: bool,
}

/// What EAP-TLS needs.
#[derive(Clone, Debug)]
pub struct EapTls {
    /// Our certificate first, then intermediate ones in any order.
    pub chain: Vec<Certificate>,
    /// The private key of the first certificate.
    pub key: PrivateKey,
    /// Whom we must meet.
    pub server: TlsServer,
}

/// What EAP-TTLS needs.
#[derive(Clone, Debug)]
pub struct EapTtls {
    /// Whom we must meet.
    pub server: TlsServer,
    /// The user name in the tunnel, in UTF-8.
    pub username: String,
    /// How the user is authenticated in the tunnel.
    pub inner: TtlsInner,
}

/// How EAP-TTLS authenticates the user in the tunnel. Passwords are in UTF-8.
#[derive(Clone, Debug)]
pub enum TtlsInner {
    /// PAP: the server gets the password as it is (RFC 5281, section 11.2.5).
    Pap {
        /// The password.
        password: Secret,
    },
    /// MSCHAPv2 without EAP around it (RFC 5281, section 11.2.4).
    MsChapV2 {
        /// The password.
        password: Secret,
    },
    /// An EAP method (RFC 5281, section 11.2.1).
    Eap(InnerEap),
}

/// What PEAP needs.
#[derive(Clone, Debug)]
pub struct EapPeap {
    /// Whom we must meet.
    pub server: TlsServer,
    /// The user name in the tunnel, in UTF-8.
    pub username: String,
    /// How the user is authenticated in the tunnel.
    pub inner: InnerEap,
}

/// An EAP method in a tunnel. Passwords are in UTF-8.
#[derive(Clone, Debug)]
pub enum InnerEap {
    /// EAP-MSCHAPv2.
    MsChapV2 {
        /// The password.
        password: Secret,
    },
    /// EAP-GTC (RFC 3748, section 5.6).
    Gtc(EapGtc),
    /// EAP-MD5 (RFC 3748, section 5.4).
    Md5(EapMd5),
}

/// What EAP-MSCHAPv2 needs.
#[derive(Clone, Debug)]
pub struct EapMsChapV2 {
    /// The user name, in UTF-8, with its domain (`DOMAIN\name`) if the server wants one.
    pub username: String,
    /// The password, in UTF-8.
    pub password: Secret,
}

/// What EAP-GTC needs.
#[derive(Clone, Debug)]
pub struct EapGtc {
    /// The answer to the server's first question, in UTF-8. Without it the user is asked, as for every further one.
    pub password: Option<Secret>,
}

/// What EAP-MD5 needs.
#[derive(Clone, Debug)]
pub struct EapMd5 {
    /// The password, in UTF-8.
    pub password: Secret,
}
