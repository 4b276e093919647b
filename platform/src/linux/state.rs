//! What we did to this machine, written down before we do it.
//!
//! Every running instance holds a *slot*: a small number, and a lock on the file `N.lock` that the kernel lets go
//! when the process ends, however it ends. Its record `N.json` says what must be taken back. An instance that
//! starts takes back what the records of unlocked slots say, and leaves the others alone.
//!
//! The records live where a reboot empties them, since a reboot also removes rules, routes and settings. The file
//! `/etc/resolv.conf` survives a reboot, so the record of it lives where it survives too.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use peregrine_core::command::HostFault;
use serde::{Deserialize, Serialize};

use super::{dns, fault, sysctl};

/// More instances than this on one machine are a mistake.
const SLOTS: u32 = 64;

/// Where records live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDirectories {
    /// Emptied by a reboot, such as `/run/peregrine`.
    pub runtime: PathBuf,
    /// Survives a reboot, such as `/var/lib/peregrine`.
    pub persistent: PathBuf,
}

impl StateDirectories {
    /// `/run/peregrine` and `/var/lib/peregrine` for root; the user's own runtime and state directories else.
    #[must_use]
    pub fn system() -> Self {
        if nix::unistd::geteuid().is_root() {
            return Self {
                runtime: "/run/peregrine".into(),
                persistent: "/var/lib/peregrine".into(),
            };
        }
        let of_user = || format!("/run/user/{}", nix::unistd::geteuid()).into();
        let runtime: PathBuf = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(of_user, PathBuf::from);
        let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/state"));
        let persistent = std::env::var_os("XDG_STATE_HOME")
            .map(PathBuf::from)
            .or_else(home);
        Self {
            persistent: persistent.unwrap_or_else(|| runtime.clone()).join("peregrine"),
            runtime: runtime.join("peregrine"),
        }
    }
}

/// What must be taken back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// The network namespace in which it was done, by its inode.
    pub(super) namespace: u64,
    /// The rules and the table of the slot are in use.
    pub(super) routing: bool,
    /// Kernel settings that were changed.
    pub(super) sysctls: Vec<sysctl::Saved>,
    /// How name resolution was changed.
    pub(super) dns: Option<dns::Undo>,
    /// The slot's tables of the firewall are in use.
    #[serde(default)]
    pub(super) firewall: bool,
    /// They lock the machine.
    #[serde(default)]
    pub(super) locked: bool,
}

/// A held slot.
#[derive(Debug)]
pub(super) struct Slot {
    directories: StateDirectories,
    pub(super) number: u32,
    pub(super) record: Record,
    _lock: Flock<File>,
}

impl Slot {
    /// Every slot that no running process holds and whose record is about this network namespace, and then one
    /// without a record whose number is not `taken` by somebody with other directories, to be ours.
    pub(super) fn claim(
        directories: &StateDirectories,
        mut taken: impl FnMut(u32) -> Result<bool, HostFault>,
    ) -> Result<(Vec<Self>, Self), HostFault> {
        let namespace = network_namespace()?;
        for directory in [&directories.runtime, &directories.persistent] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(|error| fault(format!("create {}", directory.display()), error))?;
        }
        let mut left_behind = Vec::new();
        let mut ours = None;
        for number in 0..SLOTS {
            let recorded = directories.record(number).exists() || directories.file_record(number).exists();
            if !recorded && ours.is_some() {
                continue;
            }
            let Some(mut slot) = Self::lock(directories, number, namespace)? else {
                continue;
            };
            // Looked at again under the lock: the holder may have ended in good order meanwhile.
            if directories.record(number).exists() || directories.file_record(number).exists() {
                slot.read();
                if slot.record.namespace == namespace {
                    left_behind.push(slot);
                }
            } else if ours.is_none() && !taken(number)? {
                ours = Some(slot);
            }
        }
        let ours = ours.ok_or_else(|| {
            let action = format!("find a free place in {}", directories.runtime.display());
            fault(action, format!("{SLOTS} instances are running"))
        })?;
        Ok((left_behind, ours))
    }

    /// Whether a run that has crashed has left the machine locked, as far as its record tells.
    pub(super) fn is_left_locked(directories: &StateDirectories) -> Result<bool, HostFault> {
        let namespace = network_namespace()?;
        for number in (0..SLOTS).filter(|number| directories.record(*number).exists()) {
            if let Some(mut slot) = Self::lock(directories, number, namespace)? {
                slot.read();
                if slot.record.namespace == namespace && slot.record.locked {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// The slot, unless a running process holds it.
    fn lock(directories: &StateDirectories, number: u32, namespace: u64) -> Result<Option<Self>, HostFault> {
        let path = directories.lock(number);
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
                .open(&path)
                .map_err(|error| fault(format!("open {}", path.display()), error))?;
            let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, error)) => return Err(fault(format!("lock {}", path.display()), error)),
            };
            // The holder before us may have removed the file between our opening and our locking it.
            let held = lock.metadata().map(|file| file.ino());
            let named = fs::metadata(&path).map(|file| file.ino());
            if matches!((held, named), (Ok(held), Ok(named)) if held == named) {
                let record = Record {
                    namespace,
                    ..Record::default()
                };
                return Ok(Some(Self {
                    directories: directories.clone(),
                    number,
                    record,
                    _lock: lock,
                }));
            }
        }
    }

    /// Reads the record. One that cannot be read is taken as "everything that a slot can have done".
    fn read(&mut self) {
        let path = self.directories.record(self.number);
        self.record = match fs::read(&path).and_then(|json| Ok(serde_json::from_slice(&json)?)) {
            Ok(record) => record,
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.record.clone(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the record of a crashed run cannot be read");
                Record {
                    routing: true,
                    firewall: true,
                    locked: true,
                    ..self.record.clone()
                }
            }
        };
        // After a reboot only the record of the file is left.
        if self.record.dns.is_none() && self.directories.file_record(self.number).exists() {
            self.record.dns = Some(dns::Undo::File);
        }
    }

    /// Writes the record down.
    pub(super) fn save(&self) -> Result<(), HostFault> {
        let path = self.directories.record(self.number);
        let json =
            serde_json::to_vec(&self.record).map_err(|error| fault("write a record", error.to_string()))?;
        write_atomically(&path, &json, Owner::PRIVATE)
            .map_err(|error| fault(format!("write {}", path.display()), error))
    }

    /// Forgets the record: everything is taken back.
    pub(super) fn clear(&mut self) -> Result<(), HostFault> {
        let path = self.directories.record(self.number);
        self.record = Record {
            namespace: self.record.namespace,
            ..Record::default()
        };
        remove(&path).map_err(|error| fault(format!("remove {}", path.display()), error))
    }

    /// Where the record of `/etc/resolv.conf` lives.
    pub(super) fn file_record(&self) -> PathBuf {
        self.directories.file_record(self.number)
    }

    /// The records of `/etc/resolv.conf` of all other slots, running or not.
    pub(super) fn other_file_records(&self) -> Vec<PathBuf> {
        let others = (0..SLOTS).filter(|number| *number != self.number);
        others
            .map(|number| self.directories.file_record(number))
            .filter(|path| path.exists())
            .collect()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Removed under the lock; whoever opened it meanwhile sees that its name is gone. A slot with a record keeps
        // its file, which tells nothing by itself.
        let _left = remove(&self.directories.lock(self.number));
    }
}

impl StateDirectories {
    fn record(&self, number: u32) -> PathBuf {
        self.runtime.join(format!("{number}.json"))
    }

    fn lock(&self, number: u32) -> PathBuf {
        self.runtime.join(format!("{number}.lock"))
    }

    fn file_record(&self, number: u32) -> PathBuf {
        self.persistent.join(format!("{number}.resolv.json"))
    }
}

/// The network namespace of the calling thread.
fn network_namespace() -> Result<u64, HostFault> {
    let path = "/proc/thread-self/ns/net";
    fs::metadata(path)
        .map(|file| file.ino())
        .map_err(|error| fault(format!("look at {path}"), error))
}

/// Removes a file; one that is gone already is no error.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whose a file is and who may read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Owner {
    pub(super) mode: u32,
    pub(super) user: u32,
    pub(super) group: u32,
}

impl Owner {
    /// Readable by all, and root's.
    pub(super) const DEFAULT: Self = Self {
        mode: 0o644,
        user: 0,
        group: 0,
    };
    /// Readable by nobody else.
    pub(super) const PRIVATE: Self = Self {
        mode: 0o600,
        user: u32::MAX,
        group: u32::MAX,
    };
}

/// Writes a file so that at any moment it is the old one or the new one, and that a power failure keeps either.
/// A user or group of `u32::MAX` is whoever runs this.
pub(super) fn write_atomically(path: &Path, content: &[u8], owner: Owner) -> io::Result<()> {
    let mut name = path
        .file_name()
        .unwrap_or_else(|| OsStr::new("record"))
        .to_owned();
    name.push(".peregrine-new");
    let temporary = path.with_file_name(name);
    remove(&temporary)?;
    let mut options = OpenOptions::new();
    options
        .create_new(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_CLOEXEC);
    let written = options.open(&temporary).and_then(|mut file| {
        file.write_all(content)?;
        // Only root can give a file away; for anyone else it is their own anyway.
        if nix::unistd::geteuid().is_root() {
            let someone = |id: u32| (id != u32::MAX).then_some(id);
            std::os::unix::fs::fchown(&file, someone(owner.user), someone(owner.group))?;
        }
        file.set_permissions(fs::Permissions::from_mode(owner.mode))?;
        file.sync_all()
    });
    let done = written.and_then(|()| fs::rename(&temporary, path));
    if done.is_err() {
        let _left = remove(&temporary);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directories() -> (tempfile::TempDir, StateDirectories) {
        let root = tempfile::tempdir().unwrap();
        let directories = StateDirectories {
            runtime: root.path().join("run"),
            persistent: root.path().join("lib"),
        };
        (root, directories)
    }

    fn claim(directories: &StateDirectories) -> Result<(Vec<Slot>, Slot), HostFault> {
        Slot::claim(directories, |_| Ok(false))
    }

    #[test]
    fn a_number_that_somebody_else_uses_is_not_taken() {
        let (_root, directories) = directories();
        let (_, ours) = Slot::claim(&directories, |number| Ok(number < 3)).unwrap();
        assert_eq!(ours.number, 3);
    }

    #[test]
    fn instances_hold_different_slots() {
        let (_root, directories) = directories();
        let (_, first) = claim(&directories).unwrap();
        let (_, second) = claim(&directories).unwrap();
        assert_eq!((first.number, second.number), (0, 1));
        drop(first);
        assert_eq!(claim(&directories).unwrap().1.number, 0);
        drop(second);
        assert_eq!(
            fs::read_dir(&directories.runtime).unwrap().count(),
            0,
            "nothing is left behind"
        );
    }

    #[test]
    fn only_the_records_of_the_dead_are_handed_out() {
        let (_root, directories) = directories();
        let (_, mut dead) = claim(&directories).unwrap();
        let (_, mut living) = claim(&directories).unwrap();
        for slot in [&mut dead, &mut living] {
            slot.record.routing = true;
            slot.save().unwrap();
        }
        drop(dead); // the lock goes, the record stays, as after a crash
        let (left_behind, ours) = claim(&directories).unwrap();
        let numbers: Vec<_> = left_behind.iter().map(|slot| slot.number).collect();
        assert_eq!((numbers, ours.number), (vec![0], 2));
        assert!(left_behind.iter().all(|slot| slot.record.routing));
    }

    #[test]
    fn the_record_of_another_network_namespace_is_left_alone() {
        let (_root, directories) = directories();
        let (_, mut slot) = claim(&directories).unwrap();
        slot.record = Record {
            namespace: 1,
            routing: true,
            ..Record::default()
        };
        slot.save().unwrap();
        drop(slot);
        let (left_behind, ours) = claim(&directories).unwrap();
        assert!(left_behind.is_empty());
        assert_eq!(ours.number, 1);
        assert!(directories.record(0).exists());
    }

    #[test]
    fn a_record_that_cannot_be_read_means_the_worst() {
        let (_root, directories) = directories();
        let (_, slot) = claim(&directories).unwrap();
        slot.save().unwrap();
        fs::write(directories.record(0), "{").unwrap();
        drop(slot);
        let (left_behind, _) = claim(&directories).unwrap();
        assert!(left_behind.iter().all(|slot| slot.record.routing) && left_behind.len() == 1);
    }
}
