//! Name resolution through the tunnel.
//!
//! The first of these that is in charge of this machine's name resolution is asked, in this order:
//!
//! 1. **systemd-resolved**, when `/etc/resolv.conf` is a link to one of its files or names its stub (127.0.0.53),
//!    and it answers on the system bus. Servers and domains are set on the tunnel's link; `~.` makes it the way for
//!    all names when everything goes into the tunnel. They vanish with the link.
//! 2. **resolvconf** (Debian's or openresolv), when the program is there, is not systemd's stand-in of the same name,
//!    and what it then writes to `/etc/resolv.conf` leads to our servers or to a resolver on this machine.
//! 3. **the file** `/etc/resolv.conf` itself. What was in it is kept, a link stays a link, and when the tunnel goes
//!    the file has the same octets as before, unless somebody else has rewritten it meanwhile: then theirs stays.
//!
//! Only the first can send the names of some domains into the tunnel and leave the others outside. The others ask
//! our servers for everything, which is the side on which nothing leaks.

mod file;
mod resolvconf;
mod resolved;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use peregrine_core::command::HostFault;
use serde::{Deserialize, Serialize};

use super::fault;
use super::state::Slot;

/// Where this machine's name resolution is configured.
#[derive(Clone, Debug)]
pub struct DnsSystem {
    /// `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// Where the program `resolvconf` may be.
    pub resolvconf: Vec<PathBuf>,
    /// The address of the system bus; none for the usual one.
    pub bus: Option<String>,
}

impl Default for DnsSystem {
    fn default() -> Self {
        Self {
            resolv_conf: "/etc/resolv.conf".into(),
            resolvconf: vec![
                "/usr/sbin/resolvconf".into(),
                "/sbin/resolvconf".into(),
                "/usr/bin/resolvconf".into(),
            ],
            bus: None,
        }
    }
}

/// What is wanted of name resolution.
#[derive(Clone, Debug)]
pub(super) struct Wanted<'a> {
    /// The tunnel device.
    pub(super) interface: &'a str,
    pub(super) index: u32,
    /// At least one.
    pub(super) servers: &'a [IpAddr],
    pub(super) domains: &'a [String],
    /// Everything goes into the tunnel, names too.
    pub(super) full: bool,
}

/// How to put name resolution back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Undo {
    /// Nothing but the link: systemd-resolved forgets what it knew of it.
    Resolved {
        /// The link's index.
        index: u32,
    },
    /// Withdraw what was given under this name.
    Resolvconf {
        /// The program.
        program: PathBuf,
        /// The name.
        name: String,
    },
    /// Put the file back; its own record says how.
    File,
}

/// Why a way of resolving names was not taken.
enum Refusal {
    /// It is not in charge here: try the next.
    NotInCharge,
    /// It is, and it failed.
    Failed(HostFault),
}

/// Makes name resolution what is wanted.
pub(super) fn put(system: &DnsSystem, slot: &mut Slot, wanted: &Wanted<'_>) -> Result<(), HostFault> {
    if let Some(undo) = slot.record.dns.clone() {
        return match with(system, slot, wanted, &undo) {
            Err(Refusal::NotInCharge) => Err(fault(
                "set the name servers",
                "what was in charge of them a moment ago is gone",
            )),
            Err(Refusal::Failed(fault)) => Err(fault),
            Ok(()) => Ok(()),
        };
    }
    let mut ways = Vec::new();
    if resolved::is_in_charge(&system.resolv_conf) {
        ways.push(Undo::Resolved { index: wanted.index });
    }
    if let Some(program) = resolvconf::find(&system.resolvconf) {
        let name = resolvconf::record_name(&program, wanted.interface);
        ways.push(Undo::Resolvconf { program, name });
    }
    ways.push(Undo::File);
    for undo in ways {
        slot.record.dns = Some(undo.clone());
        slot.save()?;
        match with(system, slot, wanted, &undo) {
            Ok(()) => {
                tracing::debug!(?undo, servers = ?wanted.servers, "name servers set");
                return Ok(());
            }
            Err(Refusal::Failed(fault)) => return Err(fault),
            Err(Refusal::NotInCharge) => slot.record.dns = None,
        }
    }
    Err(fault("set the name servers", "nothing is in charge of them"))
}

fn with(system: &DnsSystem, slot: &Slot, wanted: &Wanted<'_>, undo: &Undo) -> Result<(), Refusal> {
    match undo {
        Undo::Resolved { .. } => resolved::put(system.bus.as_deref(), wanted),
        Undo::Resolvconf { program, name } => resolvconf::put(program, name, &system.resolv_conf, wanted),
        Undo::File => file::put(&system.resolv_conf, slot, wanted).map_err(Refusal::Failed),
    }
}

/// Puts name resolution back as `slot`'s record says. What is back already is no error.
pub(super) fn put_back(system: &DnsSystem, slot: &mut Slot) -> Result<(), HostFault> {
    match slot.record.dns.clone() {
        None => return Ok(()),
        Some(Undo::Resolved { index }) => resolved::put_back(system.bus.as_deref(), index),
        Some(Undo::Resolvconf { program, name }) => resolvconf::put_back(&program, &name)?,
        Some(Undo::File) => file::put_back(slot)?,
    }
    slot.record.dns = None;
    Ok(())
}

/// The servers that a `resolv.conf` names.
fn servers(content: &str) -> impl Iterator<Item = IpAddr> {
    content.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver"))
            .then(|| words.next())??
            .split('%')
            .next()?
            .parse()
            .ok()
    })
}

fn read_to_string(path: &Path) -> io::Result<String> {
    std::fs::read(path).map(|octets| String::from_utf8_lossy(&octets).into_owned())
}
