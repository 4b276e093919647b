//! REDIRECT: a gateway sends us to another one (RFC 5685).

use std::net::IpAddr;
use std::time::Duration;

use super::{Broken, SaConfig};
use crate::command::{Cause, Redirect, RedirectRefusal};
use crate::profile::{Host, RedirectTarget, Redirects, host_name};
use crate::timer::Instant;
use crate::wire::Payload;
use crate::wire::iana::NotifyType;

/// No more redirects than these are followed within [`LOOP_DETECT_PERIOD`] (RFC 5685, section 7).
const MAX_REDIRECTS: usize = 5;
/// REDIRECT_LOOP_DETECT_PERIOD.
const LOOP_DETECT_PERIOD: Duration = Duration::from_secs(300);

/// GW Ident Type (RFC 5685, section 9.2).
const IPV4: u8 = 1;
const IPV6: u8 = 2;
const FQDN: u8 = 3;

/// The redirects that led to a gateway.
#[derive(Clone, Debug, Default)]
pub(crate) struct Redirected {
    /// The last one, if there was one.
    last: Option<Redirect>,
    /// When the last ones were followed, no more than count.
    followed: Vec<Instant>,
}

impl Redirected {
    /// The last one, if there was one.
    pub(crate) fn last(&self) -> Option<&Redirect> {
        self.last.as_ref()
    }

    /// Once more, unless it was too often.
    pub(super) fn further(&self, redirect: &Redirect, now: Instant) -> Result<Self, Cause> {
        let mut followed = self.followed.clone();
        followed.retain(|at| now < *at + LOOP_DETECT_PERIOD);
        if followed.len() >= MAX_REDIRECTS {
            return Err(Cause::RedirectRefused {
                to: redirect.to.to_string(),
                why: RedirectRefusal::TooMany,
            });
        }
        followed.push(now);
        Ok(Self {
            last: Some(redirect.clone()),
            followed,
        })
    }
}

/// The data of the REDIRECT among `payloads`, if there is one.
pub(super) fn find<'a>(payloads: &[Payload<'a>]) -> Option<&'a [u8]> {
    payloads.iter().find_map(|payload| match payload {
        Payload::Notify(notify) if notify.kind == NotifyType::REDIRECT => Some(notify.data),
        _ => None,
    })
}

/// Where the data of a REDIRECT sends us, and what follows: in IKE_SA_INIT our nonce (RFC 5685, section 9.2).
pub(super) fn read(data: &[u8]) -> Result<(Host, &[u8]), Broken> {
    let broken = |what: &str| Broken(format!("REDIRECT: {what}"));
    let [kind, len, rest @ ..] = data else {
        return Err(broken("it names no gateway"));
    };
    let (identity, nonce) = rest
        .split_at_checked((*len).into())
        .ok_or_else(|| broken("the gateway's identity is cut off"))?;
    let address = match *kind {
        IPV4 => <[u8; 4]>::try_from(identity).ok().map(IpAddr::from),
        IPV6 => <[u8; 16]>::try_from(identity).ok().map(IpAddr::from),
        FQDN => {
            let name = std::str::from_utf8(identity)
                .ok()
                .and_then(|text| host_name(text).ok())
                .ok_or_else(|| broken("the gateway's name is none"))?;
            return Ok((Host::Name(name), nonce));
        }
        other => {
            return Err(broken(&format!("identities of type {other} are not known")));
        }
    };
    let address = address.ok_or_else(|| broken("the gateway's address has a wrong length"))?;
    if !may_be_a_gateway(address) {
        return Err(broken(&format!("no gateway can be at {address}")));
    }
    Ok((Host::Address(address), nonce))
}

/// Addresses that lead to this machine itself, to many at once, or nowhere are not asked.
fn may_be_a_gateway(address: IpAddr) -> bool {
    let special = address.is_loopback() || address.is_unspecified() || address.is_multicast();
    !special
        && match address {
            IpAddr::V4(v4) => !v4.is_broadcast() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local() && v6.to_ipv4_mapped().is_none(),
        }
}

/// Judges a REDIRECT of the gateway at `from`, which has proven its identity, or has not.
pub(super) fn judge(config: &SaConfig, to: Host, from: IpAddr, proven: bool) -> Result<Redirect, Cause> {
    let permitted = match &config.profile.gateway.redirect {
        Redirects::Never => false,
        Redirects::Proven => proven,
        Redirects::To(targets) => targets.iter().any(|target| match (target, &to) {
            (RedirectTarget::Name(name), Host::Name(to)) => name == to,
            (RedirectTarget::Network(network), Host::Address(to)) => network.contains(to),
            _ => false,
        }),
    };
    if permitted {
        return Ok(Redirect { to, from });
    }
    Err(Cause::RedirectRefused {
        to: to.to_string(),
        why: RedirectRefusal::NotPermitted,
    })
}

/// A REDIRECT among the payloads of a gateway that has proven its identity.
pub(super) fn proven(
    config: &SaConfig,
    payloads: &[Payload<'_>],
    from: IpAddr,
) -> Option<Result<Redirect, Cause>> {
    let data = find(payloads)?;
    Some(match read(data) {
        Ok((to, _)) => judge(config, to, from, true),
        Err(broken) => Err(broken.into()),
    })
}

/// The data of REDIRECTED_FROM (RFC 5685, section 9.3).
pub(super) fn redirected_from(gateway: IpAddr) -> Vec<u8> {
    match gateway {
        IpAddr::V4(ip) => [&[IPV4, 4], ip.octets().as_slice()].concat(),
        IpAddr::V6(ip) => [&[IPV6, 16], ip.octets().as_slice()].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_are_read_and_what_follows_is_left() {
        let v4 = [1, 4, 192, 0, 2, 7, 9, 9];
        let (to, nonce) = read(&v4).unwrap();
        assert_eq!(to, Host::Address("192.0.2.7".parse().unwrap()));
        assert_eq!(nonce, [9, 9]);
        let v6 = [&[2, 16][..], &[0x20; 16]].concat();
        assert!(matches!(read(&v6).unwrap(), (Host::Address(IpAddr::V6(_)), [])));
        let name = [&[3, 11][..], b"VPN2.Lab.ex"].concat();
        assert_eq!(read(&name).unwrap().0, Host::Name("vpn2.lab.ex".into()));
    }

    #[test]
    fn what_names_no_gateway_is_refused() {
        let cut_off = [1, 4, 192, 0, 2];
        let wrong_length = [1, 3, 192, 0, 2];
        let loopback = [1, 4, 127, 0, 0, 1];
        let everybody = [1, 4, 255, 255, 255, 255];
        let mapped = [&[2, 16][..], &[0; 10], &[0xff, 0xff, 192, 0, 2, 1]].concat();
        let link_local = [&[2, 16, 0xfe, 0x80][..], &[0; 14]].concat();
        let unknown_type = [4, 1, 0];
        let no_name = [&[3, 9][..], b"evil host"].concat();
        let not_text = [3, 2, 0xff, 0xfe];
        let all: [&[u8]; 11] = [
            &[],
            &[1],
            &cut_off,
            &wrong_length,
            &loopback,
            &everybody,
            &mapped,
            &link_local,
            &unknown_type,
            &no_name,
            &not_text,
        ];
        for data in all {
            assert!(read(data).is_err(), "{data:?}");
        }
    }

    #[test]
    fn five_redirects_in_five_minutes_are_followed_and_a_sixth_is_not() {
        let redirect = Redirect {
            to: Host::Name("other.example.org".into()),
            from: "192.0.2.1".parse().unwrap(),
        };
        let begin = Instant::new(Duration::ZERO);
        let mut path = Redirected::default();
        for number in 0..5 {
            path = path
                .further(&redirect, begin + Duration::from_secs(number))
                .unwrap();
        }
        assert_eq!(path.last(), Some(&redirect));
        let refused = path.further(&redirect, begin + Duration::from_secs(299));
        assert!(matches!(
            refused,
            Err(Cause::RedirectRefused {
                why: RedirectRefusal::TooMany,
                ..
            })
        ));
        path = path.further(&redirect, begin + Duration::from_secs(300)).unwrap();
        assert_eq!(path.followed.len(), 5);
    }
}
