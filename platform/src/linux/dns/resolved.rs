//! systemd-resolved, over D-Bus (`org.freedesktop.resolve1(5)`).

use std::net::IpAddr;
use std::path::Path;

use peregrine_core::command::HostFault;
use zbus::{Connection, DBusError as _};

use super::{Refusal, Wanted, fault};
use crate::linux::bus::connect;

const NAME: &str = "org.freedesktop.resolve1";
const OBJECT: &str = "/org/freedesktop/resolve1";
const MANAGER: &str = "org.freedesktop.resolve1.Manager";

/// The files that `/etc/resolv.conf` may be a link to when systemd-resolved is in charge (systemd-resolved(8)).
const FILES: [&str; 4] = [
    "/run/systemd/resolve/stub-resolv.conf",
    "/run/systemd/resolve/resolv.conf",
    "/usr/lib/systemd/resolv.conf",
    "/lib/systemd/resolv.conf",
];

/// The stub and the stub without local names.
const STUBS: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 53)),
    IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 54)),
];

/// What it says of a name that has no address.
const NO_ADDRESS: [&str; 2] = [
    "org.freedesktop.resolve1.DnsError.NXDOMAIN",
    "org.freedesktop.resolve1.NoSuchRR",
];

/// Where it names the servers that it asks itself, of all links.
pub(super) const UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";

/// Whether programs that read `resolv_conf` end up at systemd-resolved.
pub(super) fn is_in_charge(resolv_conf: &Path) -> bool {
    let target = std::fs::canonicalize(resolv_conf).unwrap_or_default();
    FILES.iter().any(|file| target == Path::new(file))
        || super::read_to_string(resolv_conf)
            .is_ok_and(|content| super::servers(&content).any(|server| STUBS.contains(&server)))
}

/// Sets the servers and domains of the tunnel's link.
pub(super) fn put(bus: Option<&str>, wanted: &Wanted<'_>) -> Result<(), Refusal> {
    let index = link(wanted.index);
    let servers: Vec<(i32, Vec<u8>)> = wanted
        .servers
        .iter()
        .map(|server| match server {
            IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
            IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
        })
        .collect();
    // The second value says "route only": a domain to ask here about, not one to complete short names with.
    let mut domains: Vec<(&str, bool)> = wanted
        .domains
        .iter()
        .map(|domain| (domain.as_str(), false))
        .collect();
    if wanted.full {
        domains.push((".", true));
    }
    // Without domains of its own, a link whose servers are to answer for all names must say so.
    let default_route = wanted.full || wanted.domains.is_empty();
    block_on(async {
        let bus = connect(bus).await.map_err(|_| Refusal::NotInCharge)?;
        call(&bus, "SetLinkDNS", &(index, servers))
            .await
            .map_err(|error| {
                if is_absence(&name(&error)) {
                    Refusal::NotInCharge
                } else {
                    Refusal::Failed(refused(&error))
                }
            })?;
        let failed = |error: zbus::Error| Refusal::Failed(refused(&error));
        call(&bus, "SetLinkDomains", &(index, domains))
            .await
            .map_err(failed)?;
        call(&bus, "SetLinkDefaultRoute", &(index, default_route))
            .await
            .map_err(failed)?;
        // Names asked for by multicast would go to the gateway's network. Older versions do not know the calls.
        for method in ["SetLinkLLMNR", "SetLinkMulticastDNS"] {
            if let Err(error) = call(&bus, method, &(index, "no")).await {
                tracing::debug!(%error, method, "not set");
            }
        }
        // Answers from outside the tunnel must not outlive the change.
        if let Err(error) = call(&bus, "FlushCaches", &()).await {
            tracing::debug!(%error, "the cache was not emptied");
        }
        Ok(())
    })
}

/// Makes systemd-resolved forget the link's servers. It does so by itself when the link goes, so a failure is only
/// noted.
pub(super) fn put_back(bus: Option<&str>, index: u32) {
    let done = block_on(async {
        let bus = connect(bus).await?;
        call(&bus, "RevertLink", &(link(index),)).await?;
        call(&bus, "FlushCaches", &()).await
    });
    if let Err(error) = done {
        tracing::debug!(%error, "systemd-resolved was not told that the link goes");
    }
}

/// The answer of `ResolveHostname`: link, family and octets of each address; the canonical name; flags.
type Found = (Vec<(i32, i32, Vec<u8>)>, String, u64);

/// The addresses of `name` as the servers of the link with this index know them; none when they know that there are
/// none.
pub(super) async fn look_up(bus: Option<&str>, index: u32, name: &str) -> Result<Vec<IpAddr>, String> {
    let bus = connect(bus).await.map_err(|error| error.to_string())?;
    // Of both families, by whatever means the link is set up for.
    let question = (link(index), name, libc::AF_UNSPEC, 0_u64);
    let answer = bus
        .call_method(Some(NAME), OBJECT, Some(MANAGER), "ResolveHostname", &question)
        .await;
    let answer = match answer {
        Err(error) if NO_ADDRESS.contains(&self::name(&error).as_str()) => return Ok(Vec::new()),
        other => other.map_err(|error| error.to_string())?,
    };
    let body = answer.body();
    let (addresses, _, _): Found = body.deserialize().map_err(|error| error.to_string())?;
    Ok(addresses
        .iter()
        .filter_map(|(_, _, octets)| match octets.len() {
            4 => <[u8; 4]>::try_from(octets.as_slice()).ok().map(IpAddr::from),
            _ => <[u8; 16]>::try_from(octets.as_slice()).ok().map(IpAddr::from),
        })
        .collect())
}

fn link(index: u32) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}

/// Runs a conversation on the bus to its end. The machine's thread has no runtime of its own.
fn block_on<T, E: From<zbus::Error>>(conversation: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime
        .map_err(|error| E::from(zbus::Error::from(error)))?
        .block_on(conversation)
}

impl From<zbus::Error> for Refusal {
    fn from(error: zbus::Error) -> Self {
        Self::Failed(refused(&error))
    }
}

async fn call<B>(bus: &Connection, method: &str, body: &B) -> zbus::Result<()>
where
    B: serde::Serialize + zbus::DynamicType,
{
    bus.call_method(Some(NAME), OBJECT, Some(MANAGER), method, body)
        .await
        .map(drop)
}

/// The name of the error that the bus or systemd-resolved answered with; empty for an error of another kind.
fn name(error: &zbus::Error) -> String {
    if let zbus::Error::MethodError(name, _, _) = error {
        return name.to_string();
    }
    if let zbus::Error::FDO(error) = error {
        return error.name().to_string();
    }
    String::new()
}

/// Whether a bus error says that there is no systemd-resolved.
fn is_absence(name: &str) -> bool {
    ["ServiceUnknown", "NameHasNoOwner", ".Spawn.", "NoSuchUnit"]
        .iter()
        .any(|word| name.contains(word))
}

fn refused(error: &zbus::Error) -> HostFault {
    let name = name(error);
    let permission = ["AccessDenied", "InteractiveAuthorizationRequired"]
        .iter()
        .any(|word| name.ends_with(word));
    HostFault {
        permission,
        ..fault("set the name servers with systemd-resolved", error.to_string())
    }
}
