//! Session resumption: an IKE SA that is lost is made again with a ticket of the gateway's, without authenticating anew
//! (RFC 5723).

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::established::{Doing, End, Established, notifies};
use super::{Cx, notify};
use crate::crypto::Secret;
use crate::proposal::IkeSuite;
use crate::timer::Instant;
use crate::wire::Payload;
use crate::wire::iana::{ExchangeType, IdType, NotifyType};

/// A gateway that has not answered a ticket within this time is asked in full.
pub(crate) const RESUME_PATIENCE: Duration = Duration::from_secs(3);
/// No gateway's tickets are longer: one has to fit into the first message, with all that is beside it.
const LONGEST: usize = 16 * 1024;
/// However long a ticket lives, after so long authentication is in full again, and with it the look at certificates.
const LONGEST_LIFE: Duration = Duration::from_secs(86_400);
/// A gateway that cannot give a ticket at once (TICKET_ACK) is asked again after so long.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// A ticket, and what both sides know of the IKE SA that it stands for (RFC 5723, section 5).
pub(crate) struct Ticket {
    /// The ticket itself, which means nothing to us.
    pub(super) octets: Vec<u8>,
    expires_at: Instant,
    /// SK_d of that SA.
    pub(super) derive: Secret,
    pub(super) suite: IkeSuite,
    /// What [`super::keys::SaKeys`] says of SK_d.
    pub(super) post_quantum: bool,
    pub(super) ppk: bool,
    /// Who the two sides are.
    pub(super) ids: Identities,
    /// When authentication expires (RFC 4478), which resuming does not change.
    pub(super) reauth_at: Option<Instant>,
    /// Where the gateway is that gave it.
    gateways: Vec<IpAddr>,
}

/// The identities of an IKE SA, as both sides sent and proved them.
#[derive(Clone)]
pub(super) struct Identities {
    /// IDi.
    pub(super) ours: (IdType, Vec<u8>),
    /// The body of IDr.
    pub(super) theirs: Vec<u8>,
    /// The same for the user.
    pub(super) shown: String,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(..)")
    }
}

impl Ticket {
    /// It may be presented now.
    pub(crate) fn is_good(&self, now: Instant) -> bool {
        now < self.expires_at
    }

    /// Where the gateway is that gave it: no other one can know it.
    pub(crate) fn gateways(&self) -> &[IpAddr] {
        &self.gateways
    }
}

#[cfg(test)]
impl Ticket {
    /// A ticket for an SA with this SK_d.
    pub(super) fn for_tests(derive: Secret, suite: IkeSuite) -> Self {
        Self {
            octets: Vec::new(),
            expires_at: Instant::new(Duration::ZERO),
            derive,
            suite,
            post_quantum: false,
            ppk: false,
            ids: Identities {
                ours: (IdType::FQDN, Vec::new()),
                theirs: Vec::new(),
                shown: String::new(),
            },
            reauth_at: None,
            gateways: Vec::new(),
        }
    }
}

/// The tickets of an IKE SA that is up.
#[derive(Default)]
pub(super) struct Tickets {
    ticket: Option<Arc<Ticket>>,
    /// The gateway gives tickets.
    known: bool,
    /// When one is to be asked for.
    pub(super) ask_at: Option<Instant>,
}

impl Tickets {
    /// Another IKE SA has taken the place of the one that the ticket stands for (RFC 5723, section 6.2).
    pub(super) fn void(&mut self, now: Instant) {
        self.ticket = None;
        self.ask_at = self.known.then_some(now);
    }
}

impl Established {
    /// Who the gateway proved to be.
    pub(crate) fn identity(&self) -> &str {
        &self.ids.shown
    }

    /// The ticket to resume with, if there is one.
    pub(crate) fn ticket(&self) -> Option<Arc<Ticket>> {
        self.tickets.ticket.clone()
    }

    /// Takes the ticket among the payloads of a response to TICKET_REQUEST (RFC 5723, section 4.1).
    pub(super) fn note_ticket(&mut self, payloads: &[Payload<'_>], now: Instant) {
        self.tickets.ask_at = None;
        let auth = &self.config.profile.auth;
        if !self.config.profile.ike.resumption || auth.certificate_first {
            return; // not asked for
        }
        if notifies(payloads, NotifyType::TICKET_ACK).next().is_some() {
            self.tickets.known = true;
            self.tickets.ask_at = Some(now + ASK_AGAIN);
        }
        let given = notifies(payloads, NotifyType::TICKET_LT_OPAQUE).find_map(|notify| {
            let (lifetime, ticket) = notify.data.split_first_chunk::<4>()?;
            Some((u32::from_be_bytes(*lifetime), ticket))
        });
        let Some((seconds, octets)) = given.filter(|(_, ticket)| (1..=LONGEST).contains(&ticket.len()))
        else {
            return;
        };
        let lifetime = Duration::from_secs(seconds.into()).min(LONGEST_LIFE);
        let mut gateways = vec![self.path().remote.ip()];
        gateways.extend(self.mobility.others());
        let keys = &self.channel.keys;
        self.tickets = Tickets {
            ticket: Some(Arc::new(Ticket {
                octets: octets.to_vec(),
                expires_at: now + lifetime,
                derive: keys.derive.clone(),
                suite: self.suite,
                post_quantum: keys.post_quantum,
                ppk: keys.ppk,
                ids: self.ids.clone(),
                reauth_at: self.reauth_at,
                gateways,
            })),
            known: true,
            // Another one before this one expires, and not without end if they live but seconds.
            ask_at: Some(now + (lifetime * 9 / 10).max(ASK_AGAIN)),
        };
    }

    /// Asks for a ticket (RFC 5723, section 4.1).
    pub(super) fn ask_ticket(&mut self, cx: &mut Cx<'_>) -> Result<(), End> {
        let payloads = [notify(NotifyType::TICKET_REQUEST, &[])];
        self.request(ExchangeType::INFORMATIONAL, &payloads, Doing::Ticket, cx)
    }
}
