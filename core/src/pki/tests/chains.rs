//! Every rule of `verify_gateway` and `verify_tls_server`, by a chain that keeps it and one that breaks it.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose as Usage, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints, SanType, date_time_ymd,
};

use super::OpenSsl;
use crate::pki::{CertError, Certificate, KeyKind, load_certificates, verify_gateway, verify_tls_server};
use crate::profile::Identity;
use crate::timer::UnixTime;

/// 2026-06-01T00:00:00Z, in the middle of the validity of all test certificates.
const NOW: UnixTime = UnixTime(Duration::from_secs(1_780_272_000));

/// A root, an authority below it, and a gateway; what the client demands; and what is sent.
struct Setup {
    root: CertificateParams,
    intermediate: CertificateParams,
    leaf: CertificateParams,
    keys: [KeyPair; 3],
    expected: Identity,
    received: Option<Identity>,
    now: UnixTime,
    /// Rearranges what the gateway sends: its own certificate and the intermediate one (the root is at hand too).
    arrange: fn(&mut Vec<Certificate>, &Certificate),
    anchors: fn(&[Certificate; 3]) -> Vec<Certificate>,
    pin: fn(&[Certificate; 3]) -> Option<Certificate>,
}

impl Setup {
    fn new() -> Self {
        let ca = |name: &str| {
            let mut params = named(name, &[]);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params
        };
        let mut leaf = named("gateway", &["vpn.example.org"]);
        leaf.extended_key_usages = vec![Usage::ServerAuth];
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        Self {
            root: ca("root"),
            intermediate: ca("intermediate"),
            leaf,
            keys: [(); 3].map(|()| KeyPair::generate().unwrap()),
            expected: id("vpn.example.org"),
            received: Some(id("vpn.example.org")),
            now: NOW,
            arrange: |_, _| {},
            anchors: |[root, ..]| vec![root.clone()],
            pin: |_| None,
        }
    }

    fn certificates(&self) -> [Certificate; 3] {
        // rcgen refuses to sign for an issuer that may not.
        let issuer = |params: &CertificateParams| {
            let mut params = params.clone();
            params.key_usages.clear();
            params
        };
        let [root_key, intermediate_key, leaf_key] = &self.keys;
        let root = self.root.self_signed(root_key).unwrap();
        let root_issuer = Issuer::new(issuer(&self.root), root_key);
        let intermediate = self
            .intermediate
            .signed_by(intermediate_key, &root_issuer)
            .unwrap();
        let leaf = self
            .leaf
            .signed_by(
                leaf_key,
                &Issuer::new(issuer(&self.intermediate), intermediate_key),
            )
            .unwrap();
        [root, intermediate, leaf].map(|certificate| Certificate::from_der(certificate.der()).unwrap())
    }

    fn chain(&self) -> (Vec<Certificate>, [Certificate; 3]) {
        let certificates = self.certificates();
        let [root, intermediate, leaf] = &certificates;
        let mut chain = vec![leaf.clone(), intermediate.clone()];
        (self.arrange)(&mut chain, root);
        (chain, certificates)
    }

    fn gateway(&self) -> Result<(), CertError> {
        let (chain, certificates) = self.chain();
        let anchors = (self.anchors)(&certificates);
        let pin = (self.pin)(&certificates);
        verify_gateway(
            &chain,
            &anchors,
            pin.as_ref(),
            &self.expected,
            self.received.as_ref(),
            self.now,
        )
        .map(|peer| assert_eq!(peer.certificate(), &certificates[2]))
    }

    fn tls(&self) -> Result<(), CertError> {
        let (chain, certificates) = self.chain();
        verify_tls_server(&chain, &(self.anchors)(&certificates), &self.expected, self.now).map(drop)
    }
}

fn id(text: &str) -> Identity {
    Identity::parse(text).unwrap()
}

fn named(name: &str, dns: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::new(dns.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Test");
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2026, 1, 1);
    params.not_after = date_time_ymd(2027, 1, 1);
    params
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

/// A rule: what changes in a sound set-up, and the error that this must cause, if any.
type Row = (&'static str, fn(&mut Setup), Option<fn(&CertError) -> bool>);

/// The error must be of this variant.
macro_rules! fails {
    ($pattern:pat $(if $guard:expr)?) => { Some(|error| matches!(error, $pattern $(if $guard)?)) };
}

/// The rules that hold for a gateway and a TLS server alike.
#[rustfmt::skip]
const COMMON: &[Row] = &[
    ("a sound chain", |_| {}, None),
    ("root sent too", |s| s.arrange = |chain, root| chain.push(root.clone()), None),
    ("intermediate behind the root, twice", |s| {
        s.arrange = |chain, root| {
            chain.insert(1, root.clone());
            chain.push(chain[2].clone());
        }
    }, None),
    ("the intermediate is an anchor itself", |s| s.anchors = |[_, intermediate, _]| vec![intermediate.clone()], None),
    ("no certificate", |s| s.arrange = |chain, _| chain.clear(), fails!(CertError::NoCertificate)),
    ("too many", |s| {
        s.arrange = |chain, root| chain.extend(std::iter::repeat_n(root.clone(), 9));
    }, fails!(CertError::TooMany { count: 11 })),
    ("ten are not too many", |s| s.arrange = |chain, root| chain.extend(std::iter::repeat_n(root.clone(), 8)), None),
    ("no anchor", |s| s.anchors = |_| Vec::new(), fails!(CertError::UnknownIssuer { .. })),
    ("intermediate missing", |s| {
        s.arrange = |chain, _| chain.truncate(1);
    }, fails!(CertError::UnknownIssuer { subject, issuer } if subject == "O=Test, CN=gateway" && issuer == "O=Test, CN=intermediate")),
    ("another root", |s| {
        s.anchors = |_| vec![Setup { root: {
            let mut other = Setup::new().root;
            other.distinguished_name = named("other root", &[]).distinguished_name;
            other
        }, ..Setup::new() }.certificates()[0].clone()];
    }, fails!(CertError::UnknownIssuer { issuer, .. } if issuer == "O=Test, CN=root")),
    ("another root of the same name", |s| {
        s.anchors = |_| vec![Setup::new().certificates()[0].clone()];
    }, fails!(CertError::ChainSignature { .. })),
    ("the gateway's own certificate is no anchor", |s| {
        s.anchors = |[_, _, leaf]| vec![leaf.clone()];
    }, fails!(CertError::UnknownIssuer { .. })),
    ("the first certificate is not the gateway's", |s| {
        s.arrange = |chain, _| chain.swap(0, 1);
    }, fails!(CertError::CaAsEndEntity { .. })),
    // Validity.
    ("first second", |s| {
        for params in [&mut s.root, &mut s.intermediate, &mut s.leaf] {
            params.not_before = date_time_ymd(2026, 6, 1);
        }
    }, None),
    ("one second early", |s| {
        s.leaf.not_before = date_time_ymd(2026, 6, 1);
        s.now = UnixTime(NOW.0 - Duration::from_secs(1));
    }, fails!(CertError::NotYetValid { subject, from } if subject.ends_with("gateway") && *from == NOW)),
    ("last second", |s| s.leaf.not_after = date_time_ymd(2026, 6, 1), None),
    ("one second late", |s| {
        s.leaf.not_after = date_time_ymd(2026, 6, 1);
        s.now = UnixTime(NOW.0 + Duration::from_secs(1));
    }, fails!(CertError::Expired { subject, at } if subject.ends_with("gateway") && *at == NOW)),
    ("intermediate expired", |s| {
        s.intermediate.not_after = date_time_ymd(2026, 5, 1);
    }, fails!(CertError::Expired { subject, .. } if subject.ends_with("intermediate"))),
    ("intermediate not yet valid", |s| {
        s.intermediate.not_before = date_time_ymd(2026, 7, 1);
    }, fails!(CertError::NotYetValid { subject, .. } if subject.ends_with("intermediate"))),
    ("root expired", |s| {
        s.root.not_after = date_time_ymd(2026, 5, 1);
    }, fails!(CertError::Expired { subject, .. } if subject.ends_with("root"))),
    ("far in the future", |s| {
        for params in [&mut s.root, &mut s.intermediate, &mut s.leaf] {
            params.not_after = date_time_ymd(9999, 12, 31);
        }
        s.now = UnixTime(Duration::from_secs(7_000_000_000));
    }, None),
    // Who may be what.
    ("CA as gateway", |s| s.leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), fails!(CertError::CaAsEndEntity { .. })),
    ("explicitly no CA", |s| s.leaf.is_ca = IsCa::ExplicitNoCa, None),
    ("intermediate is no CA", |s| {
        s.intermediate.is_ca = IsCa::NoCa;
    }, fails!(CertError::NotACa { subject } if subject.ends_with("intermediate"))),
    ("intermediate is explicitly no CA", |s| {
        s.intermediate.is_ca = IsCa::ExplicitNoCa;
    }, fails!(CertError::NotACa { subject } if subject.ends_with("intermediate"))),
    ("intermediate may not sign certificates", |s| {
        s.intermediate.key_usages = vec![KeyUsagePurpose::CrlSign];
    }, fails!(CertError::NotACa { subject } if subject.ends_with("intermediate"))),
    ("intermediate without keyUsage", |s| s.intermediate.key_usages.clear(), None),
    ("root is no CA", |s| s.root.is_ca = IsCa::NoCa, fails!(CertError::NotACa { subject } if subject.ends_with("root"))),
    ("root may not sign certificates", |s| {
        s.root.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    }, fails!(CertError::NotACa { subject } if subject.ends_with("root"))),
    ("path length suffices", |s| {
        s.root.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        s.intermediate.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    }, None),
    // keyUsage of the gateway.
    ("no keyUsage", |s| s.leaf.key_usages.clear(), None),
    ("nonRepudiation", |s| s.leaf.key_usages = vec![KeyUsagePurpose::ContentCommitment], None),
    ("keyEncipherment only", |s| {
        s.leaf.key_usages = vec![KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyAgreement];
    }, fails!(CertError::KeyUsage { .. })),
    // Extended key usage.
    ("no extended key usage", |s| s.leaf.extended_key_usages.clear(), None),
    ("any", |s| s.leaf.extended_key_usages = vec![Usage::Any], None),
    ("clients and servers", |s| s.leaf.extended_key_usages = vec![Usage::ClientAuth, Usage::ServerAuth], None),
    ("clients only", |s| {
        s.leaf.extended_key_usages = vec![Usage::ClientAuth];
    }, fails!(CertError::NotForServer { .. })),
    ("clients and e-mail only", |s| {
        s.leaf.extended_key_usages = vec![Usage::EmailProtection, Usage::ClientAuth];
    }, fails!(CertError::NotForServer { .. })),
    ("code signing", |s| {
        s.leaf.extended_key_usages = vec![Usage::CodeSigning];
    }, fails!(CertError::ExtendedKeyUsage { usages, .. } if usages == &["1.3.6.1.5.5.7.3.3"])),
    ("the intermediate is for clients only", |s| {
        s.intermediate.extended_key_usages = vec![Usage::ClientAuth];
    }, fails!(CertError::ExtendedKeyUsage { subject, .. } if subject.ends_with("intermediate"))),
    // Extensions.
    ("unknown extension", |s| {
        s.leaf.custom_extensions.push(CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]));
    }, None),
    ("unknown critical extension", |s| {
        s.leaf.custom_extensions.push(critical());
    }, fails!(CertError::CriticalExtension { subject } if subject.ends_with("gateway"))),
    ("unknown critical extension above", |s| {
        s.intermediate.custom_extensions.push(critical());
    }, fails!(CertError::CriticalExtension { subject } if subject.ends_with("intermediate"))),
    // nameConstraints.
    ("permitted name", |s| s.intermediate.name_constraints = permit(GeneralSubtree::DnsName("example.org".into())), None),
    ("name not permitted", |s| {
        s.intermediate.name_constraints = permit(GeneralSubtree::DnsName("example.com".into()));
    }, fails!(CertError::NameConstraint { .. })),
    ("excluded name", |s| {
        s.intermediate.name_constraints = exclude(GeneralSubtree::DnsName("vpn.example.org".into()));
    }, fails!(CertError::NameConstraint { .. })),
    ("excluded by the root", |s| {
        s.root.name_constraints = exclude(GeneralSubtree::DnsName("example.org".into()));
    }, fails!(CertError::NameConstraint { .. })),
    ("wildcard over an excluded name", |s| {
        s.leaf.subject_alt_names = vec![dns("*.example.org")];
        s.intermediate.name_constraints = exclude(GeneralSubtree::DnsName("secret.example.org".into()));
    }, fails!(CertError::NameConstraint { .. })),
    ("excluded address", |s| {
        s.leaf.subject_alt_names.push(SanType::IpAddress([192, 0, 2, 1].into()));
        s.intermediate.name_constraints =
            exclude(GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([192, 0, 2, 0], 24)));
    }, fails!(CertError::NameConstraint { .. })),
    // Excluded and permitted directory names are refused altogether, which is safe.
    ("excluded directory name", |s| {
        s.intermediate.name_constraints =
            exclude(GeneralSubtree::DirectoryName(named("gateway", &[]).distinguished_name));
    }, fails!(CertError::NameConstraint { .. })),
    // Names.
    ("case does not matter", |s| s.leaf.subject_alt_names = vec![dns("VPN.Example.ORG")], None),
    ("wildcard", |s| s.leaf.subject_alt_names = vec![dns("*.example.org")], None),
    ("wildcard for two labels", |s| {
        s.leaf.subject_alt_names = vec![dns("*.org")];
    }, fails!(CertError::NameMismatch { .. })),
    ("wildcard within a label", |s| {
        s.leaf.subject_alt_names = vec![dns("v*.example.org")];
    }, fails!(CertError::NameMismatch { .. })),
    ("wildcard in the middle", |s| {
        s.leaf.subject_alt_names = vec![dns("vpn.*.org")];
    }, fails!(CertError::NameMismatch { .. })),
    ("wildcard for the parent", |s| {
        s.leaf.subject_alt_names = vec![dns("*.vpn.example.org")];
    }, fails!(CertError::NameMismatch { .. })),
    ("another name", |s| {
        s.leaf.subject_alt_names = vec![dns("mail.example.org"), SanType::IpAddress([192, 0, 2, 1].into())];
    }, fails!(CertError::NameMismatch { expected, presented }
        if expected == "vpn.example.org" && presented == &["mail.example.org", "192.0.2.1"])),
    ("a longer name", |s| {
        s.leaf.subject_alt_names = vec![dns("vpn.example.org.attacker.example")];
    }, fails!(CertError::NameMismatch { .. })),
    ("a name with a zero octet", |s| {
        s.leaf.subject_alt_names = vec![dns("vpn.example.org\0.attacker.example")];
    }, fails!(CertError::NameMismatch { presented, .. } if presented == &["(a name of another kind)"])),
    ("name in the common name only", |s| {
        s.leaf.subject_alt_names.clear();
        s.leaf.distinguished_name.push(DnType::CommonName, "vpn.example.org");
    }, fails!(CertError::NameMismatch { presented, .. } if presented.is_empty())),
    ("address", |s| {
        s.leaf.subject_alt_names = vec![SanType::IpAddress([192, 0, 2, 1].into())];
        (s.expected, s.received) = (id("192.0.2.1"), Some(id("192.0.2.1")));
    }, None),
    ("another address", |s| {
        s.leaf.subject_alt_names = vec![SanType::IpAddress([192, 0, 2, 2].into())];
        (s.expected, s.received) = (id("192.0.2.1"), None);
    }, fails!(CertError::NameMismatch { .. })),
    ("address as DNS name", |s| {
        s.leaf.subject_alt_names = vec![dns("192.0.2.1")];
        (s.expected, s.received) = (id("192.0.2.1"), None);
    }, fails!(CertError::NameMismatch { .. })),
    ("IPv6 address", |s| {
        s.leaf.subject_alt_names = vec![SanType::IpAddress("2001:db8::1".parse().unwrap())];
        (s.expected, s.received) = (id("2001:db8::1"), Some(id("2001:db8::1")));
    }, None),
    ("e-mail address", |s| {
        s.leaf.subject_alt_names = vec![SanType::Rfc822Name("vpn@Example.org".try_into().unwrap())];
        (s.expected, s.received) = (id("vpn@example.org"), Some(id("vpn@example.org")));
    }, None),
    ("another mailbox", |s| {
        s.leaf.subject_alt_names = vec![SanType::Rfc822Name("VPN@example.org".try_into().unwrap())];
        (s.expected, s.received) = (id("vpn@example.org"), None);
    }, fails!(CertError::NameMismatch { .. })),
    ("distinguished name", |s| (s.expected, s.received) = (id("O=Test, CN=gateway"), None), None),
    ("distinguished name in another case", |s| (s.expected, s.received) = (id("o=test, cn=Gateway"), None), None),
    ("another distinguished name", |s| {
        (s.expected, s.received) = (id("CN=gateway"), None);
    }, fails!(CertError::NameMismatch { presented, .. } if presented == &["O=Test, CN=gateway", "vpn.example.org"])),
    ("key ID", |s| (s.expected, s.received) = (id("keyid:vpn"), Some(id("keyid:vpn"))), fails!(CertError::NameMismatch { .. })),
];

/// The rules that hold for a gateway only.
#[rustfmt::skip]
const GATEWAY: &[Row] = &[
    ("ipsecIKE", |s| s.leaf.extended_key_usages = vec![Usage::Other(vec![1, 3, 6, 1, 5, 5, 7, 3, 17])], None),
    ("ikeIntermediate", |s| {
        s.leaf.extended_key_usages = vec![Usage::ClientAuth, Usage::Other(vec![1, 3, 6, 1, 5, 5, 8, 2, 2])];
    }, None),
    // IDr.
    ("no IDr", |s| s.received = None, None),
    ("IDr is another name in the certificate", |s| {
        s.leaf.subject_alt_names.push(dns("gw1.example.org"));
        s.received = Some(id("gw1.example.org"));
    }, None),
    ("IDr is the subject", |s| s.received = Some(as_utf8(id("O=Test, CN=gateway"))), None),
    ("IDr is not in the certificate", |s| {
        s.received = Some(id("gw1.example.org"));
    }, fails!(CertError::IdentityUnconfirmed { received, presented }
        if received == "gw1.example.org" && presented == &["vpn.example.org"])),
    ("IDr is another subject", |s| {
        s.received = Some(as_utf8(id("O=Test, CN=other")));
    }, fails!(CertError::IdentityUnconfirmed { .. })),
    ("IDr is the subject in another case", |s| {
        s.received = Some(as_utf8(id("O=TEST, CN=gateway")));
    }, fails!(CertError::IdentityUnconfirmed { .. })),
    ("IDr is an address that is only a DNS name", |s| {
        s.leaf.subject_alt_names.push(dns("192.0.2.1"));
        s.received = Some(id("192.0.2.1"));
    }, fails!(CertError::IdentityUnconfirmed { .. })),
    ("IDr is a key ID", |s| s.received = Some(id("keyid:vpn")), fails!(CertError::IdentityUnconfirmed { .. })),
    ("IDr is the wildcard", |s| {
        s.leaf.subject_alt_names = vec![dns("*.example.org")];
        s.received = Some(Identity::Fqdn("*.example.org".into()));
    }, None),
    ("IDr is a wildcard over the name", |s| {
        s.received = Some(Identity::Fqdn("*.example.org".into()));
    }, fails!(CertError::IdentityUnconfirmed { .. })),
    ("IDr is what we demand, the certificate is not", |s| {
        s.leaf.subject_alt_names = vec![dns("other.example.org")];
    }, fails!(CertError::NameMismatch { .. })),
    // Pins.
    ("pinned", |s| s.pin = |[.., leaf]| Some(leaf.clone()), None),
    ("pinned without anchor", |s| {
        s.pin = |[.., leaf]| Some(leaf.clone());
        s.anchors = |_| Vec::new();
    }, None),
    ("another pinned", |s| {
        s.pin = |_| Some(Setup::new().certificates()[2].clone());
    }, fails!(CertError::PinMismatch { .. })),
    ("the authority pinned", |s| s.pin = |[root, ..]| Some(root.clone()), fails!(CertError::PinMismatch { .. })),
    ("pinned but expired", |s| {
        s.pin = |[.., leaf]| Some(leaf.clone());
        s.leaf.not_after = date_time_ymd(2026, 5, 1);
    }, fails!(CertError::Expired { .. })),
    ("pinned but for another name", |s| {
        s.pin = |[.., leaf]| Some(leaf.clone());
        s.expected = id("other.example.org");
    }, fails!(CertError::NameMismatch { .. })),
    ("pinned but IDr unconfirmed", |s| {
        s.pin = |[.., leaf]| Some(leaf.clone());
        s.received = Some(id("other.example.org"));
    }, fails!(CertError::IdentityUnconfirmed { .. })),
    ("pinned but for clients", |s| {
        s.pin = |[.., leaf]| Some(leaf.clone());
        s.leaf.extended_key_usages = vec![Usage::ClientAuth];
    }, fails!(CertError::NotForServer { .. })),
    ("pinned CA of others", |s| {
        s.pin = |[.., leaf]| Some(leaf.clone());
        s.leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }, fails!(CertError::CaAsEndEntity { .. })),
];

/// The rules that hold for a TLS server only.
#[rustfmt::skip]
const TLS: &[Row] = &[
    ("ipsecIKE", |s| {
        s.leaf.extended_key_usages = vec![Usage::Other(vec![1, 3, 6, 1, 5, 5, 7, 3, 17])];
    }, fails!(CertError::ExtendedKeyUsage { .. })),
];

fn critical() -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 2], vec![5, 0]);
    extension.set_criticality(true);
    extension
}

fn permit(subtree: GeneralSubtree) -> Option<NameConstraints> {
    Some(NameConstraints {
        permitted_subtrees: vec![subtree],
        excluded_subtrees: Vec::new(),
    })
}

fn exclude(subtree: GeneralSubtree) -> Option<NameConstraints> {
    Some(NameConstraints {
        permitted_subtrees: Vec::new(),
        excluded_subtrees: vec![subtree],
    })
}

/// A distinguished name with the string type that rcgen uses.
fn as_utf8(identity: Identity) -> Identity {
    let Identity::Dn(mut name) = identity else {
        panic!("a distinguished name")
    };
    for octet in name.iter_mut().filter(|octet| **octet == 0x13) {
        *octet = 0x0c;
    }
    Identity::Dn(name)
}

fn check(rows: &[Row], verify: fn(&Setup) -> Result<(), CertError>) {
    for (name, change, fails) in rows {
        let mut setup = Setup::new();
        change(&mut setup);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| verify(&setup)));
        match (result.unwrap_or_else(|_| panic!("{name}: panicked")), fails) {
            (Ok(()), None) => {}
            (Err(error), Some(is_it)) if is_it(&error) => {}
            (result, _) => panic!("{name}: {result:?}"),
        }
    }
}

#[test]
fn gateways_are_checked_by_every_rule() {
    check(COMMON, Setup::gateway);
    check(GATEWAY, Setup::gateway);
}

#[test]
fn tls_servers_are_checked_by_every_rule() {
    check(COMMON, Setup::tls);
    check(TLS, Setup::tls);
}

/// RFC 5280, section 4.2: otherwise two readers could take different ones.
#[test]
fn no_extension_appears_twice() {
    let mut params = named("gateway", &["vpn.example.org"]);
    let name = b"\x30\x0d\x82\x0bexample.org".to_vec();
    params
        .custom_extensions
        .push(CustomExtension::from_oid_content(&[2, 5, 29, 17], name));
    let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    let error = Certificate::from_der(certificate.der()).unwrap_err();
    assert_eq!(
        error,
        CertError::Malformed {
            what: "extensions: one appears twice".into()
        }
    );
}

#[test]
fn path_length_counts_authorities_below() {
    let ca = |name: &str, constraint| {
        let mut params = named(name, &[]);
        params.is_ca = IsCa::Ca(constraint);
        params
    };
    let params = [
        ca("root", BasicConstraints::Unconstrained),
        ca("first", BasicConstraints::Constrained(0)),
        ca("second", BasicConstraints::Unconstrained),
        named("gateway", &["vpn.example.org"]),
    ];
    let keys = [(); 4].map(|()| KeyPair::generate().unwrap());
    let root = params[0].self_signed(&keys[0]).unwrap();
    let mut all = vec![Certificate::from_der(root.der()).unwrap()];
    for index in 1..4 {
        let issuer = Issuer::from_params(&params[index - 1], &keys[index - 1]);
        let certificate = params[index].signed_by(&keys[index], &issuer).unwrap();
        all.push(Certificate::from_der(certificate.der()).unwrap());
    }
    let chain: Vec<_> = all.iter().rev().cloned().collect();
    let expected = id("vpn.example.org");
    let result = verify_gateway(&chain, &all[..1], None, &expected, None, NOW);
    assert!(matches!(result, Err(CertError::PathTooLong { .. })), "{result:?}");
}

#[test]
fn chains_that_go_in_circles_end() {
    let ca = |name: &str| {
        let mut params = named(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    };
    let (a, b) = (ca("a"), ca("b"));
    let keys = [(); 3].map(|()| KeyPair::generate().unwrap());
    let leaf = named("gateway", &["vpn.example.org"])
        .signed_by(&keys[2], &Issuer::from_params(&a, &keys[0]))
        .unwrap();
    let a_by_b = a.signed_by(&keys[0], &Issuer::from_params(&b, &keys[1])).unwrap();
    let b_by_a = b.signed_by(&keys[1], &Issuer::from_params(&a, &keys[0])).unwrap();
    let chain =
        [&leaf, &a_by_b, &b_by_a].map(|certificate| Certificate::from_der(certificate.der()).unwrap());
    let root = Setup::new().certificates()[0].clone();
    let result = verify_gateway(&chain, &[root], None, &id("vpn.example.org"), None, NOW);
    assert!(
        matches!(result, Err(CertError::UnknownIssuer { .. })),
        "{result:?}"
    );
}

#[test]
fn a_self_signed_gateway_needs_a_pin() {
    let expected = id("vpn.example.org");
    for is_ca in [IsCa::NoCa, IsCa::Ca(BasicConstraints::Unconstrained)] {
        let mut params = named("gateway", &["vpn.example.org"]);
        params.is_ca = is_ca;
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let chain = [Certificate::from_der(certificate.der()).unwrap()];
        assert!(verify_gateway(&chain, &[], Some(&chain[0]), &expected, Some(&expected), NOW).is_ok());
        assert!(verify_gateway(&chain, &chain, None, &expected, Some(&expected), NOW).is_err());
        assert!(verify_gateway(&chain, &[], None, &expected, Some(&expected), NOW).is_err());
    }
}

/// What rcgen cannot make: other keys, other hashes.
struct Made {
    root: Certificate,
    leaf: Certificate,
}

/// A root and a gateway below it: options of `openssl genpkey` for both, and of `openssl x509` for the gateway's.
fn made(root_key: &str, leaf_key: &str, sign: &str) -> Made {
    let openssl = OpenSsl::new();
    openssl.write("leaf.cnf", "subjectAltName=DNS:vpn.example.org\n");
    openssl
        .run(&format!("genpkey {root_key} -out root.key"))
        .run(&format!("genpkey {leaf_key} -out leaf.key"))
        .run("req -x509 -new -key root.key -subj /CN=root -days 36500 -out root.pem")
        .run("req -new -key leaf.key -subj /CN=gateway -out leaf.csr")
        .run(&format!(
            "x509 -req -in leaf.csr -CA root.pem -CAkey root.key -CAcreateserial -days 36500 {sign} -extfile leaf.cnf \
             -out leaf.pem"
        ));
    let load = |name: &str| load_certificates(&openssl.read(name)).unwrap().remove(0);
    Made {
        root: load("root.pem"),
        leaf: load("leaf.pem"),
    }
}

fn verify_made(made: &Made) -> Result<(), CertError> {
    let expected = id("vpn.example.org");
    let now = made.leaf.not_before().max(made.root.not_before());
    let chain = std::slice::from_ref(&made.leaf);
    let anchors = std::slice::from_ref(&made.root);
    verify_gateway(chain, anchors, None, &expected, None, now).map(|_| ())
}

const RSA: &str = "-algorithm RSA -pkeyopt rsa_keygen_bits:2048";
const EC: &str = "-algorithm EC -pkeyopt ec_paramgen_curve:";

#[test]
fn every_usual_algorithm_may_sign_certificates() {
    let pss = "-sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:digest";
    for (root, sign) in [
        (RSA.to_owned(), "-sha256".to_owned()),
        (RSA.to_owned(), "-sha512".to_owned()),
        (RSA.to_owned(), format!("-sha256 {pss}")),
        (RSA.to_owned(), format!("-sha384 {pss}")),
        (format!("{EC}P-256"), "-sha512".to_owned()),
        (format!("{EC}P-384"), "-sha512".to_owned()),
        (format!("{EC}P-521"), "-sha256".to_owned()),
        (format!("{EC}P-521"), "-sha384".to_owned()),
        (format!("{EC}P-521"), "-sha512".to_owned()),
        ("-algorithm ED25519".to_owned(), String::new()),
    ] {
        let made = made(&root, &format!("{EC}P-521"), &sign);
        assert_eq!(made.leaf.key_kind(), KeyKind::EcP521);
        assert_eq!(verify_made(&made), Ok(()), "{root} {sign}");
        // The same with another root of the same kind and name.
        let other = self::made(&root, &format!("{EC}P-256"), &sign);
        let mixed = Made {
            root: other.root,
            leaf: made.leaf,
        };
        let error = verify_made(&mixed).unwrap_err();
        assert!(
            matches!(error, CertError::ChainSignature { .. }),
            "{root} {sign}: {error:?}"
        );
    }
}

#[test]
fn weak_signatures_and_keys_are_refused() {
    let short = "-algorithm RSA -pkeyopt rsa_keygen_bits:1024";
    let result = |root: &str, leaf: &str, sign: &str| verify_made(&made(root, leaf, sign)).unwrap_err();
    let error = result(RSA, RSA, "-sha1");
    assert!(
        matches!(&error, CertError::WeakSignature { algorithm, .. } if algorithm == "RSA with SHA-1"),
        "{error:?}"
    );
    let error = result(RSA, RSA, "-md5");
    assert!(
        matches!(&error, CertError::WeakSignature { algorithm, .. } if algorithm == "RSA with MD5"),
        "{error:?}"
    );
    let error = result(&format!("{EC}P-256"), RSA, "-sha1");
    assert!(
        matches!(&error, CertError::WeakSignature { algorithm, .. } if algorithm == "ECDSA with SHA-1"),
        "{error:?}"
    );
    let error = result(RSA, RSA, "-sha1 -sigopt rsa_padding_mode:pss");
    assert!(matches!(&error, CertError::WeakSignature { .. }), "{error:?}");
    let error = result(RSA, short, "-sha256");
    assert!(
        matches!(
            &error,
            CertError::WeakKey {
                key: KeyKind::Rsa { bits: 1024 },
                ..
            }
        ),
        "{error:?}"
    );
    let error = result(short, RSA, "-sha256");
    assert!(
        matches!(&error, CertError::WeakKey { subject, .. } if subject == "CN=root"),
        "{error:?}"
    );
    let error = result(RSA, &format!("{RSA} -pkeyopt rsa_keygen_pubexp:3"), "-sha256");
    assert!(matches!(&error, CertError::WeakKey { .. }), "{error:?}");
    let error = result(RSA, &format!("{EC}secp256k1"), "-sha256");
    assert!(matches!(&error, CertError::UnsupportedKey { .. }), "{error:?}");
    let error = result(RSA, "-algorithm ED448", "-sha256");
    assert!(matches!(&error, CertError::UnsupportedKey { .. }), "{error:?}");
}

#[test]
fn errors_are_sentences_without_control_characters() {
    let mut setup = Setup::new();
    setup
        .leaf
        .distinguished_name
        .push(DnType::OrganizationalUnitName, "\u{1b}[2J\r\nspoof\u{202e}");
    setup.leaf.not_after = date_time_ymd(2026, 5, 1);
    let text = setup.gateway().unwrap_err().to_string();
    assert!(
        text.contains("spoof") && text.contains("expired at 2026-05-01T00:00:00Z"),
        "{text}"
    );
    assert!(
        !text.contains(|character: char| character.is_control() || character == '\u{202e}'),
        "{text}"
    );
    let presented = vec!["a.example".to_owned(), "b.example".to_owned()];
    assert_eq!(
        CertError::NameMismatch {
            expected: "vpn.example".into(),
            presented
        }
        .to_string(),
        "the certificate is not for “vpn.example”, but for “a.example”, “b.example”"
    );
}
