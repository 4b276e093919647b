//! What the operating system leaves to whoever stands at the end of a tunnel device: cutting large packets into
//! segments and finishing their checksums on the way out, and putting segments together again on the way in.
//!
//! All of it is arithmetic on octets, the same for every system; the driver moves the packets.

pub mod checksum;
pub mod coalesce;
pub mod segment;
pub mod virtio;

#[cfg(test)]
mod sample;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
const TCP_HEADER: usize = 20;

/// IANA's protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Where TCP's and UDP's checksums lie in their headers.
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

/// Octets at `at`, when there are as many.
fn octets_at<const N: usize>(octets: &[u8], at: usize) -> Option<[u8; N]> {
    octets.get(at..)?.first_chunk().copied()
}

fn u16_at(octets: &[u8], at: usize) -> Option<u16> {
    octets_at(octets, at).map(u16::from_be_bytes)
}

fn u32_at(octets: &[u8], at: usize) -> Option<u32> {
    octets_at(octets, at).map(u32::from_be_bytes)
}

/// Writes octets at `at`, when there are as many.
fn put<const N: usize>(octets: &mut [u8], at: usize, value: [u8; N]) -> Option<()> {
    *octets.get_mut(at..)?.first_chunk_mut()? = value;
    Some(())
}
