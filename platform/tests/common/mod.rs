//! A machine of its own for every test: namespaces that the test makes itself, so that nothing of the real machine is
//! touched.

#![allow(dead_code, reason = "every test file uses its own part of this")]

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};
use peregrine_core::plan::{Dns, Lock, Plan, TunnelConfig};
use peregrine_platform::linux::{Config, DnsSystem, LinuxHost, Offloads, StateDirectories};

/// A thread with a network and a mount namespace of its own, which live as long as it does.
pub(crate) struct Namespace {
    jobs: mpsc::Sender<Box<dyn FnOnce() + Send>>,
    thread: i32,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes network namespaces and devices, so it must run as root"
        );
        let (jobs, queue) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (ready, started) = mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("make namespaces");
            run("mount --make-rprivate /");
            // No addresses of the kernel's own making, which come and settle when they like.
            fs::write("/proc/sys/net/ipv6/conf/default/addr_gen_mode", "1").unwrap();
            run("ip link set lo up");
            ready.send(nix::unistd::gettid().as_raw()).unwrap();
            while let Ok(job) = queue.recv() {
                job();
            }
        });
        Self {
            jobs,
            thread: started.recv().expect("namespaces could be made"),
        }
    }

    /// Runs `job` in the namespaces. Threads and processes that it starts are in them too.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let job = move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            let _gone = done.send(outcome);
        };
        self.jobs.send(Box::new(job)).unwrap();
        match result.recv().unwrap() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// A cable from the network namespace of the caller to this one: `uplink0` here and `wire0` there.
    pub(crate) fn connect_to_caller(&self) {
        self.connect(0);
    }

    /// One more cable: `uplinkN` here and `wireN` there.
    pub(crate) fn connect(&self, number: u8) {
        run(&format!(
            "ip link add uplink{number} type veth peer name wire{number}"
        ));
        run(&format!("ip link set wire{number} netns {}", self.thread));
    }
}

/// Runs `test` in a namespace with two uplinks, and gives it the network behind both.
///
/// `uplink0` has the addresses 192.0.2.2 and 2001:db8:1::2, and `uplink1` has 203.0.113.2 and 2001:db8:3::2, each with
/// the network's .1 beside it; default routes there are none yet. 198.51.100.1 and 2001:db8:2::1 are somewhere in the
/// network, which drops what comes in with an address of the other cable's.
pub(crate) fn with_two_networks<F: Future<Output = ()>>(
    test: impl FnOnce(Arc<Namespace>) -> F + Send + 'static,
) {
    let client = Namespace::new();
    let network = Arc::new(Namespace::new());
    client.run(move || {
        for (number, v4, v6) in [(0, "192.0.2", "2001:db8:1"), (1, "203.0.113", "2001:db8:3")] {
            network.connect(number);
            network.run(move || {
                run(&format!("ip addr add {v4}.1/24 dev wire{number}"));
                run(&format!("ip addr add {v6}::1/64 dev wire{number} nodad"));
                run(&format!("ip link set wire{number} up"));
            });
            run(&format!("ip addr add {v4}.2/24 dev uplink{number}"));
            run(&format!("ip addr add {v6}::2/64 dev uplink{number} nodad"));
            run(&format!("ip link set uplink{number} up"));
        }
        network.run(|| {
            run("ip addr add 198.51.100.1/32 dev lo");
            run("ip addr add 2001:db8:2::1/128 dev lo nodad");
            run("nft add table inet filter");
            run("nft add chain inet filter in { type filter hook input priority 0 ; }");
            for (number, v4, v6) in [
                (0, "203.0.113.0/24", "2001:db8:3::/64"),
                (1, "192.0.2.0/24", "2001:db8:1::/64"),
            ] {
                run(&format!(
                    "nft add rule inet filter in iifname wire{number} ip saddr {v4} drop"
                ));
                run(&format!(
                    "nft add rule inet filter in iifname wire{number} ip6 saddr {v6} drop"
                ));
            }
        });
        eventually("the cables are up", || {
            run("ip link").matches("state UP").count() == 2
        });
        // It lives until the test has ended, whatever the test does with it.
        block_on(test(Arc::clone(&network)));
    });
}

/// Runs `test` with an asynchronous runtime in new namespaces.
pub(crate) fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    Namespace::new().run(|| block_on(test()));
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// Runs a command without a shell; its output. Fails the test when the command fails.
pub(crate) fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .expect("the command is installed");
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Everything that a plan may change in the kernel.
pub(crate) fn snapshot() -> Vec<String> {
    let mut all: Vec<String> = [
        "ip -j -4 rule",
        "ip -j -6 rule",
        "ip -j -4 route show table all",
        "ip -j -6 route show table all",
        "ip -j addr",
    ]
    .map(|command| format!("{command}: {}", run(command)))
    .into();
    let mut settings: Vec<PathBuf> = fs::read_dir("/proc/sys/net/ipv4/conf")
        .unwrap()
        .map(|entry| entry.unwrap().path().join("rp_filter"))
        .collect();
    settings.sort();
    all.extend(
        settings
            .iter()
            .map(|path| format!("{}: {}", path.display(), fs::read_to_string(path).unwrap())),
    );
    all
}

/// Files that stand for the machine's own.
pub(crate) struct Files {
    root: tempfile::TempDir,
}

impl Files {
    pub(crate) fn new() -> Self {
        Self {
            root: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn resolv_conf(&self) -> PathBuf {
        self.path("etc/resolv.conf")
    }

    /// A machine whose name resolution is the file alone.
    pub(crate) fn config(&self) -> Config {
        config_in(self.root.path())
    }

    pub(crate) fn host(&self) -> LinuxHost {
        LinuxHost::new(self.config()).unwrap()
    }

    /// What is left of records and locks.
    pub(crate) fn records(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for directory in ["run", "lib"] {
            if let Ok(entries) = fs::read_dir(self.path(directory)) {
                found.extend(entries.map(|entry| entry.unwrap().path()));
            }
        }
        found
    }
}

pub(crate) fn config_in(root: &Path) -> Config {
    fs::create_dir_all(root.join("etc")).unwrap();
    Config {
        state: StateDirectories {
            runtime: root.join("run"),
            persistent: root.join("lib"),
        },
        dns: DnsSystem {
            resolv_conf: root.join("etc/resolv.conf"),
            hosts: root.join("etc/hosts"),
            resolvconf: Vec::new(),
            bus: None,
        },
        nft: vec!["/usr/sbin/nft".into()],
        offloads: Offloads::ALL,
    }
}

/// A message bus of its own.
pub(crate) struct Bus {
    daemon: Child,
    pub(crate) address: String,
}

impl Bus {
    pub(crate) fn new(files: &Files) -> Self {
        let socket = files.path("bus");
        let config = format!(
            "<busconfig><type>custom</type><listen>unix:path={}</listen><auth>EXTERNAL</auth>\
             <policy context='default'><allow send_destination='*' eavesdrop='true'/><allow own='*'/>\
             <allow receive_sender='*'/></policy></busconfig>",
            socket.display()
        );
        fs::write(files.path("bus.conf"), config).unwrap();
        let daemon = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", files.path("bus.conf").display()))
            .arg("--nofork")
            .stdout(Stdio::null())
            .spawn()
            .expect("the package dbus is installed");
        eventually("the bus is there", || socket.exists());
        Self {
            daemon,
            address: format!("unix:path={}", socket.display()),
        }
    }

    /// A connection that has this name on the bus.
    pub(crate) async fn serve(&self, name: &'static str) -> zbus::Connection {
        let builder = zbus::connection::Builder::address(self.address.as_str());
        let connection = builder.build().await.unwrap();
        connection.request_name(name).await.unwrap();
        connection
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }
}

/// A plan with a tunnel: addresses, routes, name servers.
pub(crate) fn plan(addresses: &[&str], routes: &[&str], servers: &[&str]) -> Plan {
    let net = |text: &&str| text.parse::<IpNet>().unwrap();
    let address = |text: &&str| text.parse::<IpAddr>().unwrap();
    Plan {
        tunnel: Some(TunnelConfig {
            addresses: addresses.iter().map(net).collect(),
            routes: routes.iter().map(net).collect(),
            excluded: [].into(),
            refused: [].into(),
            dns: Dns {
                servers: servers.iter().map(address).collect(),
                domains: Vec::new(),
            },
            mtu: 1400,
        }),
        lock: Lock::Open,
    }
}

/// Everything in both families into the tunnel.
pub(crate) fn full_plan() -> Plan {
    plan(
        &["10.3.0.1/32", "fd00:3::1/128"],
        &["0.0.0.0/0", "::/0"],
        &["10.3.0.53"],
    )
}

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "still not true: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A file by content, mode and owner.
pub(crate) fn look(path: &Path) -> (Vec<u8>, u32, u32, u32) {
    let metadata = fs::metadata(path).unwrap();
    (
        fs::read(path).unwrap(),
        metadata.mode(),
        metadata.uid(),
        metadata.gid(),
    )
}
