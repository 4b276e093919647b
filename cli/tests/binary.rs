//! The program itself: arguments, exit status, and what it says about profiles.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

fn peregrine(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peregrine"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .env_remove("RUST_LOG");
    command.output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn profile(text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("office.toml");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

fn check(path: &Path, more: &[&str]) -> Output {
    peregrine(&[&["check", path.to_str().unwrap()], more].concat())
}

const PSK: &str = "\
name = \"Office\"
[gateway]
address = \"vpn.example.org\"
[auth]
method = \"psk\"
identity = \"alice@example.org\"
psk = \"very secret indeed\"
";

#[test]
fn help_and_version_end_well_and_name_the_exit_status() {
    let help = peregrine(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    for word in ["connect", "check", "completions", "6  authentication failed"] {
        assert!(out(&help).contains(word), "{word}\n{}", out(&help));
    }
    assert_eq!(peregrine(&["--version"]).status.code(), Some(0));
    assert!(out(&peregrine(&["connect", "--help"])).contains("setcap cap_net_admin+ep"));
}

#[test]
fn wrong_usage_is_exit_status_2() {
    for arguments in [
        &[][..],
        &["conect"],
        &["connect"],
        &["connect", "x.toml", "--password", "secret"],
        &["connect", "x.toml", "--timeout", "soon"],
        &["man", "nothing"],
    ] {
        assert_eq!(peregrine(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_good_profile_is_explained() {
    let (_folder, path) = profile(PSK);
    let output = check(&path, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let text = out(&output);
    assert!(text.starts_with("Office: "), "{text}");
    for part in [
        "gateway.address",
        "auth.psk                 (hidden)",
        "network.kill_switch",
        "line 7, auth.psk: shorter than 20 characters",
        "aes256gcm16-aes128gcm16-chacha20poly1305",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(!text.contains("secret indeed"));
}

#[test]
fn a_good_profile_is_explained_to_programs() {
    let (_folder, path) = profile(PSK);
    let output = check(&path, &["--json"]);
    assert_eq!(output.status.code(), Some(0));
    let text = out(&output);
    assert!(
        text.starts_with("{\"event\":\"check\"") && text.ends_with("}\n"),
        "{text}"
    );
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["ok"], true);
    assert_eq!(json["name"], "Office");
    assert_eq!(json["used"][1]["key"], "gateway.address");
    assert_eq!(json["used"][1]["line"], 3);
    assert_eq!(json["warnings"][0]["key"], "auth.psk");
    assert!(!text.contains("secret indeed"));
}

#[test]
fn mistakes_are_told_with_their_place_and_exit_status_2() {
    let (_folder, path) = profile(
        &PSK.replace("address", "adress")
            .replace("psk\"\n", "psk\"\nmtu = 9\n"),
    );
    for arguments in [&["check"][..], &["connect", "--json"]] {
        let output = peregrine(&[arguments, &[path.to_str().unwrap()]].concat());
        assert_eq!(output.status.code(), Some(2));
        let text = err(&output);
        assert!(
            text.contains("office.toml:3:1: gateway.adress: unknown key; did you mean `address`?"),
            "{text}"
        );
        assert!(
            text.contains("office.toml:6:1: auth.mtu: unknown key; `mtu` belongs in [network]"),
            "{text}"
        );
        assert!(
            text.contains("the profile has 3 mistakes") && out(&output).is_empty(),
            "{text}"
        );
    }
    let json: serde_json::Value = serde_json::from_str(&out(&check(&path, &["--json"]))).unwrap();
    assert_eq!(
        (&json["ok"], &json["errors"][1]["line"]),
        (&false.into(), &3.into()),
        "{json}"
    );
}

#[test]
fn files_that_are_no_profile_are_refused() {
    let output = peregrine(&["check", "/nowhere/none.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        err(&output),
        "peregrine: /nowhere/none.toml: there is no such file\n"
    );
    let (_folder, path) = profile("<?xml version=\"1.0\"?>");
    assert!(err(&check(&path, &[])).contains("Apple configuration profile"));
    let (folder, path) = profile("");
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(err(&check(&path, &[])).contains("not UTF-8"));
    assert!(err(&check(folder.path(), &[])).contains("it is a folder"));
}

/// A key that is encrypted with the passphrase `correct horse`, and its certificate.
fn encrypted_key() -> (TempDir, PathBuf) {
    let (folder, path) = profile(
        "[gateway]\naddress = \"192.0.2.1\"\nca = \"cert.pem\"\n[auth]\nmethod = \"certificate\"\n\
         certificate = \"cert.pem\"\nkey = \"key.pem\"\n",
    );
    std::fs::write(
        folder.path().join("cert.pem"),
        include_str!("../../core/src/profile/testdata/certificate.pem"),
    )
    .unwrap();
    std::fs::write(
        folder.path().join("key.pem"),
        include_str!("../../core/src/profile/testdata/encrypted-key.pem"),
    )
    .unwrap();
    (folder, path)
}

#[test]
fn encrypted_keys_stay_closed_in_check_unless_a_passphrase_is_given() {
    let (folder, path) = encrypted_key();
    let output = check(&path, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert!(out(&output).contains("key.pem (encrypted;"), "{}", out(&output));

    let file = folder.path().join("passphrase");
    std::fs::write(&file, "correct horse\n").unwrap();
    let output = check(&path, &["--password-file", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert!(
        out(&output).contains("  alice@example.org (from the certificate)"),
        "{}",
        out(&output)
    );

    std::fs::write(&file, "wrong horse\n").unwrap();
    for arguments in [&["check"][..], &["connect"]] {
        let more = [path.to_str().unwrap(), "--password-file", file.to_str().unwrap()];
        let output = peregrine(&[arguments, &more].concat());
        assert_eq!(output.status.code(), Some(2));
        assert!(
            err(&output).contains("office.toml:7:7: auth.key: key.pem: the passphrase is wrong"),
            "{}",
            err(&output)
        );
        assert!(!err(&output).contains("horse"));
    }
}

#[test]
fn a_passphrase_is_read_from_a_descriptor() {
    let (_folder, path) = encrypted_key();
    let mut command = Command::new(env!("CARGO_BIN_EXE_peregrine"));
    command.args(["check", path.to_str().unwrap(), "--password-fd", "0"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"correct horse\r\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert!(out(&output).contains("alice@example.org"), "{}", out(&output));
}

#[test]
fn without_a_terminal_nothing_is_asked() {
    let (_folder, path) = encrypted_key();
    let output = peregrine(&["connect", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        err(&output).contains("auth.key: key.pem: it is encrypted: a passphrase is needed"),
        "{}",
        err(&output)
    );
    let output = peregrine(&[
        "connect",
        path.to_str().unwrap(),
        "--password-file",
        "/nowhere/secret",
    ]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("/nowhere/secret: there is no such file"));
}

#[test]
fn completions_and_manual_pages_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        let output = peregrine(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(out(&output).contains("password-file"), "{shell}");
    }
    let page = out(&peregrine(&["man"]));
    assert!(
        page.contains(".TH peregrine 1") && page.contains("connect"),
        "{page}"
    );
    assert!(out(&peregrine(&["man", "connect"])).contains("timeout"));
}
