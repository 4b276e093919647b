//! Kernel settings that the tunnel needs changed, and put back after it.
//!
//! With strict reverse-path filtering (`rp_filter` 1) the kernel drops a datagram from the gateway, because its
//! answer, which carries no mark yet, would go into the tunnel and not back by the interface on which it came. Loose
//! filtering (2) asks only that there is some way back. The mark cannot be restored on the way in without a
//! firewall (`src_valid_mark` alone does nothing for a datagram that carries none), so the filter is loosened where
//! it is strict, and only while the tunnel covers the gateway's own address. IPv6 has no such setting.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const DIRECTORY: &str = "/proc/sys/net/ipv4/conf";
const STRICT: &str = "1";
const LOOSE: &str = "2";

/// A setting as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Saved {
    path: PathBuf,
    before: String,
    after: String,
}

impl Saved {
    /// Changes the setting.
    pub(super) fn change(&self) -> io::Result<()> {
        fs::write(&self.path, &self.after)
    }

    /// Puts the setting back, unless somebody else has changed it meanwhile or its interface is gone.
    pub(super) fn put_back(&self) -> io::Result<()> {
        match read(&self.path) {
            Ok(now) if now == self.after => fs::write(&self.path, &self.before),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// What this changes, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// What must change so that the gateway's datagrams pass the filter. The filter of an interface is the larger of its
/// own setting and `all`'s; what comes out of the tunnel itself passes a strict one.
pub(super) fn strict_filters(tunnel: &str) -> io::Result<Vec<Saved>> {
    let all = setting("all");
    if read(&all)? == STRICT {
        // Also right for an interface that appears later.
        return Ok(vec![loosened(all)]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(DIRECTORY)? {
        let name = entry?.file_name();
        if name == "all" || name == "default" || name == "lo" || name == tunnel {
            continue;
        }
        let path = setting(&name);
        // An interface may vanish while we look.
        if read(&path).is_ok_and(|value| value == STRICT) {
            found.push(loosened(path));
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn setting(interface: impl AsRef<Path>) -> PathBuf {
    Path::new(DIRECTORY).join(interface).join("rp_filter")
}

fn loosened(path: PathBuf) -> Saved {
    Saved {
        path,
        before: STRICT.to_owned(),
        after: LOOSE.to_owned(),
    }
}

fn read(path: &Path) -> io::Result<String> {
    fs::read_to_string(path).map(|value| value.trim_end().to_owned())
}
