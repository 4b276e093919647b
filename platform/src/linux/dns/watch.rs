//! Noticing that somebody writes `/etc/resolv.conf`, as a DHCP client does on a new network.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::future::pending;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

use super::{DnsSystem, file};
use crate::linux::{READING, watch};

/// Watches the folders of the file and of what it is a link to: a file that is replaced is another file.
#[derive(Debug)]
pub(in crate::linux) struct Watch {
    inotify: Inotify,
    /// The same, as something to wait for.
    ready: AsyncFd<File>,
    resolv_conf: PathBuf,
    names: BTreeSet<OsString>,
}

impl Watch {
    /// None where the kernel does not tell.
    pub(in crate::linux) fn new(system: &DnsSystem) -> Option<Self> {
        let watching = Self::try_new(&system.resolv_conf);
        watching
            .inspect_err(|error| tracing::debug!(%error, "a change of the name servers will not be noticed"))
            .ok()
    }

    fn try_new(resolv_conf: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let file = inotify.as_fd().try_clone_to_owned().map(File::from)?;
        let mut watching = Self {
            inotify,
            ready: watch(file, READING)?,
            resolv_conf: resolv_conf.to_owned(),
            names: BTreeSet::new(),
        };
        watching.add();
        Ok(watching)
    }

    /// Watches where the file is now. Where that is already so, nothing changes.
    fn add(&mut self) {
        let target = file::target(&self.resolv_conf).ok();
        for path in target.iter().chain([&self.resolv_conf]) {
            if let (Some(folder), Some(name)) = (path.parent(), path.file_name()) {
                // The folder that is there is enough.
                let _missing = self.inotify.add_watch(
                    folder,
                    AddWatchFlags::IN_CLOSE_WRITE
                        | AddWatchFlags::IN_CREATE
                        | AddWatchFlags::IN_DELETE
                        | AddWatchFlags::IN_MOVE,
                );
                self.names.insert(name.to_owned());
            }
        }
    }

    /// Waits until somebody, maybe we, wrote the file.
    pub(in crate::linux) async fn changed(&mut self) {
        loop {
            let Ok(mut ready) = self.ready.readable().await else {
                return pending().await;
            };
            match self.inotify.read_events() {
                Ok(events) => {
                    let mut names = events.into_iter().filter_map(|event| event.name);
                    if names.any(|name| self.names.contains(&name)) {
                        break;
                    }
                }
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(error) => {
                    tracing::debug!(%error, "a change of the name servers will not be noticed any more");
                    return pending().await;
                }
            }
        }
        // It may lead elsewhere now.
        self.add();
    }
}
