//! What the user configured, already parsed.

mod identity;
mod parse;
mod reader;
mod report;
#[cfg(test)]
mod tests;
mod value;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::crypto::Secret;
use crate::esp::{Limits, Marking};
use crate::pki::{Certificate, PrivateKey};
use crate::proposal::{EspProposal, IkeProposal};

pub use identity::{Identity, IdentityError};
pub use parse::{
    DATA, FileRef, MissingSecret, Parsed, Passphrase, Source, WEAK_PSK_WARNING, is_weak_psk, parse,
};
pub use report::{ProfileError, ProfileErrors, Remark, Report, Setting};
pub(crate) use value::host_name;

/// One connection: which gateway, who we are, what goes through.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The name shown to the user.
    pub name: String,
    /// Whom we connect to, and how it proves itself.
    pub gateway: Gateway,
    /// How we prove ourselves.
    pub auth: Auth,
    /// Phase 1.
    pub ike: IkeConfig,
    /// Phase 2.
    pub child: ChildConfig,
    /// Name resolution, MTU.
    pub network: NetworkConfig,
}

/// Whom we connect to, and how it proves itself.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// Where it is.
    pub host: Host,
    /// The port of IKE_SA_INIT; 500 is left for 4500 after it, any other is used throughout, with the non-ESP marker.
    pub port: u16,
    /// The TCP port (RFC 9329).
    pub tcp_port: u16,
    /// The identity that it must prove.
    pub identity: Identity,
    /// Send `identity` as IDr.
    pub send_idr: bool,
    /// The certification authorities that may vouch for it.
    pub anchors: Anchors,
    /// Its own certificate, if the profile pins it.
    pub pin: Option<Certificate>,
    /// Accept an AUTH made with RSA and SHA-1 (method 1) from a gateway without RFC 7427, and answer in kind.
    pub allow_sha1_auth: bool,
    /// Whether it may send us to another gateway (RFC 5685), which must prove the same identity.
    pub redirect: Redirects,
    /// Whether revoked certificates are looked for, of the gateway and of the EAP server.
    pub revocation: Revocation,
}

/// Which redirects are followed (RFC 5685).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redirects {
    /// None.
    Never,
    /// Those of a gateway that has proven its identity: in IKE_AUTH, and while the IKE SA is up.
    Proven,
    /// Those to these targets and no others, even before the gateway has proven anything.
    To(Vec<RedirectTarget>),
}

/// Where a redirect may lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedirectTarget {
    /// To this DNS name, in A-labels.
    Name(String),
    /// To an address of this network.
    Network(IpNet),
}

/// Whether revoked certificates are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Revocation {
    /// Nothing is asked, and nothing that the gateway brings is looked at.
    Off,
    /// One that is known to be revoked is refused; where nobody answers, that is told and no more.
    #[default]
    Soft,
    /// One of which nobody says that it is not revoked is refused.
    Strict,
}

/// A gateway's address as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A DNS name, in A-labels.
    Name(String),
    /// An address.
    Address(IpAddr),
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// Certification authorities.
#[derive(Clone, Debug)]
pub struct Anchors {
    /// The certificates.
    pub certificates: Vec<Certificate>,
    /// They are the operating system's store and not the profile's own: do not list them in CERTREQ.
    pub system: bool,
}

/// How we prove ourselves.
#[derive(Clone, Debug)]
pub struct Auth {
    /// With what.
    pub method: AuthKind,
    /// The certificate proves us first, in a round of its own (RFC 4739), and then `method`, which is an EAP method.
    pub certificate_first: bool,
    /// The EAP server, which is the gateway, proves itself in EAP alone (RFC 5998). Only with methods in which it does.
    pub eap_only: bool,
    /// IDi; by default the certificate's subjectAltName or subject, the anonymous identity, or the user name.
    pub identity: Option<Identity>,
    /// The identity in EAP-Response/Identity; by default an anonymous one if the real one goes through a tunnel, the
    /// user name, or else IDi as text.
    pub eap_identity: Option<String>,
    /// The user name of a password method.
    pub username: Option<String>,
    /// The name that the certificate of the EAP server must carry; by default the gateway's identity.
    pub aaa_identity: Option<Identity>,
    /// The certification authorities that may vouch for the EAP server; by default the gateway's.
    pub aaa_anchors: Option<Anchors>,
    /// A post-quantum pre-shared key beside all of that (RFC 8784).
    pub ppk: Option<Ppk>,
}

/// A post-quantum pre-shared key without itself, which is in [`Credentials::ppk`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ppk {
    /// The name by which the gateway knows it.
    pub id: Vec<u8>,
    /// Never go without it.
    pub required: bool,
}

impl Auth {
    /// The identity in EAP-Response/Identity, which is not secret.
    #[must_use]
    pub fn outer_identity(&self) -> Option<String> {
        let given = self.eap_identity.clone();
        given
            .or_else(|| self.anonymous())
            .or_else(|| self.username.clone())
    }

    /// IDi without a certificate, by default. Whoever answers in the gateway's place sees it, so that it tells no more
    /// than EAP does outside of its tunnel.
    #[must_use]
    pub fn user_identity(&self) -> Option<String> {
        if self.method.is_tunnelled() {
            self.outer_identity()
        } else {
            self.username.clone()
        }
    }

    /// What everybody on the way may know of a user whose name goes through a tunnel: the realm, which leads the way to
    /// his server (RFC 7542, section 2.4).
    pub(crate) fn anonymous(&self) -> Option<String> {
        let realm = self.username.as_deref().and_then(|name| name.rsplit_once('@'));
        self.method.is_tunnelled().then(|| match realm {
            Some((_, realm)) => format!("anonymous@{realm}"),
            None => "anonymous".to_owned(),
        })
    }
}

/// With what we prove ourselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthKind {
    /// A pre-shared key, both ways.
    Psk,
    /// A certificate and its private key, in IKE_AUTH.
    Certificate,
    /// A certificate and its private key, in EAP-TLS (RFC 5216, RFC 9190).
    EapTls,
    /// A user name and a password, in EAP-MSCHAPv2.
    EapMsChapV2,
    /// A user name and a password, in the tunnel of EAP-TTLS (RFC 5281).
    EapTtls(TtlsInner),
    /// A user name and a password, in the tunnel of PEAP.
    EapPeap(PeapInner),
    /// The user's answers to the questions of EAP-GTC (RFC 3748, section 5.6).
    EapGtc,
}

/// What runs in the tunnel of EAP-TTLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TtlsInner {
    /// MSCHAPv2 as it is.
    MsChapV2,
    /// EAP-MSCHAPv2.
    EapMsChapV2,
    /// PAP: the server gets the password.
    Pap,
    /// EAP-GTC.
    Gtc,
    /// EAP-MD5.
    Md5,
}

/// What runs in the tunnel of PEAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeapInner {
    /// EAP-MSCHAPv2.
    MsChapV2,
    /// EAP-GTC.
    Gtc,
}

impl AuthKind {
    /// The keyword of `auth.method`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Psk => "psk",
            Self::Certificate => "certificate",
            Self::EapTls => "eap-tls",
            Self::EapMsChapV2 => "eap-mschapv2",
            Self::EapGtc => "eap-gtc",
            Self::EapTtls(_) => "eap-ttls",
            Self::EapPeap(_) => "eap-peap",
        }
    }

    /// It is an EAP method.
    #[must_use]
    pub const fn is_eap(self) -> bool {
        !matches!(self, Self::Psk | Self::Certificate)
    }

    /// It proves who we are inside a tunnel to a server that has proven itself.
    #[must_use]
    pub const fn is_tunnelled(self) -> bool {
        matches!(self, Self::EapTtls(_) | Self::EapPeap(_))
    }

    /// The EAP server proves itself in it by a certificate, and it makes a key: the methods that may stand alone (RFC
    /// 5998, section 4).
    #[must_use]
    pub const fn proves_the_server(self) -> bool {
        matches!(self, Self::EapTls | Self::EapTtls(_) | Self::EapPeap(_))
    }

    /// It needs a certificate and its private key.
    #[must_use]
    pub const fn needs_certificate(self) -> bool {
        matches!(self, Self::Certificate | Self::EapTls)
    }

    /// It needs a user name.
    #[must_use]
    pub const fn needs_username(self) -> bool {
        matches!(
            self,
            Self::EapMsChapV2 | Self::EapTtls(_) | Self::EapPeap(_) | Self::EapGtc
        )
    }

    /// It needs a password before it begins. EAP-GTC asks when it comes to that, since it may be for a code.
    #[must_use]
    pub const fn needs_password(self) -> bool {
        match self {
            Self::EapMsChapV2 | Self::EapPeap(PeapInner::MsChapV2) => true,
            Self::EapTtls(inner) => !matches!(inner, TtlsInner::Gtc),
            Self::Psk | Self::Certificate | Self::EapTls | Self::EapPeap(PeapInner::Gtc) | Self::EapGtc => {
                false
            }
        }
    }
}

/// What the profile's owner keeps secret. Printed as nothing, zeroized when dropped.
#[derive(Clone, Default)]
pub struct Credentials {
    /// The pre-shared key.
    pub psk: Option<Secret>,
    /// The post-quantum pre-shared key.
    pub ppk: Option<Secret>,
    /// The password, in UTF-8.
    pub password: Option<Secret>,
    /// Our certificate first, then intermediate ones in any order.
    pub chain: Vec<Certificate>,
    /// The private key of the first certificate.
    pub key: Option<PrivateKey>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// Phase 1.
#[derive(Clone, Debug)]
pub struct IkeConfig {
    /// What we offer, in order of preference.
    pub proposals: Vec<IkeProposal>,
    /// Never go without a post-quantum key exchange (RFC 9370). Only proposals with one are in `proposals` then.
    pub require_pq: bool,
    /// Age at which the IKE SA is rekeyed.
    pub rekey: Duration,
    /// Ask the gateway to follow address changes (RFC 4555).
    pub mobike: bool,
    /// Offer IKE fragmentation (RFC 7383).
    pub fragmentation: bool,
    /// The largest IP datagram of an IKE message, in octets.
    pub fragment_size: u16,
    /// Silence after which the gateway is asked whether it lives.
    pub dpd: Duration,
    /// Tell the gateway to forget every other SA of this identity (RFC 7296, section 2.4). It ends the sessions of
    /// the user's other devices, so only a profile can ask for it.
    pub initial_contact: bool,
    /// Ask the gateway for a ticket to resume the IKE SA with when it is lost (RFC 5723).
    pub resumption: bool,
}

/// Phase 2.
#[derive(Clone, Debug)]
pub struct ChildConfig {
    /// What we offer, in order of preference.
    pub proposals: Vec<EspProposal>,
    /// What goes into the tunnel.
    pub remote_ts: Vec<IpNet>,
    /// Whether the gateway may allow less than `remote_ts`. If not, less is a failure; if so, only what it allows
    /// goes into the tunnel, and the status says what that is.
    pub accept_narrowing: bool,
    /// What stays out of it although `remote_ts` covers it.
    pub exclude: BTreeSet<IpNet>,
    /// Age at which the Child SA is rekeyed.
    pub rekey: Duration,
    /// Octets and packets in one direction after which it is rekeyed, whatever its age.
    pub limits: Limits,
    /// What of an inner packet's type of service the networks on the way see.
    pub marking: Marking,
    /// Replace it only with a fresh key exchange (perfect forward secrecy), or not at all.
    pub require_pfs: bool,
    /// Rekey once right after connecting, so that a gateway with other ideas of key exchange is found out then and not
    /// an hour later.
    pub rehearse: bool,
}

/// Name resolution and packet size.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Nothing leaves the machine outside the tunnel while the profile is on.
    pub kill_switch: bool,
    /// But the local network may be reached.
    pub allow_lan: bool,
    /// Whose name servers to use.
    pub dns: DnsPolicy,
    /// Domains to resolve through the tunnel; by default the gateway's.
    pub domains: Vec<String>,
    /// The largest inner packet in octets; by default what probes of the path find out.
    pub mtu: Option<u16>,
    /// TCP is tried where UDP does not get through (RFC 9329).
    pub tcp_fallback: bool,
}

/// Whose name servers to use while the tunnel is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsPolicy {
    /// What the gateway assigns.
    Gateway,
    /// The machine's own, unchanged.
    None,
    /// These.
    Servers(Vec<IpAddr>),
}
