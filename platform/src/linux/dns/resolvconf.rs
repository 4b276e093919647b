//! The program `resolvconf`: Debian's or openresolv's.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use peregrine_core::command::HostFault;

use super::{Refusal, Wanted, fault};
use crate::linux::program::run;

/// Debian's list of interfaces, the first of them first.
const INTERFACE_ORDER: &str = "/etc/resolvconf/interface-order";

/// Where Debian's keeps what it was given, each under its name.
const RECORDS: &str = "/run/resolvconf/interface";

/// The first of `candidates` that is a resolvconf and not systemd's stand-in, which only talks to systemd-resolved.
pub(super) fn find(candidates: &[PathBuf]) -> Option<PathBuf> {
    candidates.iter().find_map(|candidate| {
        let program = fs::canonicalize(candidate).ok()?;
        (program.file_name()? != "resolvectl").then(|| candidate.clone())
    })
}

/// The name under which our servers are given. Both kinds order by name, and this one comes before every physical
/// interface: Debian's has a list of patterns, of which it begins like the first; openresolv prefers `tun[0-9]*`
/// (`dynamic_order` in resolvconf.conf(5)).
pub(super) fn record_name(program: &Path, interface: &str) -> String {
    if is_openresolv(program) {
        return format!("tun0.{interface}");
    }
    let order = fs::read_to_string(INTERFACE_ORDER).unwrap_or_default();
    let first = order.lines().map(str::trim).find_map(|line| {
        let prefix = line.strip_suffix('*')?;
        (!prefix.is_empty()
            && prefix
                .bytes()
                .all(|octet| octet.is_ascii_alphanumeric() || octet == b'-'))
        .then(|| prefix.to_owned())
    });
    first.map_or_else(|| interface.to_owned(), |prefix| format!("{prefix}.{interface}"))
}

/// Gives our servers, and looks whether that had an effect.
pub(super) fn put(
    program: &Path,
    name: &str,
    resolv_conf: &Path,
    wanted: &Wanted<'_>,
) -> Result<(), Refusal> {
    let mut input = String::new();
    for server in wanted.servers {
        let _never_fails = writeln!(input, "nameserver {server}");
    }
    if !wanted.domains.is_empty() {
        let _never_fails = writeln!(input, "search {}", wanted.domains.join(" "));
    }
    // "Only this one", which Debian's does not know.
    let mut arguments = vec!["-a", name];
    if wanted.full && is_openresolv(program) {
        arguments.push("-x");
    }
    run(program, &arguments, &input).map_err(|error| Refusal::Failed(failed(program, "set", &error)))?;
    if !is_effective(resolv_conf, wanted.servers) {
        put_back(program, name).map_err(Refusal::Failed)?;
        return Err(Refusal::NotInCharge);
    }
    Ok(())
}

/// Whether programs that read `resolv_conf` ask our servers, or a resolver on this machine.
pub(super) fn is_effective(resolv_conf: &Path, servers: &[IpAddr]) -> bool {
    super::read_to_string(resolv_conf).is_ok_and(|content| {
        super::servers(&content)
            .next()
            .is_some_and(|first| first.is_loopback() || servers.contains(&first))
    })
}

/// What others than `name` have given, if that can be told.
pub(super) fn others(program: &Path, name: &str) -> Option<String> {
    if !is_openresolv(program) {
        let records = fs::read_dir(RECORDS).ok()?.filter_map(Result::ok);
        let others = records.filter(|record| record.file_name() != name);
        return Some(
            others
                .filter_map(|record| super::read_to_string(&record.path()).ok())
                .collect(),
        );
    }
    let list = run(program, &["-l"], "").ok()?;
    let mut is_ours = false;
    let others = list.lines().filter(|line| {
        if let Some(of) = line.strip_prefix("# resolv.conf from ") {
            is_ours = of == name;
        }
        !is_ours
    });
    Some(others.map(|line| format!("{line}\n")).collect())
}

/// Withdraws our servers. A program that is gone has nothing to withdraw.
pub(super) fn put_back(program: &Path, name: &str) -> Result<(), HostFault> {
    // openresolv alone complains about a name that it does not know, unless forced (-f).
    let forced: &[&str] = if is_openresolv(program) { &["-f"] } else { &[] };
    match run(program, &[forced, &["-d", name]].concat(), "") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(program, "withdraw", &error)),
        Ok(_) => Ok(()),
    }
}

fn is_openresolv(program: &Path) -> bool {
    run(program, &["--version"], "").is_ok_and(|words| words.contains("openresolv"))
}

fn failed(program: &Path, verb: &str, error: &io::Error) -> HostFault {
    fault(
        format!("{verb} the name servers with {}", program.display()),
        error.to_string(),
    )
}
