//! What really passes an interface, by tcpdump.

use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{finish, text, wait};

/// A capture that runs until it is ended.
pub struct Capture {
    tcpdump: Child,
    /// What it says when it ends.
    rest: Option<std::thread::JoinHandle<String>>,
    path: PathBuf,
}

/// One frame on the wire, as far as the tests tell frames apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// ARP.
    Arp,
    /// ICMPv6 of neighbour discovery (types 133 to 137) or of multicast listeners (130 to 132, 143).
    Neighbours,
    /// A UDP datagram that is not a fragment.
    Udp {
        /// From where.
        source: (IpAddr, u16),
        /// To where.
        destination: (IpAddr, u16),
        /// What is in it.
        payload: Vec<u8>,
    },
    /// Anything else; the text says what.
    Other(String),
}

impl Capture {
    pub(super) fn start(mut command: Command, interface: &str, path: PathBuf, octets: &str) -> Self {
        let mut tcpdump = command
            .args([
                "-i",
                interface,
                "-n",
                "-U",
                "--immediate-mode",
                // KiB.
                "-B",
                "65536",
                "-Z",
                "root",
                "-s",
                octets,
                "-w",
            ])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tcpdump can be run");
        // It says "listening on" when from now on nothing is missed.
        let stderr = tcpdump.stderr.take().expect("the standard error is a pipe");
        let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
        assert!(
            lines.any(|line| line.contains("listening on")),
            "tcpdump does not listen on {interface}"
        );
        let rest = std::thread::spawn(move || lines.collect::<Vec<_>>().join("\n"));
        Self {
            tcpdump,
            rest: Some(rest),
            path,
        }
    }

    /// Ends the capture and returns its file.
    ///
    /// # Panics
    /// When tcpdump does not end.
    pub fn end(mut self) -> PathBuf {
        // A frame takes a moment from the wire to the file.
        std::thread::sleep(Duration::from_millis(300));
        let _ = Command::new("kill")
            .args(["-s", "INT", &self.tcpdump.id().to_string()])
            .status();
        assert!(
            wait(&mut self.tcpdump, Duration::from_secs(10)).is_some(),
            "tcpdump does not end"
        );
        let said = self.rest.take().and_then(|it| it.join().ok()).unwrap_or_default();
        assert!(
            said.contains("\n0 packets dropped by kernel"),
            "what tcpdump missed proves nothing: {said}"
        );
        self.path.clone()
    }

    /// Ends the capture and returns its frames.
    ///
    /// # Panics
    /// When the file is not what tcpdump writes.
    pub fn frames(self) -> Vec<Frame> {
        let bytes = std::fs::read(self.end()).expect("tcpdump writes its file");
        frames(&bytes).expect("tcpdump writes pcap files in this machine's byte order")
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}

/// What tshark makes of a capture: the given fields of each frame that `filter` lets through, one line each.
///
/// # Panics
/// When tshark fails.
pub fn tshark(capture: &std::path::Path, filter: &str, fields: &[&str]) -> Vec<String> {
    let mut command = Command::new("tshark");
    command
        .args(["-n", "-r"])
        .arg(capture)
        .args(["-Y", filter, "-T", "fields"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = finish(&mut command, Duration::from_secs(60));
    assert!(output.status.success(), "tshark: {}", text(&output.stderr));
    text(&output.stdout).lines().map(str::to_owned).collect()
}

/// The octets of the first TCP connection in a capture as tshark puts them together, from whoever began it and from the
/// other, without what was sent twice.
///
/// # Panics
/// When tshark fails.
pub fn tcp_stream(capture: &std::path::Path) -> [Vec<u8>; 2] {
    let mut command = Command::new("tshark");
    command
        .args(["-n", "-r"])
        .arg(capture)
        .args(["-q", "-z", "follow,tcp,raw,0"]);
    let output = finish(&mut command, Duration::from_secs(60));
    assert!(output.status.success(), "tshark: {}", text(&output.stderr));
    let mut streams = [Vec::new(), Vec::new()];
    for line in text(&output.stdout).lines() {
        let (side, digits) = match line.strip_prefix('\t') {
            Some(digits) => (1, digits),
            None => (0, line),
        };
        let pairs = digits.as_bytes().chunks(2).map(|pair| {
            let pair = std::str::from_utf8(pair).ok()?;
            u8::from_str_radix(pair, 16).ok()
        });
        // The other lines are a frame around it.
        if let Some(octets) = pairs.collect::<Option<Vec<u8>>>() {
            streams[side].extend(octets);
        }
    }
    streams
}

/// Writes a capture in which these are UDP payloads between two ports 4500.
///
/// # Panics
/// When the file cannot be written.
pub fn write_udp(path: &std::path::Path, payloads: &[Vec<u8>]) {
    // Link type 101: IP without anything before it.
    let mut file = [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 0x0004_0000, 101]
        .map(u32::to_ne_bytes)
        .concat();
    for payload in payloads {
        let udp = u16::try_from(8 + payload.len()).expect("a datagram");
        let total = (20 + udp).to_be_bytes();
        let mut packet = vec![0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, 17, 0, 0];
        packet.extend([10, 0, 0, 1, 10, 0, 0, 2, 0x11, 0x94, 0x11, 0x94]);
        packet.extend([&udp.to_be_bytes()[..], &[0, 0], payload].concat());
        let length = u32::try_from(packet.len()).expect("a packet").to_ne_bytes();
        file.extend([[0; 4], [0; 4], length, length].concat());
        file.extend(packet);
    }
    std::fs::write(path, file).expect("the capture can be written");
}

/// The frames of a pcap file (magic 0xa1b2c3d4, link type Ethernet); none when it is not one of this machine's byte order.
pub fn frames(file: &[u8]) -> Option<Vec<Frame>> {
    let (header, mut rest) = file.split_at_checked(24)?;
    if header.get(..4)? != 0xa1b2_c3d4_u32.to_ne_bytes() || header.get(20..)? != 1_u32.to_ne_bytes() {
        return None;
    }
    let mut frames = Vec::new();
    while let Some((record, after)) = rest.split_at_checked(16) {
        let length = u32::from_ne_bytes(record.get(8..12)?.try_into().ok()?);
        let (frame, after) = after.split_at_checked(usize::try_from(length).ok()?)?;
        frames.push(classify(frame).unwrap_or_else(|| Frame::Other(format!("{frame:02x?}"))));
        rest = after;
    }
    Some(frames)
}

fn classify(frame: &[u8]) -> Option<Frame> {
    let packet = frame.get(14..)?;
    match frame.get(12..14)? {
        [0x08, 0x06] => Some(Frame::Arp),
        [0x08, 0x00] => ipv4(packet),
        [0x86, 0xdd] => ipv6(packet),
        kind => Some(Frame::Other(format!("EtherType {kind:02x?}"))),
    }
}

fn ipv4(packet: &[u8]) -> Option<Frame> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
    let fragment = u16::from_be_bytes(packet.get(6..8)?.try_into().ok()?) & 0x3fff != 0;
    let source = IpAddr::from(<[u8; 4]>::try_from(packet.get(12..16)?).ok()?);
    let destination = IpAddr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?);
    let protocol = *packet.get(9)?;
    if fragment || protocol != 17 {
        return Some(other(
            protocol,
            fragment,
            source,
            destination,
            packet.get(header..)?,
        ));
    }
    udp(packet.get(header..total)?, source, destination)
}

fn ipv6(packet: &[u8]) -> Option<Frame> {
    let source = IpAddr::from(<[u8; 16]>::try_from(packet.get(8..24)?).ok()?);
    let destination = IpAddr::from(<[u8; 16]>::try_from(packet.get(24..40)?).ok()?);
    let length = usize::from(u16::from_be_bytes(packet.get(4..6)?.try_into().ok()?));
    let body = packet.get(40..40 + length)?;
    match *packet.get(6)? {
        17 => udp(body, source, destination),
        58 if matches!(body.first()?, 130..=137 | 143) => Some(Frame::Neighbours),
        // Multicast listener reports come behind a hop-by-hop header with the router alert option.
        0 if body.first() == Some(&58) && matches!(body.get(8)?, 130..=132 | 143) => Some(Frame::Neighbours),
        protocol => Some(other(protocol, protocol == 44, source, destination, body)),
    }
}

fn other(protocol: u8, fragment: bool, source: IpAddr, destination: IpAddr, payload: &[u8]) -> Frame {
    let kind = if fragment { "a fragment of " } else { "" };
    let detail = match (protocol, payload) {
        _ if fragment => String::new(),
        (6, [_, _, high, low, ..]) => format!(", port {}", u16::from_be_bytes([*high, *low])),
        (1 | 58, [kind, ..]) => format!(", type {kind}"),
        _ => String::new(),
    };
    Frame::Other(format!(
        "{kind}IP protocol {protocol} from {source} to {destination}{detail}"
    ))
}

fn udp(datagram: &[u8], source: IpAddr, destination: IpAddr) -> Option<Frame> {
    let port = |at: usize| Some(u16::from_be_bytes(datagram.get(at..at + 2)?.try_into().ok()?));
    let payload = datagram.get(8..)?.to_vec();
    Some(Frame::Udp {
        source: (source, port(0)?),
        destination: (destination, port(2)?),
        payload,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(frame: &[u8]) -> Vec<u8> {
        let mut file = 0xa1b2_c3d4_u32.to_ne_bytes().to_vec();
        file.extend([0; 16]);
        file.extend(1_u32.to_ne_bytes());
        let length = u32::try_from(frame.len()).unwrap().to_ne_bytes();
        file.extend([[0; 4], [0; 4], length, length].concat());
        file.extend(frame);
        file
    }

    fn ethernet(kind: u16, packet: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend(kind.to_be_bytes());
        frame.extend(packet);
        frame
    }

    /// An IPv4 packet of 31 octets: a header of 20, UDP from 4500 to 500, 3 octets.
    fn ipv4_packet(protocol: u8, fragment: [u8; 2]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 31, 0, 0, fragment[0], fragment[1], 64, protocol, 0, 0];
        packet.extend([
            10, 0, 0, 1, 10, 0, 0, 2, 0x11, 0x94, 0x01, 0xf4, 0, 11, 0, 0, 7, 8, 9,
        ]);
        packet
    }

    fn one(frame: &[u8]) -> Frame {
        frames(&capture(frame)).unwrap().pop().unwrap()
    }

    #[test]
    fn a_udp_datagram_is_told_with_its_ends_and_without_ethernet_padding() {
        let mut frame = ethernet(0x0800, &ipv4_packet(17, [0x40, 0]));
        frame.extend([0; 15]);
        let (source, destination) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let udp = Frame::Udp {
            source: (source, 4500),
            destination: (destination, 500),
            payload: vec![7, 8, 9],
        };
        assert_eq!(one(&frame), udp);
    }

    #[test]
    fn fragments_and_other_protocols_are_something_else() {
        for packet in [
            ipv4_packet(17, [0x20, 0]),
            ipv4_packet(17, [0, 1]),
            ipv4_packet(6, [0, 0]),
        ] {
            assert!(
                matches!(one(&ethernet(0x0800, &packet)), Frame::Other(_)),
                "{packet:?}"
            );
        }
        assert!(matches!(one(&ethernet(0x88cc, &[])), Frame::Other(_)));
    }

    #[test]
    fn only_neighbour_discovery_is_allowed_of_icmpv6() {
        let packet = |kind: u8| [&[0x60, 0, 0, 0, 0, 4, 58, 255][..], &[0; 32], &[kind, 0, 0, 0]].concat();
        assert_eq!(one(&ethernet(0x86dd, &packet(135))), Frame::Neighbours);
        assert!(matches!(one(&ethernet(0x86dd, &packet(128))), Frame::Other(_)));
        assert_eq!(one(&ethernet(0x0806, &[0; 28])), Frame::Arp);
    }
}
