//! `/etc/resolv.conf` itself (resolv.conf(5)).

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use peregrine_core::command::HostFault;
use serde::{Deserialize, Serialize};

use super::{Wanted, fault};
use crate::linux::state::{self, Owner, Slot};

/// What the C library reads of a `resolv.conf`.
const MOST_SERVERS: usize = 3;

/// How often a link may lead to another link.
const MOST_LINKS: usize = 40;

/// What the file was and what we made of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRecord {
    /// The file itself, behind any links.
    path: PathBuf,
    /// As it was; none when there was no file.
    original: Option<Original>,
    /// What we wrote.
    written: Content,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Original {
    content: Content,
    owner: Owner,
}

impl FileRecord {
    /// Whether `present` is what we wrote, or what is left of it when writing in place was interrupted.
    fn wrote(&self, present: &[u8]) -> bool {
        let same = present.iter().zip(self.written.octets());
        let same = same.take_while(|(present, written)| present == written).count();
        let original = self
            .original
            .as_ref()
            .map_or(&[][..], |original| original.content.octets());
        let rest = present.get(same..).unwrap_or_default();
        rest.is_empty() || original.get(same..) == Some(rest)
    }
}

/// Octets, readable where they are text, so that a person can put the file back by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Octets(Vec<u8>),
}

impl Content {
    fn new(octets: Vec<u8>) -> Self {
        String::from_utf8(octets).map_or_else(|error| Self::Octets(error.into_bytes()), Self::Text)
    }

    fn octets(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Octets(octets) => octets,
        }
    }
}

/// Puts our servers into the file.
pub(super) fn put(resolv_conf: &Path, slot: &Slot, wanted: &Wanted<'_>) -> Result<(), HostFault> {
    let failed = |error| {
        fault(
            format!("set the name servers in {}", resolv_conf.display()),
            error,
        )
    };
    let record_path = slot.file_record();
    let recorded = read_record(&record_path)?;
    let path = target(resolv_conf).map_err(failed)?;
    let present = read(&path).map_err(failed)?;

    let ours = |record: &FileRecord| {
        record.path == path
            && present
                .as_ref()
                .is_some_and(|present| present.content == record.written)
    };
    // What somebody else has put there meanwhile is what must come back in the end.
    let (original, untouched) = match recorded {
        Some(record) if ours(&record) => (record.original, Some(record.written)),
        _ => (present, None),
    };
    let before = original
        .as_ref()
        .map(|original| String::from_utf8_lossy(original.content.octets()));
    let content =
        Content::new(compose(before.as_deref().unwrap_or_default(), &record_path, wanted).into_bytes());
    if untouched.as_ref() == Some(&content) {
        return Ok(());
    }
    let owner = original
        .as_ref()
        .map_or(Owner::DEFAULT, |original| original.owner);
    let record = FileRecord {
        path,
        original,
        written: content,
    };
    write_record(&record_path, &record)?;
    replace(&record.path, record.written.octets(), owner).map_err(failed)
}

/// Puts the file back, unless somebody else has rewritten it meanwhile.
pub(super) fn put_back(slot: &Slot) -> Result<(), HostFault> {
    let record_path = slot.file_record();
    let Some(record) = read_record(&record_path)? else {
        return Ok(());
    };
    let failed = |error| fault(format!("put {} back", record.path.display()), error);
    let present = read(&record.path).map_err(failed)?;
    if present.is_some_and(|present| record.wrote(present.content.octets())) {
        match &record.original {
            Some(original) => {
                replace(&record.path, original.content.octets(), original.owner).map_err(failed)?
            }
            None => state::remove(&record.path).map_err(failed)?,
        }
    } else {
        hand_over(slot, &record)?;
    }
    state::remove(&record_path).map_err(failed)
}

/// Whether the file is as [`put`] left it.
pub(super) fn is_put(resolv_conf: &Path, record_path: &Path) -> bool {
    matches!(record_of(resolv_conf, record_path), Ok(Some(_)))
}

/// The file as it would be without us: as it was before, or as somebody else has written it meanwhile.
pub(super) fn without_us(resolv_conf: &Path, record_path: &Path) -> String {
    let content = match record_of(resolv_conf, record_path) {
        Ok(Some(record)) => record.original.map(|original| original.content),
        _ => read(resolv_conf).ok().flatten().map(|present| present.content),
    };
    content.map_or_else(String::new, |content| {
        String::from_utf8_lossy(content.octets()).into_owned()
    })
}

/// The record of the file, if it is as we wrote it.
fn record_of(resolv_conf: &Path, record_path: &Path) -> Result<Option<FileRecord>, HostFault> {
    let failed = |error| fault(format!("read {}", resolv_conf.display()), error);
    let Some(record) = read_record(record_path)? else {
        return Ok(None);
    };
    let path = target(resolv_conf).map_err(failed)?;
    let present = read(&path).map_err(failed)?;
    let is_ours = path == record.path && present.is_some_and(|present| present.content == record.written);
    Ok(is_ours.then_some(record))
}

/// Another instance took our file for the original one: when it ends, it shall put back what was there before us.
fn hand_over(slot: &Slot, ours: &FileRecord) -> Result<(), HostFault> {
    for other_path in slot.other_file_records() {
        let Some(mut other) = read_record(&other_path)? else {
            continue;
        };
        let took_ours = |original: &Original| original.content == ours.written;
        if other.path == ours.path && other.original.as_ref().is_some_and(took_ours) {
            other.original.clone_from(&ours.original);
            write_record(&other_path, &other)?;
        }
    }
    Ok(())
}

/// The new file: our servers, then, if only a part of the traffic goes into the tunnel, the machine's own as a
/// reserve; its options and whatever else stay.
fn compose(before: &str, record: &Path, wanted: &Wanted<'_>) -> String {
    let mut lines = vec![
        format!("# Made by Peregrine while its tunnel {} is up.", wanted.interface),
        format!("# What was here before is kept in {}", record.display()),
    ];
    let reserve = super::servers(before).filter(|server| !wanted.full && !wanted.servers.contains(server));
    let servers = wanted
        .servers
        .iter()
        .copied()
        .chain(reserve)
        .take(MOST_SERVERS.max(wanted.servers.len()));
    lines.extend(servers.map(|server| format!("nameserver {server}")));

    let keyword = |line: &str| {
        line.split_ascii_whitespace()
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let mut search: Vec<&str> = wanted.domains.iter().map(String::as_str).collect();
    if !search.is_empty() {
        // The last of several lines counts.
        let own = before
            .lines()
            .rfind(|line| ["search", "domain"].contains(&keyword(line).as_str()));
        for domain in own
            .into_iter()
            .flat_map(|line| line.split_ascii_whitespace().skip(1))
        {
            if !search.contains(&domain) {
                search.push(domain);
            }
        }
        lines.push(format!("search {}", search.join(" ")));
    }
    let replaced: &[&str] = if search.is_empty() {
        &["nameserver"]
    } else {
        &["nameserver", "search", "domain"]
    };
    let kept = before.lines().filter(|line| {
        let keyword = keyword(line);
        !keyword.is_empty() && !keyword.starts_with(['#', ';']) && !replaced.contains(&keyword.as_str())
    });
    lines.extend(kept.map(str::to_owned));
    lines.join("\n") + "\n"
}

/// The file behind a chain of links, which need not exist.
pub(super) fn target(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&path) {
            Ok(link) => path = path.parent().unwrap_or_else(|| Path::new("/")).join(link),
            // Not a link, or nothing at all.
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

fn read(path: &Path) -> io::Result<Option<Original>> {
    let content = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => Content::new(other?),
    };
    let metadata = fs::metadata(path)?;
    let owner = Owner {
        mode: metadata.permissions().mode() & 0o7777,
        user: metadata.uid(),
        group: metadata.gid(),
    };
    Ok(Some(Original { content, owner }))
}

/// Replaces the file at once; in place where that cannot be, as when it is mounted over another (containers).
fn replace(path: &Path, content: &[u8], owner: Owner) -> io::Result<()> {
    let written = state::write_atomically(path, content, owner);
    let fixed_in_place = |error: &io::Error| {
        matches!(
            error.raw_os_error(),
            Some(libc::EBUSY | libc::EXDEV | libc::EACCES | libc::EROFS)
        )
    };
    match written {
        Err(error) if fixed_in_place(&error) && path.exists() => {
            tracing::debug!(path = %path.display(), %error, "not replaceable; written in place");
            // Not emptied first: where there is no space for the new content, the old one had better stay.
            let mut file = OpenOptions::new().write(true).open(path)?;
            file.write_all(content)?;
            file.set_len(u64::try_from(content.len()).map_err(io::Error::other)?)?;
            file.sync_all()
        }
        other => other,
    }
}

fn read_record(path: &Path) -> Result<Option<FileRecord>, HostFault> {
    let failed = |error: io::Error| fault(format!("read {}", path.display()), error);
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
        Ok(json) => match serde_json::from_slice(&json) {
            Ok(record) => Ok(Some(record)),
            // It is written before the file is touched and appears whole: what cannot be read is not ours.
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "not a record of ours");
                Ok(None)
            }
        },
    }
}

fn write_record(path: &Path, record: &FileRecord) -> Result<(), HostFault> {
    let failed = |error| fault(format!("write {}", path.display()), error);
    let json = serde_json::to_vec_pretty(record).map_err(|error| failed(error.into()))?;
    state::write_atomically(path, &json, Owner::PRIVATE).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn composed(before: &str, domains: &[&str], full: bool) -> String {
        let domains: Vec<_> = domains.iter().map(|&domain| domain.to_owned()).collect();
        let servers = ["10.0.0.53".parse().unwrap(), "fd00::53".parse().unwrap()];
        let wanted = Wanted {
            interface: "peregrine0",
            index: 7,
            servers: &servers,
            domains: &domains,
            full,
        };
        let text = compose(before, Path::new("/record"), &wanted);
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .collect::<Vec<_>>()
            .join("|")
    }

    #[test]
    fn with_everything_in_the_tunnel_no_other_server_is_left() {
        let before = "# mine\nnameserver 192.0.2.1\nsearch home.arpa\noptions edns0\n";
        assert_eq!(
            composed(before, &[], true),
            "nameserver 10.0.0.53|nameserver fd00::53|search home.arpa|options edns0"
        );
    }

    #[test]
    fn with_a_part_in_the_tunnel_the_own_servers_are_the_reserve() {
        let before = "nameserver 192.0.2.1\nnameserver 192.0.2.2\ndomain home.arpa\n";
        assert_eq!(
            composed(before, &["corp.example", "home.arpa"], false),
            "nameserver 10.0.0.53|nameserver fd00::53|nameserver 192.0.2.1|search corp.example home.arpa"
        );
    }

    #[test]
    fn what_an_interrupted_write_left_is_ours() {
        let content = |text: &str| Content::new(text.into());
        let record = FileRecord {
            path: "/resolv.conf".into(),
            original: Some(Original {
                content: content("nameserver 192.0.2.1\noptions edns0\n"),
                owner: Owner::DEFAULT,
            }),
            written: content("nameserver 10.0.0.53\n"),
        };
        for ours in [
            "",
            "nameserver 10.",
            "nameserver 10.0.0.53\n",
            "nameserver 102.0.2.1\noptions edns0\n",
            "nameserver 10.0.0.53\noptions edns0\n",
        ] {
            assert!(record.wrote(ours.as_bytes()), "{ours}");
        }
        for theirs in ["nameserver 192.0.2.9\n", "nameserver 10.0.0.53\n# mine\n"] {
            assert!(!record.wrote(theirs.as_bytes()), "{theirs}");
        }
    }

    #[test]
    fn a_file_that_is_not_text_is_kept_to_the_octet() {
        let content = Content::new(vec![0xff, 0xfe, b'\n']);
        let json = serde_json::to_string(&content).unwrap();
        assert_eq!(
            serde_json::from_str::<Content>(&json).unwrap().octets(),
            [0xff, 0xfe, b'\n']
        );
    }
}
