//! The tunnel device (`/dev/net/tun`).
//!
//! Made by our own ioctl and not by a crate: what we need of it is one call, the device is configured through the
//! same rtnetlink socket as routes and rules, and the packet path wants the bare descriptor.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

use peregrine_core::command::HostFault;
use tokio::io::unix::AsyncFd;

use super::{Offloads, READING, fault, watch};
use crate::batch::Batch;
use crate::dataplane::coalesce::Offers;
use crate::dataplane::virtio;
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
    nix::ioctl_write_int_bad!(tun_set_offload, libc::TUNSETOFFLOAD);
}

/// A device that was made just now. It lives as long as a descriptor is open.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) name: String,
    pub(super) queue: Queue,
}

/// The descriptor of a device, and what was agreed with the kernel about it.
#[derive(Debug)]
pub(super) struct Queue {
    file: File,
    /// Each packet is preceded by a [`virtio::Header`].
    has_header: bool,
    offers: Offers,
}

impl Device {
    /// Makes a device of layer 3, without packet information, that does not block. It has no address and is down. Of
    /// `wanted` it has what the kernel knows.
    pub(super) fn create(wanted: Offloads) -> Result<Self, HostFault> {
        let wants_header = wanted.tso || wanted.tun_gro;
        let (name, file, has_header) = match Self::open(wants_header) {
            Ok((name, file)) => (name, file, wants_header),
            Err(error) if wants_header && !error.permission => {
                tracing::info!(%error, "the tunnel device has no offloads");
                let (name, file) = Self::open(false)?;
                (name, file, false)
            }
            Err(error) => return Err(error),
        };
        let offers = if has_header {
            negotiate(&file, wanted)
        } else {
            Offers::default()
        };
        Ok(Self {
            name,
            queue: Queue {
                file,
                has_header,
                offers,
            },
        })
    }

    fn open(has_header: bool) -> Result<(String, File), HostFault> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(|error| fault("open /dev/net/tun", error))?;
        let mut request = InterfaceRequest {
            name: [0; libc::IFNAMSIZ],
            flags: if has_header {
                TUN_FLAGS | VNET_HDR
            } else {
                TUN_FLAGS
            },
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
        Ok((name, file))
    }
}

/// Tells the kernel which large packets we take, and finds out which ones it takes. A kernel before 6.2 knows none of
/// UDP's.
fn negotiate(file: &File, wanted: Offloads) -> Offers {
    const TCP: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
    const UDP: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    let set = |offloads: libc::c_uint| {
        // SAFETY: TUNSETOFFLOAD takes a number and no pointer; the descriptor is open.
        unsafe { ioctl::tun_set_offload(file.as_raw_fd(), offloads.cast_signed()) }
    };
    let udp = set(TCP | UDP).is_ok();
    if !udp && let Err(error) = set(TCP) {
        tracing::info!(%error, "the tunnel device cuts large packets itself");
    }
    if !wanted.tso
        && let Err(error) = set(0)
    {
        tracing::warn!(%error, "the tunnel device may give large packets");
    }
    Offers {
        tcp: wanted.tun_gro,
        udp: wanted.tun_gro && udp,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "both flags are below 2^15")]
const TUN_FLAGS: libc::c_short = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
#[expect(clippy::cast_possible_truncation, reason = "it is below 2^15")]
const VNET_HDR: libc::c_short = libc::IFF_VNET_HDR as libc::c_short;

/// The tunnel device as the driver reads and writes it.
#[derive(Debug)]
pub struct Tun {
    file: AsyncFd<File>,
    has_header: bool,
    offers: Offers,
}

impl Tun {
    /// Registers a device with the runtime of the calling task.
    pub(super) fn new(queue: Queue) -> Result<Self, HostFault> {
        Ok(Self {
            file: watch(queue.file, READING).map_err(|error| fault("watch the tunnel device", error))?,
            has_header: queue.has_header,
            offers: queue.offers,
        })
    }

    /// Reads one packet: how many octets in all, how many of them are before the packet, and what is left to do with it.
    fn read(&self, room: &mut [u8]) -> io::Result<(usize, usize, virtio::Header)> {
        // In one piece: many packets are short, and then each turn counts that the kernel takes for more of them.
        let read = self.file.get_ref().read(room)?;
        Ok(match room.first_chunk() {
            Some(header) if self.has_header => (read, virtio::LEN, virtio::Header::from_octets(*header)),
            _ => (read, 0, virtio::Header::default()),
        })
    }
}

impl host::Tun for Tun {
    async fn recv(&self, batch: &mut Batch<virtio::Header>) -> io::Result<()> {
        while batch.is_empty() {
            let mut ready = self.file.ready(READING).await?;
            while let Some(room) = batch.room() {
                match self.read(room) {
                    Ok((len, before, header)) => batch.push_behind(before, len, header),
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

    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        // A packet is written whole or not at all.
        let parts = parts.get(usize::from(!self.has_header)..).unwrap_or_default();
        self.file.get_ref().write_vectored(parts).map(drop)
    }

    fn offers(&self) -> Offers {
        self.offers
    }
}
