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
mod watch;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use peregrine_core::command::HostFault;
use serde::{Deserialize, Serialize};

use super::fault;
use super::state::Slot;

pub(super) use self::watch::Watch;

/// Where this machine's name resolution is configured.
#[derive(Clone, Debug)]
pub struct DnsSystem {
    /// `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// `/etc/hosts`.
    pub hosts: PathBuf,
    /// Where the program `resolvconf` may be.
    pub resolvconf: Vec<PathBuf>,
    /// The address of the system bus; none for the usual one.
    pub bus: Option<String>,
}

impl Default for DnsSystem {
    fn default() -> Self {
        Self {
            resolv_conf: "/etc/resolv.conf".into(),
            hosts: "/etc/hosts".into(),
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

/// Whether name resolution is still what [`put`] made it, as far as that can be seen from outside.
pub(super) fn is_put(system: &DnsSystem, slot: &Slot, wanted: &[IpAddr]) -> bool {
    match &slot.record.dns {
        None => wanted.is_empty(),
        // It keeps what it was told for as long as the link is there.
        Some(Undo::Resolved { .. }) => true,
        Some(Undo::Resolvconf { .. }) => resolvconf::is_effective(&system.resolv_conf, wanted),
        Some(Undo::File) => file::is_put(&system.resolv_conf, &slot.file_record()),
    }
}

/// What it takes to ask the name servers that ours have taken the place of.
#[derive(Clone, Debug)]
pub(super) struct Replaced {
    undo: Undo,
    /// Ours.
    servers: Vec<IpAddr>,
    file_record: PathBuf,
    /// `resolv.conf` as it was before.
    before: String,
}

impl Replaced {
    /// What was replaced by the servers that [`put`] has set; none when it has set none. `before` is what
    /// `resolv.conf` said before that.
    pub(super) fn new(slot: &Slot, servers: &[IpAddr], before: String) -> Option<Self> {
        Some(Self {
            undo: slot.record.dns.clone()?,
            servers: servers.to_vec(),
            file_record: slot.file_record(),
            before,
        })
    }

    /// `resolv.conf` as it was before.
    pub(super) fn before(&self) -> &str {
        &self.before
    }

    /// Whether systemd-resolved is in charge, and can be asked about one link.
    pub(super) const fn is_resolved(&self) -> bool {
        matches!(self.undo, Undo::Resolved { .. })
    }

    /// `resolv.conf` as it would be now without us.
    pub(super) fn resolv_conf(&self, system: &DnsSystem) -> String {
        match &self.undo {
            Undo::Resolved { .. } => {
                let upstream = read_to_string(Path::new(resolved::UPSTREAM)).unwrap_or_default();
                self.without_ours(&upstream)
            }
            Undo::Resolvconf { program, name } => match resolvconf::others(program, name) {
                Some(others) => self.without_ours(&others),
                None => self.before.clone(),
            },
            Undo::File => file::without_us(&system.resolv_conf, &self.file_record),
        }
    }

    fn without_ours(&self, text: &str) -> String {
        let is_ours = |line: &str| servers(line).any(|server| self.servers.contains(&server));
        let others = text.lines().filter(|line| !is_ours(line));
        others.map(|line| format!("{line}\n")).collect()
    }
}

/// The addresses of a name as systemd-resolved finds them on one link; none when it has none there.
pub(super) async fn ask_resolved(system: &DnsSystem, link: u32, name: &str) -> Result<Vec<IpAddr>, String> {
    resolved::look_up(system.bus.as_deref(), link, name).await
}

/// `resolv.conf` as it names those servers that lie outside this machine, as far as that can be told.
pub(super) fn upstream(system: &DnsSystem) -> String {
    let path = if resolved::is_in_charge(&system.resolv_conf) {
        Path::new(resolved::UPSTREAM)
    } else {
        &system.resolv_conf
    };
    read_to_string(path).unwrap_or_default()
}

/// The servers that a `resolv.conf` names.
pub(super) fn servers(content: &str) -> impl Iterator<Item = IpAddr> {
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

/// A file as text, whatever octets are in it.
pub(super) fn read_to_string(path: &Path) -> io::Result<String> {
    std::fs::read(path).map(|octets| String::from_utf8_lossy(&octets).into_owned())
}
