//! What things are called in the lab, and where they are. `tests/netns/` uses the same names.

/// The gateway behind the NAT router: our address is translated on the way.
pub const GATEWAY_NAT: &str = "192.0.2.1";
/// The same gateway on a path without NAT.
pub const GATEWAY_DIRECT: &str = "192.0.2.2";
/// The same gateway over IPv6, without NAT.
pub const GATEWAY_V6: &str = "2001:db8:1::1";
/// The same gateway at an address where it accepts only IKE proposals that we never make.
pub const GATEWAY_REFUSING_IKE: &str = "192.0.2.3";
/// A gateway that lacks RFC 7427 (digital signature authentication).
pub const GATEWAY_OLD: &str = "192.0.2.11";
/// A gateway that speaks IKEv1 only.
pub const GATEWAY_V1: &str = "192.0.2.12";
/// A gateway with ML-KEM, PPK, and TLS 1.3 in EAP: another strongSwan than the others.
pub const GATEWAY_NEW: &str = "192.0.2.14";
/// The same gateway over IPv6.
pub const GATEWAY_NEW_V6: &str = "2001:db8:1::14";
/// A gateway that is not strongSwan: Libreswan, in a machine of its own.
pub const GATEWAY_LIBRESWAN: &str = "192.0.2.15";
/// The same gateway over IPv6.
pub const GATEWAY_LIBRESWAN_V6: &str = "2001:db8:1::15";
/// A machine that drops everything.
pub const GATEWAY_SILENT: &str = "192.0.2.13";
/// What tells whether certificates were revoked: a list, and OCSP.
pub const STATUS: &str = "192.0.2.11";
/// Its name, as the resolver outside knows it.
pub const STATUS_NAME: &str = "status.vpn.lab";
/// The name of the gateway, for both address families, as the resolver outside knows it.
pub const GATEWAY_NAME: &str = "gw.vpn.lab";

/// The server in the network behind the gateway: HTTP on port 80, DNS on port 53.
pub const SERVER_V4: &str = "10.1.0.2";
/// The same server over IPv6.
pub const SERVER_V6: &str = "fd01::2";
/// What answers inside the tunnel to [`GATEWAY_NEW`].
pub const NEW_V4: &str = "10.6.0.1";
/// The same over IPv6.
pub const NEW_V6: &str = "fd06::1";
/// What answers inside the tunnel to [`GATEWAY_LIBRESWAN`], also to HTTP.
pub const LIBRESWAN_V4: &str = "10.8.0.1";
/// The same over IPv6.
pub const LIBRESWAN_V6: &str = "fd08::1";
/// A name that only the name server behind the gateway knows.
pub const SERVER_NAME: &str = "www.corp.lab";

/// The addresses in the gateways' certificates.
pub const GATEWAY_ADDRESSES: &[&str] = &[
    GATEWAY_NAT,
    GATEWAY_DIRECT,
    GATEWAY_V6,
    GATEWAY_NEW,
    GATEWAY_NEW_V6,
];

/// The identities that the gateway answers to, one for each way of authentication. All are in its certificates.
pub const GATEWAY_IDENTITIES: &[&str] = &[
    GATEWAY_NAME,
    "eap-tls.vpn.lab",
    "eap-tls13.vpn.lab",
    "eap-md5.vpn.lab",
    "eap-mschapv2.vpn.lab",
    "eap-radius.vpn.lab",
    "eap-ttls.vpn.lab",
    "eap-tls-only.vpn.lab",
    "eap-ttls-only.vpn.lab",
    "eap-radius-only.vpn.lab",
    "two-rounds.vpn.lab",
    "two-rounds-radius.vpn.lab",
    "cert.vpn.lab",
    "rekey.vpn.lab",
    "no-mobike.vpn.lab",
    "cert-p384.vpn.lab",
    "cert-p521.vpn.lab",
    "cert-rsa.vpn.lab",
    "cert-ed25519.vpn.lab",
    "cert-long.vpn.lab",
    "psk.vpn.lab",
    "no-esp.vpn.lab",
    "no-ts.vpn.lab",
    "ppk.vpn.lab",
    "ppk-required.vpn.lab",
    "ppk-eap.vpn.lab",
    "old.vpn.lab",
    "old-rsa.vpn.lab",
];

/// The name of the EAP server behind the gateway at `eap-tls13.vpn.lab`, `eap-radius.vpn.lab` and others.
pub const RADIUS_NAME: &str = "radius.lab";

/// The user of the password methods.
pub const USER: &str = "bob";
/// His password.
pub const PASSWORD: &str = "correct horse battery staple";
/// The same user, who has his password from another server, hostapd.
pub const HOSTAPD_USER: &str = "bob@hostapd.lab";
/// The user of one-time codes.
pub const CODE_USER: &str = "carol";
/// What her authenticator app knows, in base 32.
pub const CODE_SECRET: &str = "JBSWY3DPEHPK3PXP";
/// The pre-shared key, and who uses it.
pub const PSK: &str = "Tt3nJ9mW-lab-only-x7Qd2vKc-9Lp";
/// The post-quantum pre-shared key of [`GATEWAY_NEW`].
pub const PPK: &str = "bGFiLW9ubHkh7Jq2Zt0dXw9sVbR4kLmN8pYc3FgTuEaQ";
/// The identity of [`PPK`].
pub const PPK_ID: &str = "lab-ppk";
/// The identity that goes with [`PSK`].
pub const PSK_USER: &str = "psk-user@vpn.lab";
