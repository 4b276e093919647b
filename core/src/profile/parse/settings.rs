//! The parts of a profile about the two phases and this machine's network.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use ipnet::IpNet;
use toml::Spanned;
use toml::de::DeValue;

use super::super::reader::{self, Fault, Section, fault};
use super::super::value::{duration, duration_text, host_name, network};
use super::super::{ChildConfig, DnsPolicy, IkeConfig, NetworkConfig, RedirectTarget, Redirects};
use super::Parser;
use crate::esp::{Limits, Marking};
use crate::proposal::{EspProposal, IkeProposal, ProposalError, default_esp, default_ike};

/// The ages at which an SA may be replaced, in seconds.
const REKEY: RangeInclusive<u64> = 10..=7 * 86400;
/// Fewer octets and packets are moved while an SA is being replaced.
const LEAST_OCTETS: u64 = 1 << 20;
const LEAST_PACKETS: u64 = 1000;
const HOUR: Duration = Duration::from_secs(3600);
/// More proposals than any gateway expects; each also needs a number of one octet (RFC 7296, section 3.3.1).
const MAX_PROPOSALS: usize = 16;
/// Old gateways give up on longer lists.
const MANY_PROPOSALS: usize = 4;

impl<'t> Parser<'t, '_> {
    pub(super) fn redirects(&mut self, section: Section<'_, 't>) -> Redirects {
        let default = "proven: a gateway that has proven its identity may send us to another one";
        self.reader
            .value_or(section, "redirect", Redirects::Proven, default, |_, value| {
                redirects(value)
            })
    }

    pub(super) fn ike(&mut self, section: Section<'_, 't>) -> IkeConfig {
        let mut proposals = self
            .proposals(section, IkeProposal::parse, IkeProposal::legacy, default_ike)
            .unwrap_or_else(default_ike);
        let require_pq = self.switch(section, "require_pq", false);
        if require_pq {
            let all = proposals.len();
            proposals.retain(IkeProposal::is_post_quantum);
            if proposals.is_empty() {
                let message = "no proposal has a post-quantum key exchange, such as `ke1_mlkem768`";
                self.reader.error_at(section, "require_pq", message);
            } else if proposals.len() < all && section.has("proposals") {
                let message =
                    "those without a post-quantum key exchange are not offered, because of require_pq";
                self.reader.warn(section, "proposals", message);
            }
        }
        let rekey = self.seconds(section, "rekey", HOUR * 4, REKEY);
        let mobike = self.switch(section, "mobike", true);
        let fragmentation = self.switch(section, "fragmentation", true);
        let fragment_size = self
            .reader
            .value_or(section, "fragment_size", 1280, "1280", |_, value| {
                reader::number(value, 576..=9000)
            });
        let dpd = self.seconds(section, "dpd", Duration::from_secs(30), 5..=3600);
        let initial_contact = self.switch(section, "initial_contact", false);
        let resumption = self.switch(section, "resumption", true);
        IkeConfig {
            proposals,
            require_pq,
            rekey,
            mobike,
            fragmentation,
            fragment_size,
            dpd,
            initial_contact,
            resumption,
        }
    }

    pub(super) fn child(&mut self, section: Section<'_, 't>) -> ChildConfig {
        let proposals = self
            .proposals(section, EspProposal::parse, EspProposal::legacy, default_esp)
            .unwrap_or_else(default_esp);
        let everything = || {
            ["0.0.0.0/0", "::/0"]
                .iter()
                .filter_map(|text| text.parse().ok())
                .collect()
        };
        let remote_ts: Vec<IpNet> = self.reader.value_or(
            section,
            "remote_ts",
            everything(),
            "0.0.0.0/0, ::/0 (everything)",
            |_, value| reader::texts(value)?.into_iter().map(read_network).collect(),
        );
        let (narrowing, why) = if section.has("remote_ts") {
            (false, "false, for remote_ts says what is wanted")
        } else {
            (true, "true, for remote_ts does not say what is wanted")
        };
        let accept_narrowing = self
            .reader
            .value_or(section, "accept_narrowing", narrowing, why, |_, v| {
                reader::boolean(v)
            });
        let exclude: BTreeSet<IpNet> = self.reader.value_or(
            section,
            "exclude",
            BTreeSet::new(),
            "nothing",
            |_, v| {
                let excluded: Vec<(IpNet, Range<usize>)> = optional_texts(v)?
                    .into_iter()
                    .map(|(text, span)| Ok((read_network((text, span.clone()))?, span)))
                    .collect::<Result<_, Fault>>()?;
                for (network, span) in &excluded {
                    if !remote_ts.iter().any(|wanted| wanted.contains(network)) {
                        let inside = remote_ts.iter().find(|wanted| network.contains(*wanted));
                        let message = match inside {
                            Some(wanted) => format!("`{network}` leaves nothing of `{wanted}` in remote_ts"),
                            None => format!(
                                "`{network}` is not part of remote_ts, so that there is nothing to exclude"
                            ),
                        };
                        return Err(Fault {
                            span: span.clone(),
                            message,
                        });
                    }
                }
                Ok(excluded.into_iter().map(|(network, _)| network).collect())
            },
        );
        if remote_ts.iter().all(|wanted| exclude.contains(wanted)) {
            self.reader
                .error_at(section, "exclude", "leaves nothing that goes into the tunnel");
        }
        let rekey = self.seconds(section, "rekey", HOUR, REKEY);
        let default = Limits::default();
        let limits = Limits {
            octets: self.reader.value_or(
                section,
                "rekey_bytes",
                default.octets,
                "34359738368 (32 GiB)",
                |_, value| reader::large_number(value, LEAST_OCTETS..=Limits::MOST_OCTETS),
            ),
            packets: self.reader.value_or(
                section,
                "rekey_packets",
                default.packets,
                "half of the sequence numbers",
                |_, value| reader::large_number(value, LEAST_PACKETS..=Limits::MOST_PACKETS),
            ),
        };
        let marking = Marking {
            copy_ecn: self.switch(section, "copy_ecn", true),
            copy_dscp: self.switch(section, "copy_dscp", false),
        };
        let require_pfs = self.switch(section, "require_pfs", false);
        if require_pfs && proposals.iter().any(|proposal| proposal.key_exchanges.is_empty()) {
            let message = "needs a key exchange method in every one of `child.proposals`, such as `x25519`";
            self.reader.error_at(section, "require_pfs", message);
        }
        let rehearse = self.switch(section, "rehearse_rekey", false);
        ChildConfig {
            proposals,
            remote_ts,
            accept_narrowing,
            exclude,
            rekey,
            limits,
            marking,
            require_pfs,
            rehearse,
        }
    }

    pub(super) fn network(&mut self, section: Section<'_, 't>) -> NetworkConfig {
        let kill_switch = self.kill_switch(section);
        let allow_lan = self.switch(section, "allow_lan", false);
        if !kill_switch && section.has("allow_lan") {
            let message = "not used: without `kill_switch` nothing is blocked";
            self.reader.not_used(section, "allow_lan", message);
        }
        let dns = self
            .reader
            .value_or(section, "dns", DnsPolicy::Gateway, "gateway", |_, value| {
                dns(value)
            });
        let domains = self
            .reader
            .value_or(section, "domains", Vec::new(), "the gateway's", |_, value| {
                reader::texts(value)?
                    .into_iter()
                    .map(|(text, span)| host_name(text).map_err(|message| Fault { span, message }))
                    .collect()
            });
        if dns == DnsPolicy::None && section.has("domains") {
            self.reader.not_used(
                section,
                "domains",
                "with dns = \"none\" no name is resolved through the tunnel",
            );
        }
        let mtu = self
            .reader
            .value_or(section, "mtu", None, "auto", |_, value| match value.get_ref() {
                DeValue::String(text) if text == "auto" => Ok(None),
                DeValue::Integer(_) => reader::number(value, 1280..=9000).map(Some),
                other => Err(fault(value, reader::wrong_type("\"auto\" or a number", other))),
            });
        let tcp_fallback = self.switch(section, "tcp_fallback", true);
        NetworkConfig {
            kill_switch,
            allow_lan: kill_switch && allow_lan,
            dns,
            domains,
            mtu,
            tcp_fallback,
        }
    }

    fn kill_switch(&mut self, section: Section<'_, 't>) -> bool {
        let default = "false: traffic is not blocked when the tunnel is down";
        self.reader
            .value_or(section, "kill_switch", false, default, |_, value| {
                reader::boolean(value)
            })
    }

    fn switch(&mut self, section: Section<'_, 't>, key: &str, default: bool) -> bool {
        self.reader
            .value_or(section, key, default, default.to_string(), |_, value| {
                reader::boolean(value)
            })
    }

    fn seconds(
        &mut self,
        section: Section<'_, 't>,
        key: &str,
        default: Duration,
        limits: RangeInclusive<u64>,
    ) -> Duration {
        self.reader
            .value_or(section, key, default, duration_text(default), |_, value| {
                let read = duration(reader::text(value)?).map_err(|message| fault(value, message))?;
                if limits.contains(&read.as_secs()) {
                    return Ok(read);
                }
                let [least, most] =
                    [limits.start(), limits.end()].map(|s| duration_text(Duration::from_secs(*s)));
                Err(fault(value, format!("must be from {least} to {most}")))
            })
    }

    fn proposals<P: std::fmt::Display>(
        &mut self,
        section: Section<'_, 't>,
        parse: fn(&str) -> Result<P, ProposalError>,
        legacy: fn(&P) -> Vec<&'static str>,
        default: fn() -> Vec<P>,
    ) -> Option<Vec<P>> {
        if !section.has("proposals") {
            let shown: Vec<String> = default().iter().map(ToString::to_string).collect();
            self.reader.defaulted(section, "proposals", shown.join(", "));
            return None;
        }
        let proposals: Vec<P> = self.reader.value(section, "proposals", |reader, value| {
            let texts = reader::texts(value)?;
            if texts.len() > MAX_PROPOSALS {
                return Err(fault(
                    value,
                    format!("must not be more than {MAX_PROPOSALS} proposals"),
                ));
            }
            let read = |(text, span): (&str, Range<usize>)| {
                parse(text).map_err(|error| Fault {
                    span: reader.part(span, error.span.clone(), text.len()),
                    message: error.to_string(),
                })
            };
            texts.into_iter().map(read).collect()
        })?;
        let mut weak: Vec<&str> = proposals.iter().flat_map(legacy).collect();
        weak.sort_unstable();
        weak.dedup();
        if !weak.is_empty() {
            let message = format!(
                "{} is outdated; use it only if the gateway knows nothing better",
                weak.join(", ")
            );
            self.reader.warn(section, "proposals", message);
        }
        if proposals.len() > MANY_PROPOSALS {
            self.reader.warn(
                section,
                "proposals",
                "more than four proposals are too many for some gateways",
            );
        }
        Some(proposals)
    }
}

fn redirects(value: &Spanned<DeValue<'_>>) -> Result<Redirects, Fault> {
    let texts = reader::texts(value)?;
    match (value.get_ref(), texts.as_slice()) {
        (DeValue::String(_), [("proven", _)]) => return Ok(Redirects::Proven),
        (DeValue::String(_), [("never", _)]) => return Ok(Redirects::Never),
        _ => {}
    }
    let read = |(text, span): (&str, Range<usize>)| {
        if let Ok(network) = network(text) {
            return Ok(RedirectTarget::Network(network));
        }
        host_name(text).map(RedirectTarget::Name).map_err(|_| Fault {
            span,
            message: format!(
                "`{text}` is neither a host name nor a network; write \"proven\", \"never\" or a list of those"
            ),
        })
    };
    texts
        .into_iter()
        .map(read)
        .collect::<Result<_, _>>()
        .map(Redirects::To)
}

fn read_network((text, span): (&str, Range<usize>)) -> Result<IpNet, Fault> {
    network(text).map_err(|message| Fault { span, message })
}

/// Texts, of which there may be none.
fn optional_texts<'a>(value: &'a Spanned<DeValue<'_>>) -> Result<Vec<(&'a str, Range<usize>)>, Fault> {
    match value.get_ref() {
        DeValue::Array(items) if items.is_empty() => Ok(Vec::new()),
        _ => reader::texts(value),
    }
}

fn dns(value: &Spanned<DeValue<'_>>) -> Result<DnsPolicy, Fault> {
    let servers = reader::texts(value)?;
    match (value.get_ref(), servers.as_slice()) {
        (DeValue::String(_), [("gateway", _)]) => return Ok(DnsPolicy::Gateway),
        (DeValue::String(_), [("none", _)]) => return Ok(DnsPolicy::None),
        _ => {}
    }
    let read = |(text, span): (&str, Range<usize>)| {
        let message =
            format!("`{text}` is not an IP address; write \"gateway\", \"none\" or a list of addresses");
        text.parse::<IpAddr>().map_err(|_| Fault { span, message })
    };
    servers
        .into_iter()
        .map(read)
        .collect::<Result<_, _>>()
        .map(DnsPolicy::Servers)
}
