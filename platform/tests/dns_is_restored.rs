//! Name resolution goes through the tunnel while it is up, and afterwards it is what it was, to the octet.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use common::{Bus, Files, full_plan, in_namespace, look, plan, run};
use futures_util::StreamExt as _;
use peregrine_core::plan::Plan;
use peregrine_platform::host::Host as _;
use peregrine_platform::linux::LinuxHost;

const ORIGINAL: &[u8] = b"# by hand\nnameserver 192.0.2.53\nsearch home.arpa\noptions edns0 \xff"; // no final newline

fn with_original() -> Files {
    let files = Files::new();
    fs::create_dir_all(files.path("etc")).unwrap();
    fs::write(files.resolv_conf(), ORIGINAL).unwrap();
    fs::set_permissions(files.resolv_conf(), fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(files.resolv_conf(), Some(12), Some(34)).unwrap();
    files
}

fn text(path: PathBuf) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
}

#[test]
fn the_file_has_the_same_octets_afterwards() {
    in_namespace(|| async {
        let files = with_original();
        let before = look(&files.resolv_conf());
        let host = files.host();
        let _tun = host.apply(full_plan()).await.unwrap();
        let up = text(files.resolv_conf());
        assert!(
            up.contains("\nnameserver 10.3.0.53\nsearch home.arpa\noptions edns0"),
            "{up}"
        );
        assert!(!up.contains("192.0.2.53"), "no name goes outside: {up}");
        let (_, mode, user, group) = look(&files.resolv_conf());
        assert_eq!((mode & 0o777, user, group), (0o640, 12, 34));

        // Other servers in a later plan do not make ours the original.
        let _same = host
            .apply(plan(&["10.3.0.1/32"], &["0.0.0.0/0"], &["10.3.0.54", "fd00::53"]))
            .await
            .unwrap();
        let changed = text(files.resolv_conf());
        assert!(
            changed.contains("\nnameserver 10.3.0.54\nnameserver fd00::53\n"),
            "{changed}"
        );
        assert!(!changed.contains("10.3.0.53"));

        host.apply(Plan::default()).await.unwrap();
        assert_eq!(look(&files.resolv_conf()), before);
        assert_eq!(
            fs::read_dir(files.path("etc")).unwrap().count(),
            1,
            "nothing else is left beside it"
        );
    });
}

#[test]
fn a_link_stays_a_link() {
    in_namespace(|| async {
        let files = Files::new();
        fs::create_dir_all(files.path("etc")).unwrap();
        fs::create_dir_all(files.path("managed")).unwrap();
        fs::write(files.path("managed/resolv.conf"), ORIGINAL).unwrap();
        symlink("../managed/resolv.conf", files.path("etc/middle")).unwrap();
        symlink("middle", files.resolv_conf()).unwrap();
        let before = look(&files.resolv_conf());
        let host = files.host();
        let _tun = host.apply(full_plan()).await.unwrap();
        assert_ne!(look(&files.resolv_conf()), before);
        assert_eq!(
            fs::read_link(files.resolv_conf()).unwrap(),
            PathBuf::from("middle")
        );
        host.apply(Plan::default()).await.unwrap();
        assert_eq!(look(&files.resolv_conf()), before);
        assert_eq!(
            fs::read_link(files.resolv_conf()).unwrap(),
            PathBuf::from("middle")
        );
    });
}

#[test]
fn a_file_that_was_not_there_is_gone_afterwards() {
    in_namespace(|| async {
        let files = Files::new();
        let host = files.host();
        let _tun = host.apply(full_plan()).await.unwrap();
        assert!(text(files.resolv_conf()).contains("nameserver 10.3.0.53\n"));
        host.apply(Plan::default()).await.unwrap();
        assert!(!files.resolv_conf().exists());
    });
}

#[test]
fn a_file_mounted_over_another_is_written_in_place() {
    in_namespace(|| async {
        let files = with_original();
        fs::write(files.path("mounted"), ORIGINAL).unwrap();
        run(&format!(
            "mount --bind {} {}",
            files.path("mounted").display(),
            files.resolv_conf().display()
        ));
        let host = files.host();
        let _tun = host.apply(full_plan()).await.unwrap();
        assert!(text(files.resolv_conf()).contains("nameserver 10.3.0.53\n"));
        host.apply(Plan::default()).await.unwrap();
        assert_eq!(fs::read(files.resolv_conf()).unwrap(), ORIGINAL);
        assert_eq!(fs::read(files.path("mounted")).unwrap(), ORIGINAL);
        run(&format!("umount {}", files.resolv_conf().display()));
    });
}

#[test]
fn what_others_wrote_meanwhile_stays() {
    in_namespace(|| async {
        let files = with_original();
        let host = files.host();
        let _tun = host.apply(full_plan()).await.unwrap();
        fs::write(files.resolv_conf(), "nameserver 192.0.2.54\n").unwrap(); // a new lease
        host.apply(Plan::default()).await.unwrap();
        assert_eq!(text(files.resolv_conf()), "nameserver 192.0.2.54\n");

        // Applied again over it, ours is put back in force, and theirs in the end.
        let _tun = host.apply(full_plan()).await.unwrap();
        fs::write(files.resolv_conf(), "nameserver 192.0.2.55\n").unwrap();
        host.apply(full_plan()).await.unwrap();
        assert!(text(files.resolv_conf()).contains("nameserver 10.3.0.53\n"));
        host.apply(Plan::default()).await.unwrap();
        assert_eq!(text(files.resolv_conf()), "nameserver 192.0.2.55\n");
    });
}

#[test]
fn two_instances_end_in_any_order() {
    in_namespace(|| async {
        for first_ends_first in [true, false] {
            let files = with_original();
            let before = look(&files.resolv_conf());
            let (one, two) = (files.host(), files.host());
            let _tun = one
                .apply(plan(&["10.3.0.1/32"], &["10.3.0.0/16"], &["10.3.0.53"]))
                .await
                .unwrap();
            let _tun = two
                .apply(plan(&["10.4.0.1/32"], &["10.4.0.0/16"], &["10.4.0.53"]))
                .await
                .unwrap();
            let (first, last) = if first_ends_first { (one, two) } else { (two, one) };
            first.apply(Plan::default()).await.unwrap();
            assert_ne!(look(&files.resolv_conf()), before);
            last.apply(Plan::default()).await.unwrap();
            assert_eq!(look(&files.resolv_conf()), before);
        }
    });
}

/// A `resolvconf` that does what Debian's does with one interface: it rewrites the file from what it was given.
fn fake_resolvconf(files: &Files, effective: bool) -> PathBuf {
    let program = files.path("resolvconf");
    let target = if effective {
        files.resolv_conf()
    } else {
        files.path("nowhere")
    };
    let script = format!(
        "#!/bin/sh\nprintf '%s %s;' \"$*\" \"$PATH\" >> {log}\ncase $1 in\n-a) {{ echo '# Generated by resolvconf'; cat; }} > {target} ;;\n-d) cp {base} {target} ;;\n*) echo 'usage' >&2; exit 1 ;;\nesac\n",
        log = files.path("log").display(),
        target = target.display(),
        base = files.path("base").display(),
    );
    fs::copy(files.resolv_conf(), files.path("base")).unwrap();
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[test]
fn resolvconf_is_asked_when_it_is_there() {
    in_namespace(|| async {
        let files = with_original();
        let mut config = files.config();
        config.dns.resolvconf = vec![files.path("missing"), fake_resolvconf(&files, true)];
        let host = LinuxHost::new(config).unwrap();
        let mut plan = full_plan();
        if let Some(config) = &mut plan.tunnel {
            config.dns.domains = vec!["corp.example".to_owned()];
        }
        let _tun = host.apply(plan).await.unwrap();
        assert_eq!(
            text(files.resolv_conf()),
            "# Generated by resolvconf\nnameserver 10.3.0.53\nsearch corp.example\n"
        );
        host.apply(Plan::default()).await.unwrap();
        assert_eq!(fs::read(files.resolv_conf()).unwrap(), ORIGINAL);
        let log = text(files.path("log"));
        let calls: Vec<_> = log
            .split(';')
            .map(|call| call.split(' ').next().unwrap())
            .collect();
        assert_eq!(calls, ["--version", "--version", "-a", "--version", "-d", ""]);
        assert!(log.contains("peregrine0 /usr/sbin:/usr/bin:/sbin:/bin;"), "{log}");
    });
}

#[test]
fn a_resolvconf_without_effect_gives_way_to_the_file() {
    in_namespace(|| async {
        let files = with_original();
        let before = look(&files.resolv_conf());
        let mut config = files.config();
        config.dns.resolvconf = vec![fake_resolvconf(&files, false)];
        let host = LinuxHost::new(config).unwrap();
        let _tun = host.apply(full_plan()).await.unwrap();
        assert!(text(files.resolv_conf()).starts_with("# Made by Peregrine"));
        assert!(
            text(files.path("log")).contains("-d "),
            "what had no effect is withdrawn"
        );
        host.apply(Plan::default()).await.unwrap();
        assert_eq!(look(&files.resolv_conf()), before);
    });
}

/// Something that answers as systemd-resolved on a bus of its own, and writes down what it was told.
struct Resolved {
    bus: Bus,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Resolved {
    fn new(files: &Files) -> Self {
        Self {
            bus: Bus::new(files),
            calls: Arc::default(),
        }
    }

    async fn serve(&self, refused: &'static str) -> zbus::Connection {
        let connection = self.bus.serve("org.freedesktop.resolve1").await;
        let (calls, answering) = (Arc::clone(&self.calls), connection.clone());
        tokio::spawn(async move {
            let mut messages = zbus::MessageStream::from(&answering);
            while let Some(Ok(message)) = messages.next().await {
                let header = message.header();
                let Some(method) = header.member().map(ToString::to_string) else {
                    continue;
                };
                if header.message_type() != zbus::message::Type::MethodCall {
                    continue;
                }
                if method == refused {
                    let name = "org.freedesktop.DBus.Error.AccessDenied";
                    answering.reply_error(&header, name, &"no").await.unwrap();
                    continue;
                }
                let body = message.body();
                let told = match method.as_str() {
                    "SetLinkDNS" => {
                        format!("{:?}", body.deserialize::<(i32, Vec<(i32, Vec<u8>)>)>().unwrap())
                    }
                    "SetLinkDomains" => {
                        format!("{:?}", body.deserialize::<(i32, Vec<(String, bool)>)>().unwrap())
                    }
                    "SetLinkDefaultRoute" => format!("{:?}", body.deserialize::<(i32, bool)>().unwrap()),
                    "SetLinkLLMNR" | "SetLinkMulticastDNS" => {
                        format!("{:?}", body.deserialize::<(i32, String)>().unwrap())
                    }
                    "RevertLink" => format!("({})", body.deserialize::<i32>().unwrap()),
                    _ => String::new(),
                };
                calls.lock().unwrap().push(format!("{method}{told}"));
                answering.reply(&header, &()).await.unwrap();
            }
        });
        connection
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

const STUB: &str = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n";

#[test]
fn systemd_resolved_is_told_over_the_bus() {
    in_namespace(|| async {
        let files = Files::new();
        let bus = Resolved::new(&files);
        let _resolved = bus.serve("").await;
        let mut config = files.config();
        config.dns.bus = Some(bus.bus.address.clone());
        fs::write(files.resolv_conf(), STUB).unwrap();
        let host = LinuxHost::new(config).unwrap();
        let _tun = host.apply(full_plan()).await.unwrap();
        let index = nix::net::if_::if_nametoindex("peregrine0").unwrap();
        assert_eq!(
            bus.calls(),
            [
                format!("SetLinkDNS({index}, [(2, [10, 3, 0, 53])])"),
                format!("SetLinkDomains({index}, [(\".\", true)])"),
                format!("SetLinkDefaultRoute({index}, true)"),
                format!("SetLinkLLMNR({index}, \"no\")"),
                format!("SetLinkMulticastDNS({index}, \"no\")"),
                "FlushCaches".to_owned(),
            ]
        );
        assert_eq!(text(files.resolv_conf()), STUB);

        // Only a part: its domains are asked for there, all others stay where they were.
        let mut part = plan(&["10.3.0.1/32"], &["10.0.0.0/8"], &["10.3.0.53", "fd00::53"]);
        if let Some(config) = &mut part.tunnel {
            config.dns.domains = vec!["corp.example".to_owned()];
        }
        host.apply(part).await.unwrap();
        let v6 = "253, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 83";
        assert_eq!(
            bus.calls()[..3],
            [
                format!("SetLinkDNS({index}, [(2, [10, 3, 0, 53]), (10, [{v6}])])"),
                format!("SetLinkDomains({index}, [(\"corp.example\", false)])"),
                format!("SetLinkDefaultRoute({index}, false)"),
            ]
        );
        host.apply(Plan::default()).await.unwrap();
        assert_eq!(
            bus.calls(),
            [format!("RevertLink({index})"), "FlushCaches".to_owned()]
        );
        assert_eq!(text(files.resolv_conf()), STUB);
    });
}

#[test]
fn a_stub_without_systemd_resolved_gives_way_to_the_file() {
    in_namespace(|| async {
        let files = Files::new();
        let bus = Resolved::new(&files);
        let mut config = files.config();
        config.dns.bus = Some(bus.bus.address.clone());
        fs::write(files.resolv_conf(), STUB).unwrap();
        let host = LinuxHost::new(config).unwrap();
        let _tun = host.apply(full_plan()).await.unwrap();
        assert!(text(files.resolv_conf()).contains("nameserver 10.3.0.53\n"));
        host.apply(Plan::default()).await.unwrap();
        assert_eq!(text(files.resolv_conf()), STUB);
    });
}

#[test]
fn systemd_resolved_that_refuses_is_a_failure_for_want_of_a_privilege() {
    in_namespace(|| async {
        let files = Files::new();
        let bus = Resolved::new(&files);
        let _resolved = bus.serve("SetLinkDNS").await;
        let mut config = files.config();
        config.dns.bus = Some(bus.bus.address.clone());
        fs::write(files.resolv_conf(), STUB).unwrap();
        let host = LinuxHost::new(config).unwrap();
        let before = common::snapshot();
        let fault = host.apply(full_plan()).await.unwrap_err();
        assert!(
            fault.permission && fault.action.contains("systemd-resolved"),
            "{fault}"
        );
        assert_eq!(common::snapshot(), before);
        assert_eq!(text(files.resolv_conf()), STUB);
    });
}
