use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::*;
use crate::proposal::default_ike;
use crate::timer::UnixTime;
use crate::wire::iana::KeMethod;

/// Files in memory, passphrases from a list.
#[derive(Default)]
struct Memory {
    files: BTreeMap<String, Vec<u8>>,
    passphrases: VecDeque<&'static str>,
    asked: Vec<(String, u32)>,
}

impl Source for Memory {
    fn load(&mut self, file: &FileRef) -> Result<Vec<u8>, String> {
        self.files
            .get(&file.path)
            .cloned()
            .ok_or_else(|| "there is no such file".to_owned())
    }

    fn passphrase(&mut self, what: &str, attempt: u32) -> Passphrase {
        self.asked.push((what.to_owned(), attempt));
        match self.passphrases.pop_front() {
            Some("later") => Passphrase::Later,
            Some(text) => Passphrase::Is(Secret::from_slice(text.as_bytes())),
            None => Passphrase::GiveUp,
        }
    }

    fn system_anchors(&mut self) -> Result<Vec<Certificate>, String> {
        Ok(Vec::new())
    }
}

fn now() -> UnixTime {
    UnixTime(Duration::from_secs(1_795_228_800))
}

fn read(text: &str) -> Result<Parsed, ProfileErrors> {
    parse(text, "office.toml", &mut Memory::default(), now())
}

fn errors(text: &str) -> Vec<String> {
    read(text)
        .unwrap_err()
        .to_string()
        .lines()
        .map(str::to_owned)
        .collect()
}

const SMALL: &str = "\
[gateway]
address = \"vpn.example.org\"
[auth]
method = \"eap-mschapv2\"
username = \"alice\"
";

fn with(addition: &str) -> String {
    format!("{SMALL}{addition}")
}

fn keys(settings: &[Setting]) -> Vec<&str> {
    settings.iter().map(|setting| setting.key.as_str()).collect()
}

fn remarks(remarks: &[Remark]) -> Vec<String> {
    remarks
        .iter()
        .map(|r| format!("{}: {}: {}", r.line.unwrap_or(0), r.key, r.message))
        .collect()
}

#[test]
fn a_small_profile_gets_the_documented_defaults() {
    let parsed = read(SMALL).unwrap();
    let profile = &parsed.profile;
    assert_eq!(profile.name, "vpn.example.org");
    assert_eq!(profile.gateway.host, Host::Name("vpn.example.org".into()));
    assert_eq!((profile.gateway.port, profile.gateway.send_idr), (500, true));
    assert_eq!(profile.gateway.identity, Identity::Fqdn("vpn.example.org".into()));
    assert!(profile.gateway.anchors.system && !profile.gateway.allow_sha1_auth);
    assert_eq!(profile.gateway.redirect, Redirects::Proven);
    assert_eq!(profile.gateway.revocation, Revocation::Soft);
    assert_eq!(profile.auth.method, AuthKind::EapMsChapV2);
    assert_eq!(profile.auth.username.as_deref(), Some("alice"));
    assert_eq!(profile.ike.proposals, default_ike());
    assert_eq!(profile.ike.rekey, Duration::from_secs(4 * 3600));
    assert_eq!(profile.ike.dpd, Duration::from_secs(30));
    assert!(profile.ike.mobike && profile.ike.fragmentation && !profile.ike.initial_contact);
    assert!(profile.ike.resumption);
    assert_eq!(
        (profile.gateway.tcp_port, profile.network.tcp_fallback),
        (4500, true)
    );
    assert_eq!(profile.ike.fragment_size, 1280);
    assert_eq!(profile.child.proposals, crate::proposal::default_esp());
    assert_eq!(
        profile.child.remote_ts,
        ["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()]
    );
    assert!(profile.child.accept_narrowing && profile.child.exclude.is_empty());
    assert_eq!(profile.child.rekey, Duration::from_secs(3600));
    assert_eq!(
        (&profile.network.dns, profile.network.mtu),
        (&DnsPolicy::Gateway, None)
    );
    assert_eq!(parsed.missing_secret(), Some(MissingSecret::Password));
    let report = parsed.report;
    assert_eq!(
        keys(&report.used),
        ["gateway.address", "auth.method", "auth.username"]
    );
    assert_eq!(report.used[0].line, Some(2));
    assert!(report.warnings.is_empty() && report.not_used.is_empty());
    let switch = report
        .defaulted
        .iter()
        .find(|s| s.key == "network.kill_switch")
        .unwrap();
    assert!(switch.value.contains("not blocked"), "{}", switch.value);
}

#[test]
fn every_key_has_its_effect() {
    let text = r#"
        name = "Büro"
        [gateway]
        address = "bücher.example"
        port = 4500
        tcp_port = 8443
        identity = "C=CH, CN=gateway"
        send_idr = false
        allow_sha1_auth = true
        redirect = ["VPN2.example.org", "192.0.2.0/24"]
        revocation = "strict"
        [auth]
        method = "eap-mschapv2"
        identity = "alice@example.org"
        eap_identity = "anonymous@example.org"
        username = "alice"
        password = "correct horse"
        [ike]
        proposals = ["aes256gcm16-prfsha384-x25519", "aes256-sha1-modp1024"]
        rekey = "2h"
        mobike = false
        fragmentation = false
        fragment_size = 576
        dpd = "1m"
        initial_contact = true
        resumption = false
        [child]
        proposals = "aes128gcm16-ecp256-esn"
        remote_ts = ["10.0.0.0/8", "192.0.2.1"]
        exclude = ["10.9.0.0/16"]
        accept_narrowing = true
        rekey = "30m"
        rekey_bytes = 1_073_741_824
        rekey_packets = 1000000
        [network]
        kill_switch = false
        allow_lan = false
        dns = ["10.0.0.53", "fd00::53"]
        domains = ["Example.org."]
        mtu = 1400
        tcp_fallback = false
    "#;
    let Parsed {
        profile,
        credentials,
        report,
    } = read(text).unwrap();
    assert_eq!(profile.name, "Büro");
    assert_eq!(profile.gateway.host, Host::Name("xn--bcher-kva.example".into()));
    assert_eq!((profile.gateway.port, profile.gateway.send_idr), (4500, false));
    assert!(matches!(profile.gateway.identity, Identity::Dn(_)) && profile.gateway.allow_sha1_auth);
    let targets = vec![
        RedirectTarget::Name("vpn2.example.org".into()),
        RedirectTarget::Network("192.0.2.0/24".parse().unwrap()),
    ];
    assert_eq!(profile.gateway.redirect, Redirects::To(targets));
    assert_eq!(profile.gateway.revocation, Revocation::Strict);
    assert_eq!(
        profile.auth.identity,
        Some(Identity::Rfc822("alice@example.org".into()))
    );
    assert_eq!(
        profile.auth.eap_identity.as_deref(),
        Some("anonymous@example.org")
    );
    assert_eq!(credentials.password.unwrap().as_bytes(), b"correct horse");
    assert_eq!(profile.ike.proposals.len(), 2);
    assert_eq!(profile.ike.rekey, Duration::from_secs(7200));
    assert!(!profile.ike.mobike && !profile.ike.fragmentation && profile.ike.initial_contact);
    assert!(!profile.ike.resumption);
    assert_eq!(
        (profile.ike.fragment_size, profile.ike.dpd),
        (576, Duration::from_secs(60))
    );
    assert_eq!(profile.child.proposals[0].key_exchanges, [KeMethod::ECP_256]);
    assert_eq!(
        profile.child.remote_ts,
        ["10.0.0.0/8".parse().unwrap(), "192.0.2.1/32".parse().unwrap()]
    );
    assert_eq!(
        profile
            .child
            .exclude
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["10.9.0.0/16"]
    );
    assert!(profile.child.accept_narrowing);
    assert_eq!(profile.child.rekey, Duration::from_secs(1800));
    let limits = profile.child.limits;
    assert_eq!((limits.octets, limits.packets), (1 << 30, 1_000_000));
    let servers = ["10.0.0.53".parse().unwrap(), "fd00::53".parse().unwrap()];
    assert_eq!(profile.network.dns, DnsPolicy::Servers(servers.to_vec()));
    assert_eq!(
        (profile.network.domains, profile.network.mtu),
        (vec!["example.org".to_owned()], Some(1400))
    );

    let warnings = remarks(&report.warnings).join("\n");
    for wanted in [
        "allow_sha1_auth",
        "auth.password",
        "ike.proposals: modp1024, prfsha1, sha1 is outdated",
    ] {
        assert!(warnings.contains(wanted), "{wanted}\n{warnings}");
    }
    let idle: Vec<&str> = report.not_used.iter().map(|remark| remark.key.as_str()).collect();
    assert_eq!(idle, ["network.allow_lan"]);
    assert_eq!(
        (profile.gateway.tcp_port, profile.network.tcp_fallback),
        (8443, false)
    );
    assert!(
        report
            .used
            .iter()
            .all(|setting| !idle.contains(&setting.key.as_str()))
    );
    assert!(
        report
            .used
            .iter()
            .any(|s| s.key == "auth.password" && s.value == "(hidden)")
    );
    assert!(!format!("{report:?}").contains("horse"));
}

#[test]
fn revocation_is_one_of_three_words_and_no_business_of_a_shared_key() {
    let with = |word: &str| read(&SMALL.replace("[auth]", &format!("revocation = {word}\n[auth]")));
    assert_eq!(
        with("\"off\"").unwrap().profile.gateway.revocation,
        Revocation::Off
    );
    let problems = with("\"hard\"").unwrap_err().to_string();
    assert!(problems.contains("off, soft or strict"), "{problems}");
    assert!(with("true").is_err());
    let psk = "[gateway]\naddress = \"vpn.example.org\"\nrevocation = \"strict\"\n[auth]\nmethod = \"psk\"\npsk = \"a key that is long enough\"\n";
    let parsed = read(psk).unwrap();
    assert_eq!(parsed.profile.gateway.revocation, Revocation::Off);
    let idle: Vec<&str> = parsed
        .report
        .not_used
        .iter()
        .map(|remark| remark.key.as_str())
        .collect();
    assert_eq!(idle, ["gateway.revocation"]);
}

#[test]
fn addresses_are_identities_of_their_own_kind() {
    let text = SMALL.replace("vpn.example.org", "[2001:db8::1]");
    let gateway = read(&text).unwrap().profile.gateway;
    assert_eq!(gateway.host, Host::Address("2001:db8::1".parse().unwrap()));
    assert_eq!(
        gateway.identity,
        Identity::Address("2001:db8::1".parse().unwrap())
    );
}

#[test]
fn unknown_keys_are_named_with_place_and_suggestion() {
    let text =
        "nam = \"x\"\n[gatway]\n".to_owned() + &SMALL.replace("[auth]", "adress = \"x\"\n  mtu = 5\n[auth]");
    assert_eq!(
        errors(&text),
        [
            "office.toml:1:1: nam: unknown key; did you mean `name`?",
            "office.toml:2:2: gatway: unknown key; did you mean `gateway`?",
            "office.toml:5:1: gateway.adress: unknown key; did you mean `address`?",
            "office.toml:6:3: gateway.mtu: unknown key; `mtu` belongs in [network]",
        ]
    );
    let error = &errors(&with("[ike]\nzebra = 1\n"))[0];
    assert!(
        error.contains("ike.zebra: unknown key; known here are dpd, fragment"),
        "{error}"
    );
    assert!(errors(&with("[ike]\nname = \"x\"\n"))[0].contains("`name` belongs at the top"));
}

#[test]
fn everything_wrong_is_told_at_once_in_the_order_of_the_file() {
    let text = "\
[gateway]
address = \"https://vpn.example.org\"
port = 70000
[auth]
method = \"eap-tsl\"
[ike]
proposals = [\"aes256gcm16-prfsha384-x25519\", \"aes256gcm16-prfsha385-x25519\"]
dpd = \"1s\"
[child]
remote_ts = [\"10.0.0.1/8\"]
[network]
mtu = 1000
dns = [\"ns.example.org\"]
";
    assert_eq!(
        errors(text),
        [
            "office.toml:2:11: gateway.address: `https://vpn.example.org` is a link; write the host name or IP \
             address alone",
            "office.toml:3:8: gateway.port: must be a number from 1 to 65535",
            "office.toml:5:10: auth.method: `eap-tsl` is not a known method; did you mean `eap-tls`?",
            "office.toml:7:59: ike.proposals: `prfsha385` is not a known algorithm; did you mean `prfsha384`?",
            "office.toml:8:7: ike.dpd: must be from 5s to 1h",
            "office.toml:10:14: child.remote_ts: `10.0.0.1/8` has bits set beyond its prefix length; the network \
             is `10.0.0.0/8`, the one address is `10.0.0.1`",
            "office.toml:12:7: network.mtu: must be a number from 1280 to 9000",
            "office.toml:13:8: network.dns: `ns.example.org` is not an IP address; write \"gateway\", \"none\" or \
             a list of addresses",
        ]
    );
}

#[test]
fn text_that_is_not_toml_is_refused_with_its_place() {
    let found = errors("[gateway]\naddress = vpn.example.org\n");
    assert!(
        found[0].starts_with("office.toml:2:11: not valid TOML: "),
        "{found:?}"
    );
    assert!(errors("name = \"a\"\nname = \"b\"\n")[0].starts_with("office.toml:2:1: "));
}

#[test]
fn missing_parts_are_named() {
    let text = "name = \"x\"\n";
    let found = errors(text);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("gateway.address: is missing") && found[1].contains("auth.method: is missing"));
    let text = SMALL.replace("username = \"alice\"\n", "");
    assert_eq!(
        errors(&text),
        ["office.toml:3:1: auth.username: is missing: method eap-mschapv2 needs a user name"]
    );
}

#[test]
fn wrong_types_are_told() {
    for (addition, message) in [
        (
            "[ike]\nmobike = \"yes\"\n",
            "7:10: ike.mobike: must be true or false, not a text",
        ),
        (
            "[ike]\nproposals = 1\n",
            "7:13: ike.proposals: must be a list of texts, not a number",
        ),
        (
            "[ike]\nproposals = []\n",
            "7:13: ike.proposals: must not be empty",
        ),
        (
            "[child]\nremote_ts = [1]\n",
            "7:14: child.remote_ts: must be a text in quotation marks, not a number",
        ),
        (
            "[network]\nmtu = \"1400\"\n",
            "7:7: network.mtu: must be \"auto\" or a number, not a text",
        ),
        (
            "[[ike]]\nmobike = true\n",
            "6:3: ike: must be a table: write [ike] on a line of its own",
        ),
    ] {
        assert_eq!(errors(&with(addition)), [format!("office.toml:{message}")]);
    }
    assert!(errors("name = \"\"\n")[0].contains("1:8: name: must not be empty"));
}

#[test]
fn a_kill_switch_with_a_part_of_the_networks_is_warned_about() {
    let locked = |child: &str| read(&with(&format!("{child}[network]\nkill_switch = true\n"))).unwrap();
    let full = locked("");
    assert!(full.profile.network.kill_switch && !full.profile.network.allow_lan);
    assert!(
        full.report
            .warnings
            .iter()
            .all(|remark| remark.key != "network.kill_switch")
    );
    let part = locked("[child]\nremote_ts = [\"10.0.0.0/8\"]\n");
    let warnings = remarks(&part.report.warnings).join("\n");
    assert!(
        warnings.contains("9: network.kill_switch: blocks everything outside"),
        "{warnings}"
    );
    let lan = read(&with("[network]\nkill_switch = true\nallow_lan = true\n")).unwrap();
    assert!(lan.profile.network.allow_lan && lan.report.not_used.is_empty());
}

#[test]
fn what_this_version_cannot_do_is_said() {
    let error = &errors(&with("pkcs11 = \"pkcs11:token=x\"\n"))[0];
    assert!(error.contains("6:1: auth.pkcs11: smart cards"), "{error}");
    let error = &errors(&with(
        "[ike]\nproposals = [\"aes256gcm16-prfsha384-x25519-ke1_kyber768\"]\n",
    ))[0];
    assert!(
        error.contains("7:44: ike.proposals: `ke1_kyber768` cannot be used: it is not supported"),
        "{error}"
    );
    let report = read(&with("[network]\nallow_lan = true\n")).unwrap().report;
    assert!(
        remarks(&report.not_used)[0].starts_with("7: network.allow_lan: not used: without `kill_switch`")
    );
    let error = &errors(&with(
        "[child]\nproposals = [\"aes256gcm16\"]\nrequire_pfs = true\n",
    ))[0];
    assert!(
        error.contains("8:1: child.require_pfs: needs a key exchange"),
        "{error}"
    );
}

#[test]
fn a_post_quantum_pre_shared_key() {
    // The profile of `with` ends in its section `auth`.
    let key = "q".repeat(43);
    let parsed = read(&with(&format!("ppk = \"{key}\"\nppk_id = \"me\"\n"))).unwrap();
    let expected = Ppk {
        id: b"me".to_vec(),
        required: false,
    };
    assert_eq!(parsed.profile.auth.ppk, Some(expected.clone()));
    assert_eq!(parsed.credentials.ppk, Some(Secret::from_slice(key.as_bytes())));
    let warnings = remarks(&parsed.report.warnings);
    assert_eq!(
        warnings.iter().filter(|line| line.contains("auth.ppk")).count(),
        1,
        "{warnings:?}"
    );
    assert!(!format!("{:?}", parsed.report).contains(&key));

    let in_file = |content: &[u8]| {
        let mut memory = Memory::default();
        memory.files.insert("key".into(), content.to_vec());
        let text = with("ppk_file = \"key\"\nppk_id = \"me\"\nppk_required = true\n");
        parse(&text, "test.toml", &mut memory, now())
    };
    for (content, secret) in [
        (
            &b"0123456789abcdef0123456789abcdef\n"[..],
            &b"0123456789abcdef0123456789abcdef"[..],
        ),
        (b"a line\r\n", b"a line"),
        (b"two\nlines\n", b"two\nlines\n"),
        (b"\x00\x01\x0a", b"\x00\x01\x0a"),
    ] {
        let parsed = in_file(content).unwrap();
        assert_eq!(parsed.credentials.ppk, Some(Secret::from_slice(secret)));
        assert_eq!(
            parsed.profile.auth.ppk,
            Some(Ppk {
                required: true,
                ..expected.clone()
            })
        );
    }
    let empty = in_file(b"\n").unwrap_err().to_string();
    assert!(empty.contains("auth.ppk_file: is empty"), "{empty}");

    for (key, bits) in [
        ("0123456789abcdef".repeat(3), Some("192 bits")),
        ("0123456789abcdef".repeat(4), None),
        ("Q".repeat(42), Some("252 bits")),
        ("!".repeat(31), Some("248 bits")),
        ("!".repeat(32), None),
    ] {
        let parsed = read(&with(&format!("ppk = \"{key}\"\nppk_id = \"me\"\n"))).unwrap();
        let weak = remarks(&parsed.report.warnings)
            .into_iter()
            .find(|line| line.contains("against a quantum computer"));
        match bits {
            Some(bits) => assert!(weak.is_some_and(|line| line.contains(bits)), "{key}"),
            None => assert_eq!(weak, None, "{key}"),
        }
    }

    for (text, error) in [
        ("ppk = \"x\"\n", "auth.ppk_id: is missing"),
        ("ppk_id = \"me\"\n", "auth.ppk_id: needs the post-quantum"),
        (
            "ppk_required = true\n",
            "auth.ppk_required: needs the post-quantum",
        ),
        ("ppk = \"\"\nppk_id = \"me\"\n", "auth.ppk: must not be empty"),
        (
            "ppk = \"x\"\nppk_file = \"key\"\nppk_id = \"me\"\n",
            "auth.ppk_file: cannot be combined",
        ),
        (
            "ppk_file = \"other\"\nppk_id = \"me\"\n",
            "auth.ppk_file: other: there is no such file",
        ),
    ] {
        let errors = errors(&with(text));
        assert!(
            errors.iter().any(|line| line.contains(error)),
            "{text}: {errors:?}"
        );
    }
}

#[test]
fn a_post_quantum_key_exchange_can_be_demanded() {
    let ike = |text: &str| read(&with(&format!("[ike]\n{text}"))).unwrap();
    let parsed = ike("");
    assert!(!parsed.profile.ike.require_pq);
    assert!(
        !parsed
            .profile
            .ike
            .proposals
            .iter()
            .all(IkeProposal::is_post_quantum)
    );
    let parsed = ike("require_pq = true\n");
    assert!(parsed.profile.ike.require_pq);
    assert_eq!(parsed.profile.ike.proposals, default_ike()[..1]);
    assert_eq!(parsed.report.warnings, []);
    let parsed = ike(
        "require_pq = true\nproposals = [\"aes256gcm16-prfsha384-x25519\", \"aes256gcm16-prfsha384-x25519-ke1_mlkem512\"]\n",
    );
    let [only] = &*parsed.profile.ike.proposals else {
        panic!("{:?}", parsed.profile.ike.proposals)
    };
    assert_eq!(only.to_string(), "aes256gcm16-prfsha384-x25519-ke1_mlkem512");
    assert!(
        remarks(&parsed.report.warnings)[0].starts_with("8: ike.proposals: those without a post-quantum")
    );
    let text = "[ike]\nproposals = [\"aes256gcm16-prfsha384-x25519-ke1_ecp384\"]\nrequire_pq = true\n";
    let error = &errors(&with(text))[0];
    assert!(error.contains("8:1: ike.require_pq: no proposal has"), "{error}");
}

fn auth(method: &str, addition: &str) -> String {
    SMALL.replace("eap-mschapv2", method) + addition
}

fn auth_of(method: &str, addition: &str) -> Auth {
    read(&auth(method, addition)).unwrap().profile.auth
}

#[test]
fn what_runs_in_a_tunnel_is_said_or_is_mschapv2() {
    for (method, inner, kind) in [
        ("eap-ttls", "", AuthKind::EapTtls(TtlsInner::MsChapV2)),
        ("eap-ttls", "mschapv2", AuthKind::EapTtls(TtlsInner::MsChapV2)),
        (
            "eap-ttls",
            "eap-mschapv2",
            AuthKind::EapTtls(TtlsInner::EapMsChapV2),
        ),
        ("eap-ttls", "pap", AuthKind::EapTtls(TtlsInner::Pap)),
        ("eap-ttls", "gtc", AuthKind::EapTtls(TtlsInner::Gtc)),
        ("eap-ttls", "md5", AuthKind::EapTtls(TtlsInner::Md5)),
        ("eap-peap", "", AuthKind::EapPeap(PeapInner::MsChapV2)),
        ("eap-peap", "mschapv2", AuthKind::EapPeap(PeapInner::MsChapV2)),
        ("eap-peap", "eap-mschapv2", AuthKind::EapPeap(PeapInner::MsChapV2)),
        ("eap-peap", "gtc", AuthKind::EapPeap(PeapInner::Gtc)),
    ] {
        let inner = match inner {
            "" => String::new(),
            inner => format!("inner = \"{inner}\"\n"),
        };
        assert_eq!(auth_of(method, &inner).method, kind);
    }
    assert_eq!(
        errors(&auth("eap-peap", "inner = \"pap\"\n")),
        [
            "office.toml:6:9: auth.inner: `pap` does not run inside PEAP; known are mschapv2, eap-mschapv2, gtc"
        ]
    );
    let parsed = read(&auth("eap-gtc", "inner = \"pap\"\n")).unwrap();
    assert_eq!(parsed.profile.auth.method, AuthKind::EapGtc);
    assert_eq!(
        remarks(&parsed.report.not_used),
        ["6: auth.inner: method eap-gtc does not use it"]
    );
}

#[test]
fn a_user_in_a_tunnel_is_anonymous_outside() {
    let of = |username: &str, addition: &str| {
        let text = auth("eap-ttls", addition).replace("alice", username);
        read(&text).unwrap().profile.auth
    };
    for (username, outside) in [
        ("alice@example.org", "anonymous@example.org"),
        ("alice@home@example.org", "anonymous@example.org"),
        ("alice", "anonymous"),
        (r"EXAMPLE\\alice", "anonymous"),
    ] {
        let auth = of(username, "");
        assert_eq!(auth.outer_identity().as_deref(), Some(outside), "{username}");
        assert_eq!(auth.user_identity().as_deref(), Some(outside), "{username}");
    }
    let auth = of("alice@example.org", "eap_identity = \"@example.org\"\n");
    assert_eq!(auth.outer_identity().as_deref(), Some("@example.org"));
    assert_eq!(auth.user_identity().as_deref(), Some("@example.org"));
    // Without a tunnel the name is said anyway.
    let auth = auth_of("eap-mschapv2", "");
    assert_eq!(auth.outer_identity().as_deref(), Some("alice"));
    let report = read(&auth_text_of_ttls()).unwrap().report;
    let defaulted = |key: &str| {
        report
            .defaulted
            .iter()
            .find(|s| s.key == key)
            .unwrap()
            .value
            .clone()
    };
    assert_eq!(defaulted("auth.eap_identity"), "anonymous");
    assert_eq!(defaulted("auth.identity"), "anonymous");
    assert_eq!(defaulted("auth.inner"), "mschapv2");
    assert_eq!(defaulted("auth.aaa_identity"), "the gateway's");
}

fn auth_text_of_ttls() -> String {
    auth("eap-ttls", "")
}

#[test]
fn secrets_are_missed_before_connecting_only_where_they_are_surely_needed() {
    for (method, addition, missing) in [
        ("eap-ttls", "", Some(MissingSecret::Password)),
        ("eap-ttls", "inner = \"pap\"\n", Some(MissingSecret::Password)),
        ("eap-ttls", "inner = \"md5\"\n", Some(MissingSecret::Password)),
        ("eap-ttls", "inner = \"gtc\"\n", None),
        ("eap-peap", "", Some(MissingSecret::Password)),
        ("eap-peap", "inner = \"gtc\"\n", None),
        ("eap-gtc", "", None),
        ("eap-peap", "password = \"x\"\n", None),
    ] {
        let parsed = read(&auth(method, addition)).unwrap();
        assert_eq!(parsed.missing_secret(), missing, "{method} {addition}");
    }
    let parsed = read(&auth("eap-gtc", "password = \"x\"\n")).unwrap();
    assert_eq!(parsed.credentials.password.unwrap().as_bytes(), b"x");
}

#[test]
fn eap_alone_is_for_methods_that_prove_the_gateway() {
    for method in ["eap-ttls", "eap-peap"] {
        assert!(auth_of(method, "eap_only = true\n").eap_only);
        assert!(!auth_of(method, "eap_only = false\n").eap_only);
        assert!(!auth_of(method, "").eap_only);
    }
    for method in ["eap-mschapv2", "eap-gtc"] {
        let error = &errors(&auth(method, "eap_only = true\n"))[0];
        assert!(
            error.contains("6:1: auth.eap_only: is only for eap-tls, eap-ttls and eap-peap"),
            "{error}"
        );
        assert!(!auth_of(method, "eap_only = false\n").eap_only);
    }
    let error = &errors(&auth("eap-ttls", "eap_only = true\naaa_identity = \"radius\"\n"))[0];
    assert!(
        error.contains("7:1: auth.aaa_identity: cannot be combined with eap_only"),
        "{error}"
    );
}

#[test]
fn two_rounds_are_a_certificate_and_then_eap() {
    // The key is missing, which shows that the certificate is wanted.
    for method in [
        "certificate+eap-mschapv2",
        "certificate+eap-tls",
        "certificate+eap-ttls",
        "certificate+eap-peap",
        "certificate+eap-gtc",
    ] {
        let error = errors(&auth(method, "")).join("\n");
        assert!(
            error.contains("auth.certificate: is missing: the certificate with its key"),
            "{error}"
        );
    }
    for second in ["psk", "certificate", "eap-md5", ""] {
        let error = &errors(&auth(&format!("certificate+{second}"), ""))[0];
        assert!(
            error.contains(&format!(
                "4:10: auth.method: `{second}` cannot be the second round"
            )),
            "{error}"
        );
    }
    let text = auth("certificate+eap-ttls", "eap_only = true\n");
    let error = errors(&text).join("\n");
    assert!(error.contains("auth.eap_only: is only for"), "{error}");
}

#[test]
fn excluded_networks_must_be_inside() {
    let child = |remote: &str, exclude: &str| {
        with(&format!(
            "[child]\nremote_ts = [{remote}]\nexclude = [{exclude}]\n"
        ))
    };
    assert!(read(&child("\"10.0.0.0/8\"", "")).is_ok());
    assert!(
        errors(&child("\"10.0.0.0/8\"", "\"192.168.0.0/16\""))[0].contains("8:12: child.exclude: `192.168")
    );
    assert!(errors(&child("\"10.0.0.0/8\"", "\"0.0.0.0/0\""))[0].contains("leaves nothing of `10.0.0.0/8`"));
    assert!(errors(&child("\"10.0.0.0/8\"", "\"10.0.0.0/8\""))[0].contains("leaves nothing that goes"));
    let parsed = read(&with("[child]\nexclude = \"192.168.0.0/16\"\n")).unwrap();
    assert_eq!(parsed.profile.child.exclude.len(), 1);
}

#[test]
fn narrowing_is_accepted_only_by_who_did_not_say_what_is_wanted() {
    let parsed = read(&with("[child]\nremote_ts = [\"10.0.0.0/8\"]\n")).unwrap();
    assert!(!parsed.profile.child.accept_narrowing);
}

#[test]
fn pre_shared_keys_are_kept_and_doubted() {
    let psk = |psk: &str| {
        format!("[gateway]\naddress = \"192.0.2.1\"\nca = \"ca.pem\"\n[auth]\nmethod = \"psk\"\n{psk}")
    };
    let parsed = read(&psk("psk = \"too short\"\n")).unwrap();
    assert_eq!(parsed.credentials.psk.as_ref().unwrap().as_bytes(), b"too short");
    assert!(parsed.missing_secret().is_none() && parsed.profile.gateway.anchors.certificates.is_empty());
    let warnings = remarks(&parsed.report.warnings).join("\n");
    assert!(
        warnings.contains("6: auth.psk: the pre-shared key is readable")
            && warnings.contains("20 characters")
    );
    assert_eq!(
        remarks(&parsed.report.not_used),
        ["3: gateway.ca: with method psk the gateway shows no certificate"]
    );
    let parsed = read(&psk("psk = \"twenty characters ok\"\n")).unwrap();
    assert_eq!(parsed.report.warnings.len(), 1);
    assert_eq!(read(&psk("")).unwrap().missing_secret(), Some(MissingSecret::Psk));
    assert!(errors(&psk("psk = \"\"\n"))[0].contains("6:7: auth.psk: must not be empty"));
}

#[test]
fn keys_of_other_methods_are_not_used() {
    let text = with("psk = \"hidden secret\"\ncertificate = \"absent.pem\"\naaa_ca = \"absent.pem\"\n");
    let report = read(&text).unwrap().report;
    assert_eq!(
        remarks(&report.not_used),
        [
            "7: auth.certificate: method eap-mschapv2 does not use it",
            "8: auth.aaa_ca: method eap-mschapv2 does not use it",
            "6: auth.psk: method eap-mschapv2 does not use it",
        ]
    );
    assert!(!format!("{report:?}").contains("hidden"));
}

const CERTIFICATE: &str = include_str!("testdata/certificate.pem");
const ENCRYPTED_KEY: &str = include_str!("testdata/encrypted-key.pem");
const PKCS12: &[u8] = include_bytes!("testdata/alice.p12");

/// A certificate and its private key, in PEM.
fn made(subject: &str, names: &[&str], ca: bool, not_after: i32) -> (String, String) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut parameters = rcgen::CertificateParams::new(names).unwrap();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters
        .distinguished_name
        .push(rcgen::DnType::CommonName, subject);
    parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(not_after, 2, 3);
    if ca {
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    }
    let key = rcgen::KeyPair::generate().unwrap();
    (parameters.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// A profile with a certificate, and files beside it.
fn with_files(
    auth: &str,
    files: &[(&str, &[u8])],
    passphrases: &[&'static str],
) -> (Result<Parsed, ProfileErrors>, Memory) {
    let text = format!("[gateway]\naddress = \"192.0.2.1\"\n[auth]\nmethod = \"eap-tls\"\n{auth}");
    let files = files
        .iter()
        .map(|(name, octets)| ((*name).to_owned(), octets.to_vec()))
        .collect();
    let mut memory = Memory {
        files,
        passphrases: passphrases.iter().copied().collect(),
        asked: Vec::new(),
    };
    (parse(&text, "office.toml", &mut memory, now()), memory)
}

const OURS: &str = "certificate = \"me.pem\"\nkey = \"me.key\"\n";

#[test]
fn our_certificate_is_the_one_of_the_key() {
    let (ours, key) = made("Alice", &["alice.example.org"], false, 2040);
    let (issuer, _) = made("Issuer", &[], true, 2040);
    let chain = issuer + &ours;
    let (parsed, memory) = with_files(
        OURS,
        &[("me.pem", chain.as_bytes()), ("me.key", key.as_bytes())],
        &[],
    );
    let Parsed {
        profile,
        credentials,
        report,
    } = parsed.unwrap();
    assert_eq!(credentials.chain.len(), 2);
    assert_eq!(credentials.chain[0].subject_text(), "CN=Alice");
    assert!(credentials.key.is_some() && memory.asked.is_empty());
    assert_eq!(profile.auth.identity, None);
    let said = |key: &str| {
        report
            .used
            .iter()
            .chain(&report.defaulted)
            .find(|s| s.key == key)
            .unwrap()
            .value
            .clone()
    };
    assert_eq!(
        said("auth.certificate"),
        "me.pem: CN=Alice, valid until 2040-02-03"
    );
    assert_eq!(said("auth.identity"), "alice.example.org (from the certificate)");
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
}

#[test]
fn certificates_that_do_not_fit_are_told() {
    let (ours, key) = made("Alice", &["alice.example.org"], false, 2021);
    let (_, other) = made("Bob", &[], false, 2040);
    let files = |key: &str| {
        [
            ("me.pem", ours.clone().into_bytes()),
            ("me.key", key.to_owned().into_bytes()),
        ]
    };
    let read = |auth: &str, key: &str| {
        let files = files(key);
        let files: Vec<(&str, &[u8])> = files
            .iter()
            .map(|(name, octets)| (*name, octets.as_slice()))
            .collect();
        with_files(auth, &files, &[]).0
    };
    let error = read(OURS, &other).unwrap_err().to_string();
    assert_eq!(
        error,
        "office.toml:6:1: auth.key: me.key is not the private key of the certificate CN=Alice"
    );
    let report = read(&format!("{OURS}identity = \"bob.example.org\"\n"), &key)
        .unwrap()
        .report;
    let warnings = remarks(&report.warnings);
    assert!(warnings[0].starts_with("7: auth.identity: the certificate does not carry bob.example.org"));
    assert_eq!(
        warnings[1],
        "5: auth.certificate: the certificate CN=Alice expired on 2021-02-03"
    );
    let error = read("certificate = \"me.pem\"\nkey = \"none.key\"\n", &key)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "office.toml:6:7: auth.key: none.key: there is no such file"
    );
    let error = read("certificate = \"me.key\"\nkey = \"me.key\"\n", &key)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "office.toml:5:15: auth.certificate: me.key: it is not a certificate (PEM or DER)"
    );
    let error = read("certificate = \"me.pem\"\n", &key).unwrap_err().to_string();
    assert_eq!(
        error,
        "office.toml:3:1: auth.key: is missing: the private key of the certificate"
    );
    assert!(
        read("", &key)
            .unwrap_err()
            .to_string()
            .contains("auth.certificate: is missing")
    );
    let error = read(&format!("{OURS}pkcs12 = \"x.p12\"\n"), &key)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("5:1: auth.certificate: cannot be combined with pkcs12"),
        "{error}"
    );
}

#[test]
fn passphrases_are_asked_for_until_one_fits() {
    let files: &[(&str, &[u8])] = &[
        ("me.pem", CERTIFICATE.as_bytes()),
        ("me.key", ENCRYPTED_KEY.as_bytes()),
    ];
    let (parsed, memory) = with_files(OURS, files, &["wrong", "also wrong", "correct horse"]);
    assert!(parsed.unwrap().credentials.key.is_some());
    assert_eq!(
        memory.asked,
        [1, 2, 3].map(|attempt| ("me.key".to_owned(), attempt))
    );
    let (parsed, _) = with_files(OURS, files, &["wrong"]);
    let error = parsed.unwrap_err().to_string();
    assert_eq!(
        error,
        "office.toml:6:7: auth.key: me.key: the passphrase is wrong"
    );
    let (parsed, _) = with_files(OURS, files, &[]);
    assert!(parsed.unwrap_err().to_string().contains("a passphrase is needed"));
    // Nobody types a passphrase for a profile that is wrong elsewhere.
    let (parsed, memory) = with_files(&format!("{OURS}zebra = 1\n"), files, &["correct horse"]);
    assert!(parsed.is_err() && memory.asked.is_empty());
    // A look at a profile leaves the key closed.
    let (parsed, _) = with_files(OURS, files, &["later"]);
    let parsed = parsed.unwrap();
    assert!(parsed.credentials.key.is_none() && parsed.credentials.chain.len() == 1);
    assert!(
        parsed
            .report
            .used
            .iter()
            .any(|s| s.key == "auth.key" && s.value.contains("encrypted"))
    );
}

#[test]
fn pkcs12_holds_key_and_certificate() {
    let auth = "pkcs12 = \"alice.p12\"\n";
    let (parsed, memory) = with_files(auth, &[("alice.p12", PKCS12)], &["correct horse"]);
    let parsed = parsed.unwrap();
    assert_eq!(parsed.credentials.chain[0].subject_text(), "O=Example, CN=Alice");
    assert!(parsed.credentials.key.is_some());
    assert_eq!(memory.asked, [("alice.p12".to_owned(), 1)]);
    let (parsed, _) = with_files(auth, &[("alice.p12", PKCS12)], &["wrong"]);
    assert!(
        parsed
            .unwrap_err()
            .to_string()
            .contains("5:10: auth.pkcs12: alice.p12: the passphrase is wrong")
    );
    let (parsed, _) = with_files(auth, &[("alice.p12", PKCS12)], &["later"]);
    assert!(parsed.unwrap().credentials.chain.is_empty());
}

#[test]
fn the_gateways_certificates_come_from_files_or_the_profile_itself() {
    let (root, _) = made("Root", &[], true, 2040);
    let (plain, _) = made("Plain", &[], false, 2040);
    let gateway = |more: &str| {
        let files = [
            ("root.pem".to_owned(), root.clone().into_bytes()),
            ("plain.pem".to_owned(), plain.clone().into_bytes()),
        ];
        let mut memory = Memory {
            files: files.into(),
            ..Memory::default()
        };
        parse(
            &SMALL.replace("[auth]", &format!("{more}[auth]")),
            "office.toml",
            &mut memory,
            now(),
        )
    };
    let parsed = gateway(&format!(
        "ca = [\"root.pem\", \"\"\"{root}\"\"\"]\ncertificate = \"plain.pem\"\n"
    ))
    .unwrap();
    let Gateway { anchors, pin, .. } = parsed.profile.gateway;
    assert!(!anchors.system && anchors.certificates.len() == 2 && pin.is_some());
    assert!(parsed.report.warnings.is_empty(), "{:?}", parsed.report.warnings);
    let ca = &parsed
        .report
        .used
        .iter()
        .find(|s| s.key == "gateway.ca")
        .unwrap()
        .value;
    assert_eq!(
        ca,
        "root.pem: CN=Root, valid until 2040-02-03; the PEM text of gateway.ca: CN=Root, valid until 2040-02-03"
    );
    let warnings = remarks(&gateway("ca = \"plain.pem\"\n").unwrap().report.warnings);
    assert_eq!(
        warnings,
        ["3: gateway.ca: CN=Plain is not a certification authority"]
    );
    let error = gateway(&format!("certificate = \"\"\"{root}{plain}\"\"\"\n"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("3:15: gateway.certificate: must be one certificate, but there are 2"),
        "{error}"
    );
    let error = gateway("ca = [\"root.pem\", \"none.pem\"]\n")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("3:19: gateway.ca: none.pem: there is no such file"),
        "{error}"
    );
}

/// As the service keeps profiles: all files are in the text, and none is asked for.
#[test]
fn a_files_content_may_be_in_the_profile_itself_and_is_not_shown() {
    let data = |octets: &[u8]| {
        format!(
            "data:;base64,{}",
            <base64ct::Base64 as base64ct::Encoding>::encode_string(octets)
        )
    };
    let (certificate, key) = made("Alice", &["alice.example.org"], false, 2040);
    let (certificate, key) = (data(certificate.as_bytes()), data(key.as_bytes()));
    let auth = format!("certificate = \"{certificate}\"\nkey = \"{key}\"\n");
    let (parsed, _) = with_files(&auth, &[], &[]);
    let parsed = parsed.unwrap();
    assert!(parsed.credentials.key.is_some());
    assert!(!format!("{:?}", parsed.report).contains(key.get(13..60).unwrap()));

    for passphrase in ["correct horse", "later"] {
        let (parsed, memory) = with_files(&format!("pkcs12 = \"{}\"\n", data(PKCS12)), &[], &[passphrase]);
        let report = format!("{:?}", parsed.unwrap().report);
        assert!(!report.contains(data(PKCS12).get(13..60).unwrap()), "{report}");
        assert_eq!(memory.asked, [("the content of auth.pkcs12".to_owned(), 1)]);
    }
    let (parsed, _) = with_files("certificate = \"data:;base64,AAA\"\nkey = \"k\"\n", &[], &[]);
    let error = parsed.unwrap_err().to_string();
    assert!(
        error.contains("auth.certificate: what follows `data:;base64,` is no base64"),
        "{error}"
    );
}
