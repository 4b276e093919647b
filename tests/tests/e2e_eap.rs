//! EAP methods with passwords and codes, EAP alone, and two rounds, against real gateways and EAP servers that we did
//! not write: strongSwan's own, and FreeRADIUS and hostapd behind it.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peregrine_tests::lab::{self, Ended, Lab, Profile, certs, names};
use serde_json::Value;

fn main() -> ExitCode {
    lab::run(
        "pgeap",
        &[
            ("ttls_with_every_method_inside", ttls_with_every_method_inside),
            ("ttls_with_tls_1_3", ttls_with_tls_1_3),
            (
                "ttls_with_strongswans_own_server",
                ttls_with_strongswans_own_server,
            ),
            ("ttls_with_hostapd", ttls_with_hostapd),
            ("peap_with_mschapv2_and_gtc", peap_with_mschapv2_and_gtc),
            ("peap_bound_to_its_tunnel", peap_bound_to_its_tunnel),
            ("gtc_with_a_password", gtc_with_a_password),
            ("nobody_sees_the_name_outside", nobody_sees_the_name_outside),
            ("one_time_code_from_a_script", one_time_code_from_a_script),
            ("one_time_code_at_a_terminal", one_time_code_at_a_terminal),
            (
                "one_time_code_after_a_passphrase",
                one_time_code_after_a_passphrase,
            ),
            ("question_that_nobody_answers", question_that_nobody_answers),
            ("question_ended_with_ctrl_c", question_ended_with_ctrl_c),
            ("wrong_code", wrong_code),
            ("wrong_password_in_every_method", wrong_password_in_every_method),
            ("eap_server_of_another_name", eap_server_of_another_name),
            ("eap_server_of_another_authority", eap_server_of_another_authority),
            (
                "server_without_the_method_inside",
                server_without_the_method_inside,
            ),
            ("eap_alone", eap_alone),
            (
                "eap_alone_with_a_server_that_is_not_the_gateway",
                eap_alone_with_a_server_that_is_not_the_gateway,
            ),
            ("certificate_and_then_eap", certificate_and_then_eap),
            (
                "certificate_and_a_wrong_password",
                certificate_and_a_wrong_password,
            ),
            ("second_round_that_nobody_wants", second_round_that_nobody_wants),
        ],
    )
}

/// Connects, uses the tunnel, and leaves.
fn works(lab: &Lab, profile: &Profile) -> Value {
    let mut tunnel = lab.connect(profile);
    let status = tunnel.connected();
    assert!(
        lab.pings(names::SERVER_V4),
        "the server behind the gateway does not answer over IPv4"
    );
    assert!(
        lab.pings(names::SERVER_V6),
        "the server behind the gateway does not answer over IPv6"
    );
    let ended = tunnel.stop("TERM");
    assert_eq!(ended.code, Some(0), "after SIGTERM: {ended:?}");
    status
}

/// Tries to connect, which must fail, and compares the machine before and after.
fn fails(lab: &Lab, profile: &Profile) -> Ended {
    let before = lab.snapshot();
    let ended = lab.connect(profile).end(Duration::from_secs(60));
    assert_eq!(lab.snapshot(), before, "a failure changed the machine");
    ended
}

const TTLS_INNER: [&str; 5] = ["mschapv2", "eap-mschapv2", "pap", "gtc", "md5"];
const PEAP_INNER: [&str; 2] = ["mschapv2", "gtc"];

fn ttls(inner: &str) -> Profile {
    Profile::radius("eap-ttls").auth("inner", inner)
}

fn peap(inner: &str) -> Profile {
    Profile::radius("eap-peap").auth("inner", inner)
}

fn with_certificate(profile: Profile) -> Profile {
    profile.credential("alice")
}

fn ttls_with_every_method_inside(lab: &Lab) {
    for inner in TTLS_INNER {
        works(lab, &ttls(inner));
    }
}

fn ttls_with_tls_1_3(lab: &Lab) {
    for inner in TTLS_INNER {
        works(lab, &ttls(inner).auth("username", "bob@tls13.lab"));
    }
}

fn ttls_with_strongswans_own_server(lab: &Lab) {
    let own = Profile::new("eap-ttls.vpn.lab")
        .method("eap-ttls")
        .auth("inner", "eap-mschapv2")
        .auth("username", names::USER)
        .auth("password", names::PASSWORD);
    works(lab, &own);
}

fn ttls_with_hostapd(lab: &Lab) {
    for inner in TTLS_INNER {
        works(lab, &ttls(inner).auth("username", names::HOSTAPD_USER));
    }
}

fn peap_with_mschapv2_and_gtc(lab: &Lab) {
    for inner in PEAP_INNER {
        works(lab, &peap(inner));
    }
}

/// hostapd makes the key of both, so that a tunnel shows that we do, too.
fn peap_bound_to_its_tunnel(lab: &Lab) {
    for inner in PEAP_INNER {
        works(lab, &peap(inner).auth("username", names::HOSTAPD_USER));
    }
    let log = lab.log("hostapd");
    assert_eq!(
        log.matches("Valid cryptobinding TLV received").count(),
        PEAP_INNER.len(),
        "{log}"
    );
}

fn gtc_with_a_password(lab: &Lab) {
    works(lab, &Profile::radius("eap-gtc"));
}

fn nobody_sees_the_name_outside(lab: &Lab) {
    let profile = ttls("mschapv2").auth("username", names::HOSTAPD_USER);
    works(lab, &profile);
    let log = lab.log("charon-gw");
    assert!(
        log.contains("received EAP identity 'anonymous@hostapd.lab'"),
        "{log}"
    );
    assert!(!log.contains(names::HOSTAPD_USER), "the gateway learned the name");
}

fn codes() -> Profile {
    Profile::new("eap-radius.vpn.lab")
        .method("eap-gtc")
        .auth("username", names::CODE_USER)
}

/// The code that an authenticator app shows now, for at least five seconds more (RFC 6238).
fn code(lab: &Lab) -> String {
    let program = "
import base64, hmac, struct, sys, time
key = base64.b32decode(sys.argv[1])
while time.time() % 30 > 25:
    time.sleep(1)
digest = hmac.new(key, struct.pack('>Q', int(time.time()) // 30), 'sha1').digest()
at = digest[-1] & 15
print('%06d' % ((struct.unpack('>I', digest[at:at + 4])[0] & 0x7fffffff) % 1000000))
";
    lab.must("cli", &["python3", "-c", program, names::CODE_SECRET])
        .trim()
        .to_owned()
}

/// A pipe with a name, from which the client can read while we have it open.
fn pipe(lab: &Lab, name: &str) -> (String, std::fs::File) {
    let path = lab.dir().join(name);
    let shown = path.display().to_string();
    lab.must("cli", &["mkfifo", "-m", "600", &shown]);
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap_or_else(|error| panic!("{shown}: {error}"));
    (shown, file)
}

/// A script waits for the question and then writes the answer.
fn one_time_code_from_a_script(lab: &Lab) {
    let (path, mut pipe) = pipe(lab, "answers");
    let mut tunnel = lab.connect_with(&codes(), &["--password-file", &path]);
    let prompt = tunnel.event("asked", |event| event["event"] == "prompt");
    assert_eq!(prompt["message"], "Code of your authenticator app:");
    assert_eq!(prompt["profile"], "eap-radius");
    assert!(prompt["id"].is_number() && prompt["kind"].is_string(), "{prompt}");
    writeln!(pipe, "{}", code(lab)).expect("the client reads");
    tunnel.connected();
    assert!(lab.pings(names::SERVER_V4));
    let ended = tunnel.stop("TERM");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    std::fs::remove_file(path).expect("the pipe is there");
}

/// `peregrine` at a terminal of its own, by util-linux's `script`.
struct Terminal {
    child: Child,
    keyboard: ChildStdin,
    screen: Arc<Mutex<String>>,
}

impl Terminal {
    fn open(lab: &Lab, profile: &Profile) -> Self {
        let program = lab::program("peregrine").display().to_string();
        // The shell gets the Ctrl-C too; not every shell lives on after its program ended well.
        let line = format!(
            "trap : INT; '{program}' connect '{}'; echo \"status $?\"; stty -a",
            lab.profile(profile).display()
        );
        let mut command: Command = lab.command("cli", "script");
        let mut child = command
            .args(["-q", "-e", "-c", &line, "/dev/null"])
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script can be run");
        let screen = Arc::new(Mutex::new(String::new()));
        let shared = Arc::clone(&screen);
        let mut stdout = child.stdout.take().expect("a pipe");
        std::thread::spawn(move || {
            let mut octets = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut octets) {
                let text = String::from_utf8_lossy(&octets[..count]).into_owned();
                shared.lock().expect("nobody panics with it").push_str(&text);
            }
        });
        let keyboard = child.stdin.take().expect("a pipe");
        Self {
            child,
            keyboard,
            screen,
        }
    }

    fn shown(&self) -> String {
        self.screen.lock().expect("nobody panics with it").clone()
    }

    fn shows(&self, text: &str) {
        lab::eventually(&format!("'{text}' on the screen"), || self.shown().contains(text));
    }

    fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("script reads");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn one_time_code_at_a_terminal(lab: &Lab) {
    let mut terminal = Terminal::open(lab, &codes());
    terminal.shows("The gateway of eap-radius asks: “Code of your authenticator app:”");
    terminal.shows("Your answer (it is not shown): ");
    let code = code(lab);
    terminal.types(&format!("{code}\n"));
    terminal.shows("Connected to eap-radius.vpn.lab");
    assert!(lab.pings(names::SERVER_V4));
    terminal.types("\x03");
    terminal.shows("status 0");
    terminal.shows(" echo ");
    assert!(!terminal.shown().contains(&code), "the code is on the screen");
}

/// Each line answers one question: the first opens the key, the second is the code.
fn one_time_code_after_a_passphrase(lab: &Lab) {
    let answers = format!("{}\n{}\n", certs::PASSPHRASE, code(lab));
    let file = lab.file("answers", &answers).display().to_string();
    let profile = with_certificate(Profile::new("two-rounds-radius.vpn.lab"))
        .method("certificate+eap-gtc")
        .auth("key", "alice-encrypted.key")
        .auth("username", names::CODE_USER);
    let mut tunnel = lab.connect_with(&profile, &["--password-file", &file]);
    tunnel.connected();
    assert_eq!(tunnel.stop("TERM").code, Some(0));
}

fn question_that_nobody_answers(lab: &Lab) {
    let ended = fails(lab, &codes());
    ended.must_be(6, "unanswered");
    assert!(ended.events.iter().any(|event| event["event"] == "prompt"));
    // Nor is there a line for it.
    let file = lab.file("answers", "").display().to_string();
    let ended = lab
        .connect_with(&codes(), &["--password-file", &file])
        .end(Duration::from_secs(30));
    ended.must_be(6, "unanswered");
}

fn question_ended_with_ctrl_c(lab: &Lab) {
    let before = lab.snapshot();
    let mut terminal = Terminal::open(lab, &codes());
    terminal.shows("Your answer (it is not shown): ");
    terminal.types("12");
    terminal.types("\x03");
    terminal.shows("status 1");
    terminal.shows(" echo ");
    assert!(!terminal.shown().contains("-echo "), "{}", terminal.shown());
    assert!(terminal.shown().contains("cancelled"), "{}", terminal.shown());
    drop(terminal);
    assert_eq!(lab.snapshot(), before);
}

fn wrong_code(lab: &Lab) {
    let file = lab.file("answers", "000000\n").display().to_string();
    let ended = lab
        .connect_with(&codes(), &["--password-file", &file])
        .end(Duration::from_secs(30));
    ended.must_be(6, "authentication_failed");
}

fn wrong_password_in_every_method(lab: &Lab) {
    for user in [names::USER, names::HOSTAPD_USER, "bob@tls13.lab"] {
        let inner = TTLS_INNER.map(ttls).into_iter();
        let methods = inner.chain(PEAP_INNER.map(peap));
        for profile in methods {
            let profile = profile
                .auth("username", user)
                .auth("password", "not the password");
            fails(lab, &profile).must_be(6, "authentication_failed");
        }
    }
    let profile = Profile::radius("eap-gtc").auth("password", "not the password");
    fails(lab, &profile).must_be(6, "authentication_failed");
}

fn eap_server_of_another_name(lab: &Lab) {
    for profile in [ttls("pap"), peap("mschapv2")] {
        let ended = fails(lab, &profile.clone().auth("aaa_identity", "another.lab"));
        ended.must_be(6, "eap_server_certificate_rejected");
        ended.must_say("radius.lab");
        // Without a name of its own it is the gateway's that is demanded.
        let ended = fails(lab, &profile.without_auth("aaa_identity"));
        ended.must_be(6, "eap_server_certificate_rejected");
    }
}

fn eap_server_of_another_authority(lab: &Lab) {
    for profile in [ttls("pap"), peap("mschapv2")] {
        let ended = fails(lab, &profile.clone().auth_raw("aaa_ca", r#"["other-ca.pem"]"#));
        ended.must_be(6, "eap_server_certificate_rejected");
        let ended = fails(lab, &profile.without_auth("aaa_ca"));
        ended.must_be(6, "eap_server_certificate_rejected");
    }
    let log = lab.log("radius");
    assert!(!log.contains("not the password"), "no password was sent");
}

/// strongSwan insists on EAP-MSCHAPv2 in its tunnel.
fn server_without_the_method_inside(lab: &Lab) {
    let gtc = Profile::new("eap-ttls.vpn.lab")
        .method("eap-ttls")
        .auth("inner", "gtc")
        .auth("username", names::USER)
        .auth("password", names::PASSWORD);
    let ended = fails(lab, &gtc);
    assert_eq!(ended.code, Some(6), "{ended:?}");
    assert!(
        ["eap_method_mismatch", "authentication_failed"].contains(&ended.failure_code()),
        "{ended:?}"
    );
}

fn eap_alone(lab: &Lab) {
    let alone =
        |identity: &str, method: &str| Profile::new(identity).method(method).auth_raw("eap_only", "true");
    works(lab, &with_certificate(alone("eap-tls-only.vpn.lab", "eap-tls")));
    let ttls = alone("eap-ttls-only.vpn.lab", "eap-ttls")
        .auth("inner", "eap-mschapv2")
        .auth("username", names::USER)
        .auth("password", names::PASSWORD);
    works(lab, &ttls);
    // Who did not say so is not let in without the gateway's certificate.
    let certificate = with_certificate(Profile::new("eap-tls-only.vpn.lab").method("eap-tls"));
    assert_eq!(fails(lab, &certificate).code, Some(6));
    // The gateway may show its certificate all the same.
    works(lab, &Profile::eap_tls().auth_raw("eap_only", "true"));
}

/// The RADIUS server has its own name: any gateway that it trusts could stand there.
fn eap_alone_with_a_server_that_is_not_the_gateway(lab: &Lab) {
    for method in ["eap-ttls", "eap-peap"] {
        let profile = Profile::radius(method)
            .identity("eap-radius-only.vpn.lab")
            .auth_raw("eap_only", "true")
            .without_auth("aaa_identity");
        let ended = fails(lab, &profile);
        ended.must_be(6, "eap_server_certificate_rejected");
        ended.must_say("radius.lab");
    }
}

fn certificate_and_then_eap(lab: &Lab) {
    let mschapv2 = Profile::new("two-rounds.vpn.lab")
        .method("certificate+eap-mschapv2")
        .auth("username", names::USER)
        .auth("password", names::PASSWORD);
    works(lab, &with_certificate(mschapv2));
    for method in [
        "certificate+eap-ttls",
        "certificate+eap-peap",
        "certificate+eap-gtc",
    ] {
        let profile = Profile::radius(method).identity("two-rounds-radius.vpn.lab");
        works(lab, &with_certificate(profile));
    }
}

fn certificate_and_a_wrong_password(lab: &Lab) {
    let profile = Profile::new("two-rounds.vpn.lab")
        .method("certificate+eap-mschapv2")
        .auth("username", names::USER)
        .auth("password", "not the password");
    fails(lab, &with_certificate(profile.clone())).must_be(6, "authentication_failed");
    // The password alone is not enough, nor is the certificate.
    let password = profile.method("eap-mschapv2").auth("password", names::PASSWORD);
    fails(lab, &password).must_be(6, "authentication_failed");
    let certificate = Profile::certificate("two-rounds.vpn.lab", "alice");
    fails(lab, &certificate).must_be(6, "authentication_failed");
}

fn second_round_that_nobody_wants(lab: &Lab) {
    let profile = Profile::new("cert.vpn.lab")
        .method("certificate+eap-mschapv2")
        .auth("username", names::USER)
        .auth("password", names::PASSWORD);
    fails(lab, &with_certificate(profile)).must_be(6, "authentication_failed");
}
