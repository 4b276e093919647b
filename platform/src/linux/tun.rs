//! The tunnel device (`/dev/net/tun`).
//!
//! Made by our own ioctl and not by a crate: what we need of it is one call, the device is configured through the
//! same rtnetlink socket as routes and rules, and the packet path of a later release wants the bare descriptor.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

use peregrine_core::command::HostFault;
use tokio::io::unix::AsyncFd;

use super::{READING, fault, watch};
use crate::batch::Batch;
use crate::host;

/// The kernel puts the lowest free number in the place of `%d`.
const NAME_PATTERN: &[u8] = b"peregrine%d";

/// `struct ifreq` as TUNSETIFF reads and writes it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    /// The rest of the union, of which the kernel copies all 24 octets.
    rest: [u8; 22],
}

mod ioctl {
    // The request's number was given with the size of an int; what it points at is a `struct ifreq`.
    nix::ioctl_readwrite_bad!(tun_set_iff, libc::TUNSETIFF, super::InterfaceRequest);
}

/// A device that was made just now: its name and its descriptor. The device lives as long as a descriptor is open.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) file: File,
}

impl Device {
    /// Makes a device of layer 3, without packet information, that does not block. It has no address and is down.
    pub(super) fn create() -> Result<Self, HostFault> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(|error| fault("open /dev/net/tun", error))?;
        let mut request = InterfaceRequest {
            name: [0; libc::IFNAMSIZ],
            flags: TUN_FLAGS,
            rest: [0; 22],
        };
        for (to, from) in request.name.iter_mut().zip(NAME_PATTERN) {
            *to = *from;
        }
        // SAFETY: `request` has the size and layout of `struct ifreq`, which is what TUNSETIFF reads and writes, and
        // outlives the call; the descriptor is open.
        unsafe { ioctl::tun_set_iff(file.as_raw_fd(), &raw mut request) }
            .map_err(|error| fault("create the tunnel device", error))?;
        let name = request
            .name
            .iter()
            .take_while(|octet| **octet != 0)
            .map(|octet| char::from(*octet))
            .collect();
        Ok(Self { name, file })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "both flags are below 2^15")]
const TUN_FLAGS: libc::c_short = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;

/// The tunnel device as the driver reads and writes it.
#[derive(Debug)]
pub struct Tun(AsyncFd<File>);

impl Tun {
    /// Registers `file` with the runtime of the calling task.
    pub(super) fn new(file: File) -> Result<Self, HostFault> {
        watch(file)
            .map(Self)
            .map_err(|error| fault("watch the tunnel device", error))
    }
}

impl host::Tun for Tun {
    async fn recv(&self, batch: &mut Batch<()>) -> io::Result<()> {
        while batch.is_empty() {
            let mut ready = self.0.ready(READING).await?;
            while let Some(room) = batch.room() {
                match self.0.get_ref().read(room) {
                    Ok(len) => batch.push(len, ()),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        ready.clear_ready();
                        break;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                    // What was read before the device went away still counts.
                    Err(error) if batch.is_empty() => return Err(error),
                    Err(_) => break,
                }
            }
        }
        Ok(())
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        // A packet is written whole or not at all.
        self.0.get_ref().write(packet).map(drop)
    }
}
