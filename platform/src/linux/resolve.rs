//! Looking up the gateway's name on the physical network.
//!
//! While there is no tunnel, the system does it. While there is one, the system would ask the tunnel's name servers,
//! or send its question into the tunnel, which may be just what does not work; so we ask those whom the system would
//! ask without us, beside the tunnel: systemd-resolved about the physical links, or the servers that `resolv.conf`
//! would name, from sockets with our mark. `/etc/hosts` comes first, as it does for the system.
//!
//! While the machine is locked, nobody but us gets an answer from outside: then we ask the servers themselves, also those of
//! systemd-resolved's list, whether there is a tunnel or not.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, ToSocketAddrs as _};
use std::str::FromStr as _;
use std::time::Duration;

use domain::base::iana::{Class, Rcode, Rtype};
use domain::base::{Message, MessageBuilder, Name, ToName as _};
use domain::rdata::{A, Aaaa};
use futures_util::StreamExt as _;
use futures_util::future::{Either, select};
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::{sleep, timeout};

use super::dns::{self, DnsSystem};
use super::netlink::Netlink;
use super::socket::{self, MARK};
use super::{Shared, Tunnel, route};

/// The system's resolver may take this long. (The C library asks its second server after five seconds.)
pub(super) const PATIENCE: Duration = Duration::from_secs(8);
/// Asking beside the tunnel may take this long.
const PATIENCE_BESIDE: Duration = Duration::from_secs(5);
/// One name server has this much head start over the next.
const HEAD_START: Duration = Duration::from_millis(400);
/// A question without an answer is asked again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Once the addresses of one family are known, those of the other have this long to follow.
const OTHER_FAMILY: Duration = Duration::from_millis(500);
/// As many servers as the C library asks.
const MOST_SERVERS: usize = 3;
/// The largest answer over UDP without further agreement (RFC 1035, section 2.3.4).
const LARGEST_UDP: usize = 512;
/// Addresses of each family that lie nowhere in particular (RFC 5737, RFC 3849): the way to them is the way out.
const ANYWHERE: [&str; 2] = ["198.51.100.1", "2001:db8::1"];

/// The addresses of `name`; none when it has none. Takes its time, but not more than [`PATIENCE_BESIDE`] where it is
/// not the system that looks.
pub(super) fn look_up(shared: &Shared, system: &DnsSystem, name: &str) -> io::Result<Vec<IpAddr>> {
    let tunnel = shared.tunnel().clone();
    let is_usable = tunnel
        .as_ref()
        .is_none_or(|tunnel| is_system_usable(tunnel, system));
    match tunnel {
        tunnel if shared.is_locked() || !is_usable => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let addresses =
                async { timeout(PATIENCE_BESIDE, beside(shared, tunnel.as_ref(), system, name)).await };
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no name server answered in time");
            runtime.block_on(addresses).map_err(late)?
        }
        _ => by_system(name),
    }
}

fn by_system(name: &str) -> io::Result<Vec<IpAddr>> {
    let mut found = Vec::new();
    for address in (name, 0).to_socket_addrs()? {
        if !found.contains(&address.ip()) {
            found.push(address.ip());
        }
    }
    Ok(found)
}

/// Whether the system's resolver asks neither our name servers nor through our tunnel.
fn is_system_usable(tunnel: &Tunnel, system: &DnsSystem) -> bool {
    let text = || dns::read_to_string(&system.resolv_conf).unwrap_or_default();
    tunnel.replaced.is_none()
        && dns::servers(&text()).all(|server| server.is_loopback() || !route::keeps(&tunnel.config, server))
}

async fn beside(
    shared: &Shared,
    tunnel: Option<&Tunnel>,
    system: &DnsSystem,
    name: &str,
) -> io::Result<Vec<IpAddr>> {
    let in_file = in_hosts(&dns::read_to_string(&system.hosts).unwrap_or_default(), name);
    if !in_file.is_empty() {
        return Ok(in_file);
    }
    let replaced = tunnel.and_then(|tunnel| tunnel.replaced.as_ref());
    if let Some(tunnel) = tunnel
        && !shared.is_locked()
        && replaced.is_some_and(dns::Replaced::is_resolved)
    {
        let mut answered = false;
        for link in physical_links(shared, tunnel) {
            match dns::ask_resolved(system, link, name).await {
                Ok(addresses) if !addresses.is_empty() => return Ok(addresses),
                Ok(_) => answered = true,
                Err(error) => tracing::debug!(link, %error, "systemd-resolved did not find the name"),
            }
        }
        if answered {
            return Ok(Vec::new());
        }
    }
    let text = match replaced {
        Some(replaced) => replaced.resolv_conf(system),
        None => dns::upstream(system),
    };
    ask_in_turn(&servers(&text), &candidates(&text, name)).await
}

/// The links by which datagrams beside the tunnel leave, those to the gateway's addresses first.
fn physical_links(shared: &Shared, tunnel: &Tunnel) -> Vec<u32> {
    let anywhere = ANYWHERE.iter().filter_map(|address| address.parse().ok());
    let gateways: Vec<IpAddr> = shared.gateways().addresses().collect();
    let mut links = Vec::new();
    let Ok(mut netlink) = Netlink::open() else {
        return links;
    };
    for address in gateways.into_iter().rev().chain(anywhere) {
        if let Ok(Some(link)) = netlink.way_out(address, MARK)
            && link != tunnel.index
            && !links.contains(&link)
        {
            links.push(link);
        }
    }
    links
}

/// What hosts(5) says about a name.
fn in_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let address = words.next().and_then(|word| word.parse().ok());
        if let Some(address) = address
            && words.any(|word| word.eq_ignore_ascii_case(name.trim_end_matches('.')))
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

/// The servers of a `resolv.conf`, those on a link with the link.
fn servers(text: &str) -> Vec<SocketAddr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let address = (words.next() == Some("nameserver")).then(|| words.next())??;
        match address.split_once('%') {
            None => Some(SocketAddr::new(address.parse().ok()?, 53)),
            Some((address, link)) => {
                let index = nix::net::if_::if_nametoindex(link).ok()?;
                Some(SocketAddrV6::new(address.parse().ok()?, 53, 0, index).into())
            }
        }
    });
    addresses.take(MOST_SERVERS).collect()
}

/// What to ask for: a name without a dot is completed by the search list first (resolv.conf(5)).
fn candidates(text: &str, name: &str) -> Vec<String> {
    let mut candidates = Vec::new();
    if !name.contains('.') {
        let search = text
            .lines()
            .rfind(|line| line.starts_with("search") || line.starts_with("domain"));
        let domains = search.unwrap_or_default().split_ascii_whitespace().skip(1);
        candidates.extend(domains.map(|domain| format!("{name}.{domain}")));
    }
    candidates.push(name.to_owned());
    candidates
}

/// The addresses of the first of `names` that has any.
async fn ask_in_turn(servers: &[SocketAddr], names: &[String]) -> io::Result<Vec<IpAddr>> {
    let mut outcome = Ok(Vec::new());
    for name in names {
        outcome = ask_any(servers, name).await;
        if outcome.as_ref().is_ok_and(|addresses| !addresses.is_empty()) {
            break;
        }
    }
    outcome
}

/// The first answer of any server: one of a network that was left does not answer, and must not hold us up.
async fn ask_any(servers: &[SocketAddr], name: &str) -> io::Result<Vec<IpAddr>> {
    let name = Name::<Vec<u8>>::from_str(name).map_err(io::Error::other)?;
    let mut asking: FuturesUnordered<_> = (0..)
        .zip(servers)
        .map(|(place, server)| {
            let name = &name;
            async move {
                sleep(HEAD_START * place).await;
                ask(*server, name).await
            }
        })
        .collect();
    let mut outcome = Err(io::Error::other("no name server is known beside the tunnel"));
    while let Some(answer) = asking.next().await {
        outcome = answer;
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// The addresses of both families, those first that there is a way to.
async fn ask(server: SocketAddr, name: &Name<Vec<u8>>) -> io::Result<Vec<IpAddr>> {
    let (v4, v6) = (
        Box::pin(question(server, name, Rtype::A)),
        Box::pin(question(server, name, Rtype::AAAA)),
    );
    let (first, other) = match select(v4, v6).await {
        Either::Left((first, other)) | Either::Right((first, other)) => (first, other),
    };
    let has_some = first.as_ref().is_ok_and(|addresses| !addresses.is_empty());
    let patience = if has_some { OTHER_FAMILY } else { PATIENCE_BESIDE };
    let other = timeout(patience, other).await;
    let other = other.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let mut all = match (first, other) {
        (Ok(first), Ok(other)) => [first, other].concat(),
        // Of a family that could not be asked about, nothing is known: no answer beats "none".
        (Ok(some), Err(_)) | (Err(_), Ok(some)) if !some.is_empty() => some,
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    let mut netlink = Netlink::open()?;
    all.sort_by_key(|address| {
        let has_way = socket::way(&mut netlink, SocketAddr::new(*address, 500)).is_ok();
        (!has_way, address.is_ipv4())
    });
    Ok(all)
}

/// The answer to one question (RFC 1035, section 4): over UDP, and over TCP when it does not fit.
async fn question(server: SocketAddr, name: &Name<Vec<u8>>, kind: Rtype) -> io::Result<Vec<IpAddr>> {
    let mut id = [0; 2];
    getrandom::fill(&mut id).map_err(io::Error::other)?;
    let mut message = MessageBuilder::new_vec();
    message.header_mut().set_id(u16::from_be_bytes(id));
    message.header_mut().set_rd(true);
    let mut message = message.question();
    message.push((name, kind, Class::IN)).map_err(io::Error::other)?;
    let message = message.into_message();

    let answer = over_udp(server, &message).await?;
    if answer.header().tc() {
        return read(&over_tcp(server, &message).await?);
    }
    read(&answer)
}

type Octets = Message<Vec<u8>>;

async fn over_udp(server: SocketAddr, question: &Octets) -> io::Result<Octets> {
    let socket = UdpSocket::from_std(socket::marked_udp(server)?.into())?;
    // Connected: nobody else's datagrams come in. The port is the kernel's choice, and hard to guess.
    socket.connect(server).await?;
    loop {
        socket.send(question.as_slice()).await?;
        let answer = async {
            loop {
                let mut octets = vec![0; LARGEST_UDP];
                let len = socket.recv(&mut octets).await?;
                octets.truncate(len);
                // Whatever is no answer to this question is none of ours.
                if let Ok(answer) = Message::from_octets(octets)
                    && answer.is_answer(question)
                {
                    return Ok::<_, io::Error>(answer);
                }
            }
        };
        if let Ok(answer) = timeout(ASK_AGAIN, answer).await {
            return answer;
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &Octets) -> io::Result<Octets> {
    let socket = TcpSocket::from_std_stream(socket::marked_tcp(server)?.into());
    let mut stream = socket.connect(server).await?;
    let len = u16::try_from(question.as_slice().len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&len.to_be_bytes(), question.as_slice()].concat())
        .await?;
    let mut octets = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut octets).await?;
    let answer = Message::from_octets(octets).map_err(io::Error::other)?;
    if answer.is_answer(question) {
        Ok(answer)
    } else {
        Err(io::Error::other("the name server answered another question"))
    }
}

/// The addresses in an answer; none when the name has none of the kind asked for.
fn read(answer: &Octets) -> io::Result<Vec<IpAddr>> {
    match answer.header().rcode() {
        Rcode::NOERROR => {}
        Rcode::NXDOMAIN => return Ok(Vec::new()),
        refusal => return Err(io::Error::other(format!("the name server says {refusal}"))),
    }
    let Some(canonical) = answer.canonical_name() else {
        return Err(io::Error::other("the name leads in a circle"));
    };
    let records = answer.answer().map_err(io::Error::other)?;
    let v4 = records.limit_to_in::<A>().filter_map(Result::ok);
    let v4 = v4.filter(|record| record.owner().name_eq(&canonical));
    let v6 = records.limit_to_in::<Aaaa>().filter_map(Result::ok);
    let v6 = v6.filter(|record| record.owner().name_eq(&canonical));
    Ok(v4
        .map(|record| IpAddr::from(record.data().addr()))
        .chain(v6.map(|record| IpAddr::from(record.data().addr())))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_by_any_of_their_names() {
        let text = "127.0.0.1 localhost\n# 192.0.2.9 vpn.example\n192.0.2.1\tvpn.example  vpn # mine\n2001:db8::1 VPN.example\nvpn.example\n";
        let of = |name| in_hosts(text, name);
        let both: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(of("vpn.example"), both);
        assert_eq!(of("Vpn.Example."), both);
        assert_eq!(of("vpn"), both[..1]);
        assert!(of("mine").is_empty() && of("other.example").is_empty());
    }

    #[test]
    fn servers_on_a_link_keep_it() {
        let text = "nameserver 192.0.2.53\nnameserver fe80::1%lo\nnameserver fe80::1%gone\nnameserver 2001:db8::53 \n";
        let servers: Vec<_> = servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.53:53", "[fe80::1%1]:53", "[2001:db8::53]:53"]);
    }

    #[test]
    fn a_short_name_is_completed_first() {
        let text = "search a.example b.example\n";
        assert_eq!(candidates(text, "vpn"), ["vpn.a.example", "vpn.b.example", "vpn"]);
        assert_eq!(candidates(text, "vpn.example"), ["vpn.example"]);
        assert_eq!(candidates("", "vpn"), ["vpn"]);
    }
}
