//! The first Child SA: what we ask for, what the gateway granted, and what is made of it (RFC 7296, sections 2.9,
//! 2.17 and 2.19).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::keys::{ChildKeys, Nonces, Role, SaKeys, SharedSecrets};
use super::{error_notify, is_private};
use crate::command::{Cause, Traffic};
use crate::crypto::CryptoError;
use crate::esp::{Inbound, Outbound, Selectors};
use crate::profile::{DnsPolicy, Profile};
use crate::proposal::{self, EspSuite};
use crate::rng::Rng;
use crate::wire::iana::{CfgAttr, CfgType, NotifyType};
use crate::wire::{Cp, EspSpi, Payload, TrafficSelector, Ts};

/// More addresses, servers, domains or routes than these are cut off: nobody needs them, and each costs the machine.
const MAX_ADDRESSES: usize = 8;
const MAX_SERVERS: usize = 8;
const MAX_DOMAINS: usize = 64;
const MAX_ROUTES: usize = 256;
/// SPIs below are reserved (RFC 4303, section 2.1).
const FIRST_SPI: u32 = 256;

/// What we ask for.
pub(super) struct ChildOffer {
    /// What the gateway shall send with.
    pub(super) spi: EspSpi,
    pub(super) local: Vec<TrafficSelector>,
    pub(super) remote: Vec<TrafficSelector>,
}

impl ChildOffer {
    /// Anything of ours, which the gateway narrows to the addresses that it assigns, to all that the profile wants.
    pub(super) fn new(profile: &Profile, rng: &mut Rng) -> Self {
        let wanted = profile.child.remote_ts.iter();
        let remote = wanted
            .map(|net| TrafficSelector::addresses(net.network(), net.broadcast()))
            .collect();
        Self {
            spi: new_spi(rng),
            local: vec![TrafficSelector::ANY_V4, TrafficSelector::ANY_V6],
            remote,
        }
    }
}

/// A random SPI for packets to us.
pub(super) fn new_spi(rng: &mut Rng) -> EspSpi {
    EspSpi(FIRST_SPI.saturating_add(u32::from_be_bytes(rng.bytes()) % (u32::MAX - FIRST_SPI)))
}

/// Both directions of a Child SA.
pub(crate) struct ChildSa {
    pub(crate) outbound: Outbound,
    pub(crate) inbound: Inbound,
    pub(crate) suite: EspSuite,
    pub(crate) selectors: Arc<Selectors>,
    pub(crate) inbound_spi: EspSpi,
    pub(crate) outbound_spi: EspSpi,
}

impl ChildSa {
    /// Both directions from the keys of the IKE SA. `shared`, `nonces` and `role` are those of the exchange that made
    /// the child, `spis` the inbound and the outbound one.
    pub(super) fn make(
        keys: &SaKeys,
        shared: Option<&SharedSecrets>,
        nonces: &Nonces,
        role: Role,
        suite: EspSuite,
        spis: (EspSpi, EspSpi),
        selectors: Arc<Selectors>,
    ) -> Result<Self, CryptoError> {
        let (inbound_spi, outbound_spi) = spis;
        let ChildKeys { outbound, inbound } = keys.child_keys(suite.cipher, shared, nonces, role)?;
        Ok(Self {
            outbound: Outbound::new(outbound_spi, outbound, suite.esn, Arc::clone(&selectors)),
            inbound: Inbound::new(inbound_spi, inbound, suite.esn, Arc::clone(&selectors)),
            suite,
            selectors,
            inbound_spi,
            outbound_spi,
        })
    }

    /// What went through, both ways.
    pub(crate) fn traffic(&self) -> Traffic {
        let (sent, received) = (self.outbound.counters(), self.inbound.counters());
        let mut dropped = BTreeMap::new();
        for (reason, count) in sent
            .by_reason()
            .chain(received.by_reason())
            .filter(|(_, count)| *count > 0)
        {
            *dropped.entry(reason).or_default() += count;
        }
        Traffic {
            tx_bytes: sent.octets,
            rx_bytes: received.octets,
            tx_packets: sent.packets,
            rx_packets: received.packets,
            dropped,
        }
    }
}

/// What the gateway's CFG_REPLY assigns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Assigned {
    pub(crate) addresses: Vec<IpNet>,
    pub(crate) servers: Vec<IpAddr>,
    pub(crate) domains: Vec<String>,
}

/// What the machine has to do for the child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InnerNetwork {
    pub(crate) assigned: Assigned,
    pub(crate) routes: BTreeSet<IpNet>,
    /// What the profile wants inside but the gateway cannot carry, for want of an address of that family.
    pub(crate) refused: BTreeSet<IpNet>,
}

/// A finished child with its surroundings.
pub(super) struct Made {
    pub(super) child: ChildSa,
    pub(super) network: InnerNetwork,
}

/// Makes the child of the last IKE_AUTH response.
pub(super) fn conclude(
    profile: &Profile,
    offer: ChildOffer,
    payloads: &[Payload<'_>],
    keys: &SaKeys,
    nonces: &Nonces,
) -> Result<Made, Cause> {
    let (mut sa, mut local, mut remote, mut reply) = (None, None, None, None);
    for payload in payloads {
        match payload {
            Payload::Sa(proposals) => sa = Some(proposals),
            Payload::TsInitiator(selectors) => local = Some(selectors),
            Payload::TsResponder(selectors) => remote = Some(selectors),
            Payload::Cp(cp) if cp.kind == CfgType::REPLY => reply = Some(cp),
            _ => {}
        }
    }
    let complete = sa.is_some() && local.is_some() && remote.is_some();
    // A private notify beside a complete child is none of our business.
    if let Some(error) = error_notify(payloads).filter(|error| !complete || !is_private(*error)) {
        return Err(refusal(error).unwrap_or(Cause::ChildRefused(error)));
    }
    let broken = |what: String| Cause::ChildProtocol(what);
    let (Some(sa), Some(local), Some(remote)) = (sa, local, remote) else {
        return Err(broken("SA, TSi or TSr is missing".into()));
    };
    let (suite, outbound_spi) = proposal::select_esp(&profile.child.proposals, sa, false)
        .map_err(|error| broken(error.to_string()))?;
    let assigned = reply.map(assigned).transpose()?.unwrap_or_default();
    if assigned.addresses.is_empty() {
        return Err(Cause::NoInnerAddress);
    }
    let (selectors, network) = narrow(profile, &ranges(local)?, &ranges(remote)?, assigned)?;
    let selectors = Arc::new(selectors);
    let spis = (offer.spi, outbound_spi);
    let child = ChildSa::make(keys, None, nonces, Role::Initiator, suite, spis, selectors)
        .map_err(|error| Cause::ChildProtocol(error.to_string()))?;
    Ok(Made { child, network })
}

/// What an error about the Child SA means, if it is about the Child SA.
pub(super) fn refusal(error: NotifyType) -> Option<Cause> {
    match error {
        NotifyType::NO_PROPOSAL_CHOSEN => Some(Cause::NoChildProposal),
        NotifyType::TS_UNACCEPTABLE => Some(Cause::SelectorsRefused),
        NotifyType::INTERNAL_ADDRESS_FAILURE | NotifyType::FAILED_CP_REQUIRED => Some(Cause::NoInnerAddress),
        NotifyType::SINGLE_PAIR_REQUIRED | NotifyType::NO_ADDITIONAL_SAS => Some(Cause::ChildRefused(error)),
        _ => None,
    }
}

/// The gateway's CFG_REPLY (RFC 7296, section 3.15). Unknown attributes are skipped; an address that no host can have
/// is an error.
fn assigned(reply: &Cp<'_>) -> Result<Assigned, Cause> {
    let mut assigned = Assigned::default();
    for attribute in &reply.attributes {
        match (attribute.kind, address(attribute.value)) {
            (CfgAttr::INTERNAL_IP4_ADDRESS, Some(ip @ IpAddr::V4(_)))
            | (CfgAttr::INTERNAL_IP6_ADDRESS, Some(ip @ IpAddr::V6(_))) => {
                if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip == Ipv4Addr::BROADCAST {
                    return Err(Cause::ChildProtocol(format!(
                        "the gateway assigned the address {ip}"
                    )));
                }
                push(&mut assigned.addresses, IpNet::from(ip), MAX_ADDRESSES);
            }
            (CfgAttr::INTERNAL_IP4_DNS, Some(ip @ IpAddr::V4(_)))
            | (CfgAttr::INTERNAL_IP6_DNS, Some(ip @ IpAddr::V6(_)))
                if !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() =>
            {
                push(&mut assigned.servers, ip, MAX_SERVERS);
            }
            (CfgAttr::INTERNAL_DNS_DOMAIN, _) => {
                if let Some(domain) = domain(attribute.value) {
                    push(&mut assigned.domains, domain, MAX_DOMAINS);
                }
            }
            _ => {}
        }
    }
    Ok(assigned)
}

fn push<T: PartialEq>(list: &mut Vec<T>, value: T, max: usize) {
    if list.len() < max && !list.contains(&value) {
        list.push(value);
    }
}

/// 4 octets, 16, or 16 and a prefix length that says nothing about our own address.
fn address(value: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(octets.into());
    }
    let octets = value.get(..16).filter(|_| value.len() <= 17)?;
    <[u8; 16]>::try_from(octets).ok().map(IpAddr::from)
}

/// A domain that may be looked up through the tunnel (RFC 8598, section 3): A-labels, at least two of them.
fn domain(value: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(value)
        .ok()?
        .trim_end_matches('.')
        .to_ascii_lowercase();
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && label
                .bytes()
                .all(|octet| octet.is_ascii_alphanumeric() || octet == b'-' || octet == b'_')
    };
    let special = ["local", "localhost", "invalid", "onion"];
    let fits = text.len() <= 253
        && text.contains('.')
        && text.split('.').all(is_label)
        && !special.iter().any(|name| text.rsplit('.').next() == Some(*name));
    fits.then_some(text)
}

pub(super) fn ranges(selectors: &[Ts<'_>]) -> Result<Vec<TrafficSelector>, Cause> {
    let range = |selector: &Ts<'_>| match selector {
        Ts::Range(range) => Ok(*range),
        // We offered address ranges only.
        Ts::Unknown { .. } => Err(Cause::SelectorsNotSubset),
    };
    selectors.iter().map(range).collect()
}

/// Compares what the gateway granted with what we asked for, and never takes more (RFC 7296, section 2.9).
fn narrow(
    profile: &Profile,
    local: &[TrafficSelector],
    remote: &[TrafficSelector],
    assigned: Assigned,
) -> Result<(Selectors, InnerNetwork), Cause> {
    let wanted = IpNet::aggregate(&profile.child.remote_ts);
    let within = |net: &IpNet| wanted.iter().any(|wanted| wanted.contains(net));
    if !remote.iter().flat_map(subnets).all(|net| within(&net)) {
        return Err(Cause::SelectorsNotSubset);
    }
    // Whatever the gateway says is ours, we only ever are the addresses that it assigned.
    let ours: Vec<TrafficSelector> = local
        .iter()
        .flat_map(|ts| {
            let ours = assigned
                .addresses
                .iter()
                .map(IpNet::addr)
                .filter(|ip| covers(ts, *ip));
            ours.map(|ip| TrafficSelector {
                start: ip,
                end: ip,
                ..*ts
            })
        })
        .collect();
    if ours.is_empty() {
        return Err(Cause::ChildProtocol(
            "its traffic selectors leave out the address that it assigned to us".into(),
        ));
    }
    let granted = IpNet::aggregate(&remote.iter().flat_map(subnets).collect());
    // What is carried for some ports or protocols only is not carried.
    let whole = remote
        .iter()
        .filter(|ts| (ts.protocol, ts.start_port, ts.end_port) == (0, 0, u16::MAX));
    let carried = IpNet::aggregate(&whole.flat_map(subnets).collect());
    if granted.len() > MAX_ROUTES {
        return Err(Cause::ChildProtocol(format!(
            "the gateway's traffic selectors need over {MAX_ROUTES} routes"
        )));
    }
    let has = |net: &IpNet| ours.iter().any(|ts| ts.start.is_ipv4() == net.addr().is_ipv4());
    let missing: Vec<&IpNet> = wanted
        .iter()
        .filter(|net| has(net) && !carried.iter().any(|route| route.contains(*net)))
        .collect();
    if !missing.is_empty() && !profile.child.accept_narrowing {
        let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
        return Err(Cause::SelectorsNarrowed(missing.join(", ")));
    }
    // Once the gateway chose what goes inside, the rest is outside by its choice; a family that it has no address or no
    // selector for at all is a lack, not a choice, and so is one beside a tunnel for nearly everything.
    let is_routed = |net: &IpNet| {
        has(net)
            && granted
                .iter()
                .any(|route| route.addr().is_ipv4() == net.addr().is_ipv4())
    };
    let refused = if missing.is_empty() || is_nearly_everything(granted.iter().filter(|net| has(net))) {
        wanted.iter().filter(|net| !is_routed(net)).copied().collect()
    } else {
        BTreeSet::new()
    };
    let routes = granted.into_iter().filter(has).collect();
    let selectors = Selectors {
        local: ours,
        remote: remote.to_vec(),
    };
    Ok((
        selectors,
        InnerNetwork {
            assigned,
            routes,
            refused,
        },
    ))
}

/// Whether these networks are most of the IPv4 or the IPv6 Internet: gateways leave out single addresses, such as
/// their own, of what is meant to be everything.
fn is_nearly_everything<'a>(networks: impl IntoIterator<Item = &'a IpNet>) -> bool {
    let (mut v4, mut v6) = (0_u64, 0_u128);
    for network in networks {
        match network {
            IpNet::V4(network) => v4 += 1 << (32 - network.prefix_len()),
            // In units of a /64, so that nothing overflows.
            IpNet::V6(network) => v6 += 1 << 64_u8.saturating_sub(network.prefix_len()),
        }
    }
    v4 > 1 << 31 || v6 > 1 << 63
}

fn covers(ts: &TrafficSelector, ip: IpAddr) -> bool {
    ts.start.is_ipv4() == ip.is_ipv4() && ts.start <= ip && ip <= ts.end
}

fn subnets(ts: &TrafficSelector) -> Vec<IpNet> {
    match (ts.start, ts.end) {
        (IpAddr::V4(start), IpAddr::V4(end)) => Ipv4Subnets::new(start, end, 0)
            .take(MAX_ROUTES + 1)
            .map(IpNet::V4)
            .collect(),
        (IpAddr::V6(start), IpAddr::V6(end)) => Ipv6Subnets::new(start, end, 0)
            .take(MAX_ROUTES + 1)
            .map(IpNet::V6)
            .collect(),
        _ => Vec::new(),
    }
}

impl InnerNetwork {
    /// The name servers and domains to use, as the profile wants them. A server that the tunnel does not lead to is
    /// left out: asking it would tell names to the network outside.
    pub(crate) fn dns(&self, profile: &Profile) -> crate::plan::Dns {
        let reached = |server: &&IpAddr| {
            self.routes.iter().any(|route| route.contains(*server))
                && !profile
                    .child
                    .exclude
                    .iter()
                    .any(|excluded| excluded.contains(*server))
        };
        let servers: Vec<IpAddr> = match &profile.network.dns {
            DnsPolicy::None => Vec::new(),
            DnsPolicy::Gateway => self.assigned.servers.iter().filter(reached).copied().collect(),
            DnsPolicy::Servers(servers) => servers.clone(),
        };
        let full = is_nearly_everything(&self.routes);
        let domains = match (&profile.network.domains, &profile.network.dns) {
            _ if servers.is_empty() => Vec::new(),
            (ours, _) if !ours.is_empty() => ours.clone(),
            // A gateway that carries everything resolves everything; only a split tunnel needs to know which names.
            (_, DnsPolicy::Gateway) if !full => self.assigned.domains.clone(),
            _ => Vec::new(),
        };
        crate::plan::Dns { servers, domains }
    }
}
