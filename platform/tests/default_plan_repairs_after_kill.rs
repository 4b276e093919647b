//! Whatever a run that was killed left on the machine, the next start puts it back, and leaves living runs alone.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{Files, config_in, eventually, full_plan, in_namespace, look, plan, run, snapshot};
use peregrine_core::plan::Plan;
use peregrine_platform::host::Host as _;
use peregrine_platform::linux::LinuxHost;

/// Not a test: the process that the tests kill. It applies a plan and stays.
#[test]
#[ignore = "only the other tests run it, in a process of its own"]
fn victim() {
    let Some(root) = std::env::var_os("PEREGRINE_VICTIM") else {
        return;
    };
    let root = Path::new(&root);
    common::block_on(async {
        let host = LinuxHost::new(config_in(root)).unwrap();
        let gateway = "192.0.2.1:500".parse().unwrap();
        host.way(gateway).unwrap();
        let _tun = host.apply(full_plan()).await.unwrap();
        fs::write(root.join(format!("up-{}", std::process::id())), "").unwrap();
        std::future::pending::<()>().await;
    });
}

/// Killed at the latest when the test ends, however it ends.
struct Victim(Child);

impl Victim {
    fn start(files: &Files) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--ignored"])
            .env("PEREGRINE_VICTIM", files.path(""))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let up = files.path(&format!("up-{}", child.id()));
        let victim = Self(child);
        eventually("the victim has applied its plan", || up.exists());
        victim
    }

    /// SIGKILL: nothing of it runs any more.
    fn kill(self) {}
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn network() {
    run("ip link add uplink0 type veth peer name uplink1");
    run("ip link set uplink1 up");
    run("ip addr add 192.0.2.2/24 dev uplink0");
    run("ip link set uplink0 up");
    eventually("both ends are up", || {
        run("ip link").matches("state UP").count() == 2
    });
    fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "0").unwrap();
    fs::write("/proc/sys/net/ipv4/conf/uplink0/rp_filter", "1").unwrap();
}

#[test]
fn everything_is_put_back() {
    in_namespace(|| async {
        network();
        let files = Files::new();
        fs::create_dir_all(files.path("etc")).unwrap();
        fs::write(files.resolv_conf(), "nameserver 192.0.2.53\noptions edns0").unwrap();
        let (before, file_before) = (snapshot(), look(&files.resolv_conf()));

        Victim::start(&files).kill();
        let left = snapshot();
        assert_ne!(
            left, before,
            "a killed run leaves something, or this test shows nothing"
        );
        assert!(left.iter().any(|part| part.contains("uplink0/rp_filter: 2")));
        assert_ne!(look(&files.resolv_conf()), file_before);

        let host = files.host();
        host.apply(Plan::default()).await.unwrap();
        assert_eq!(snapshot(), before);
        assert_eq!(look(&files.resolv_conf()), file_before);
        drop(host);
        assert!(files.records().is_empty(), "{:?}", files.records());
    });
}

#[test]
fn connecting_again_repairs_too() {
    in_namespace(|| async {
        network();
        let files = Files::new();
        let before = snapshot();
        Victim::start(&files).kill();
        Victim::start(&files).kill();
        let host = files.host();
        let applied = host
            .apply(plan(&["10.4.0.1/32"], &["198.51.100.0/24"], &[]))
            .await
            .unwrap();
        assert_eq!(run("ip rule").lines().count(), 4, "local, ours, main, default");
        host.apply(Plan::default()).await.unwrap();
        drop((applied, host));
        assert_eq!(snapshot(), before);
        assert!(!files.resolv_conf().exists());
    });
}

#[test]
fn a_living_run_is_left_alone() {
    in_namespace(|| async {
        network();
        let files = Files::new();
        let before = snapshot();
        let living = Victim::start(&files);
        let (with_living, file_with_living) = (snapshot(), look(&files.resolv_conf()));
        Victim::start(&files).kill();
        assert_ne!(snapshot(), with_living);

        let host = files.host();
        host.apply(Plan::default()).await.unwrap();
        assert_eq!(snapshot(), with_living);
        assert_eq!(look(&files.resolv_conf()), file_with_living);
        drop(host);

        living.kill();
        let host = files.host();
        host.apply(Plan::default()).await.unwrap();
        assert_eq!(snapshot(), before);
        assert!(!files.resolv_conf().exists());
    });
}

#[test]
fn name_servers_that_cannot_be_put_back_do_not_stop_the_next_run() {
    in_namespace(|| async {
        network();
        let files = Files::new();
        let before = snapshot();
        Victim::start(&files).kill();
        fs::remove_file(files.resolv_conf()).unwrap();
        fs::create_dir(files.resolv_conf()).unwrap(); // not a file that anybody could put back
        let host = files.host();
        host.apply(Plan::default()).await.unwrap();
        assert_eq!(snapshot(), before);
        drop(host);
        assert!(!files.records().is_empty(), "what is left is still written down");

        fs::remove_dir(files.resolv_conf()).unwrap();
        let host = files.host();
        host.apply(Plan::default()).await.unwrap();
        drop(host);
        assert!(files.records().is_empty(), "{:?}", files.records());
    });
}

#[test]
fn after_a_reboot_the_file_is_put_back() {
    in_namespace(|| async {
        network();
        let files = Files::new();
        fs::create_dir_all(files.path("etc")).unwrap();
        fs::write(files.resolv_conf(), "nameserver 192.0.2.53\n").unwrap();
        let file_before = look(&files.resolv_conf());
        Victim::start(&files).kill();
        fs::remove_dir_all(files.path("run")).unwrap();
        files.host().apply(Plan::default()).await.unwrap();
        assert_eq!(look(&files.resolv_conf()), file_before);
    });
}
