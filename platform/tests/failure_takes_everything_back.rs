//! A plan that fails half way leaves the machine as it was before any plan, and says what could not be done.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;

use common::{Files, full_plan, in_namespace, plan, run, snapshot};
use peregrine_core::plan::Plan;
use peregrine_platform::host::Host as _;

#[test]
fn an_address_that_the_device_cannot_have() {
    in_namespace(|| async {
        let files = Files::new();
        let host = files.host();
        let before = snapshot();
        let mut plan = full_plan();
        if let Some(config) = &mut plan.tunnel {
            config.mtu = 1000; // IPv6 needs 1280
        }
        let fault = host.apply(plan).await.unwrap_err();
        assert!(fault.action.contains("fd00:3::1/128"), "{fault}");
        assert!(!fault.permission);
        assert_eq!(snapshot(), before);
        drop(host);
        assert!(files.records().is_empty(), "{:?}", files.records());
    });
}

#[test]
fn name_servers_that_cannot_be_set() {
    in_namespace(|| async {
        let files = Files::new();
        let host = files.host();
        let before = snapshot();
        fs::create_dir_all(files.resolv_conf()).unwrap(); // a directory where the file should be
        let fault = host.apply(full_plan()).await.unwrap_err();
        assert!(fault.action.contains("resolv.conf"), "{fault}");
        assert_eq!(snapshot(), before);
        drop(host);
        assert!(files.records().is_empty(), "{:?}", files.records());
    });
}

#[test]
fn a_later_plan_that_fails_takes_the_earlier_one_with_it() {
    in_namespace(|| async {
        let files = Files::new();
        let host = files.host();
        let before = snapshot();
        let first = host.apply(full_plan()).await.unwrap();
        let mut worse = full_plan();
        if let Some(config) = &mut worse.tunnel {
            config.mtu = 1000;
        }
        let fault = host.apply(worse).await.unwrap_err();
        assert!(fault.action.contains("fd00:3::1"), "{fault}");
        assert_eq!(snapshot(), before);
        assert!(!files.resolv_conf().exists());
        drop(first);
        // And the machine is not stuck.
        let again = host.apply(full_plan()).await.unwrap();
        assert!(again.tun.is_some());
    });
}

#[test]
fn without_the_privilege_it_says_so() {
    in_namespace(|| async {
        let files = Files::new();
        for name in ["", "etc", "run", "lib"] {
            fs::create_dir_all(files.path(name)).unwrap();
            fs::set_permissions(files.path(name), fs::Permissions::from_mode(0o777)).unwrap();
        }
        let before = snapshot();
        assert!(peregrine_platform::linux::can_manage_network());
        let nobody = 65_534;
        // The C library's function would change all threads of the process; the system call changes this one, and
        // the thread of the host is made by this one.
        // SAFETY: the call takes three numbers and touches no memory.
        let done = unsafe { libc::syscall(libc::SYS_setresuid, nobody, nobody, nobody) };
        assert_eq!(done, 0);
        assert!(!peregrine_platform::linux::can_manage_network());

        let host = files.host();
        let fault = host
            .apply(plan(&["10.3.0.1/32"], &["0.0.0.0/0"], &[]))
            .await
            .unwrap_err();
        assert!(
            fault.permission && fault.action.contains("tunnel device"),
            "{fault}"
        );
        let fault = host.way("192.0.2.1:500".parse().unwrap()).unwrap_err();
        assert!(fault.permission, "{fault}");
        host.apply(Plan::default()).await.unwrap();
        assert_eq!(snapshot(), before);
    });
}

#[test]
fn no_way_to_the_gateway() {
    in_namespace(|| async {
        let files = Files::new();
        let host = files.host();
        for gateway in ["192.0.2.1:500", "[2001:db8::1]:500"] {
            let gateway: SocketAddr = gateway.parse().unwrap();
            let fault = host.way(gateway).unwrap_err();
            assert_eq!(fault.reason, "Network is unreachable");
            assert!(
                fault.action.contains(&gateway.ip().to_string()) && !fault.permission,
                "{fault}"
            );
        }
        assert!(run("ip rule").lines().count() == 3);
    });
}
