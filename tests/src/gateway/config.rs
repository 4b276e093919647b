//! How the gateway behaves.

use std::net::IpAddr;
use std::time::Duration;

use peregrine_core::pki::{Certificate, PrivateKey};
use peregrine_core::profile::Identity;
use peregrine_core::proposal::{EspProposal, IkeProposal, default_esp, default_ike};
use peregrine_core::wire::TrafficSelector;
use peregrine_core::wire::iana::{CertEncoding, KeMethod, NotifyType};

use crate::eap_server::EapServer;

/// How the gateway behaves.
pub struct GatewayConfig {
    /// IDr.
    pub identity: Identity,
    /// How it proves itself.
    pub proof: Proof,
    /// What it demands of the client.
    pub client: ClientAuth,
    /// IKE proposals that it accepts, in its order of preference, and that it offers when it rekeys.
    pub ike: Vec<IkeProposal>,
    /// ESP proposals that it accepts, and that it offers when it rekeys.
    pub esp: Vec<EspProposal>,
    /// Whether CREATE_CHILD_SA for a Child SA has a key exchange.
    pub pfs: Pfs,

    /// What it sends with its certificates: OCSP responses (RFC 4806) if the client asks for them, CRLs in any case.
    pub evidence: Vec<(CertEncoding, Vec<u8>)>,

    /// Demand a cookie first, another one for every request (RFC 7296, section 2.6).
    pub cookie: bool,
    /// Answer IKE_SA_INIT with this error instead.
    pub refuse_init: Option<NotifyType>,
    /// Answer every IKE_AUTH with this error instead.
    pub refuse_auth: Option<NotifyType>,
    /// Answer the Child SA with this error instead.
    pub refuse_child: Option<NotifyType>,
    /// Leave AUTH out when the Child SA is refused, as some gateways do.
    pub bare_refusal: bool,
    /// Make the AUTH after EAP, and that of an IKE SA that is resumed, with another key.
    pub wrong_msk: bool,
    /// Prove itself by EAP alone if the client lets it (RFC 5998), or even if not.
    pub eap_only: EapOnly,
    /// Let a client authenticate more than once (RFC 4739).
    pub multiple_auth: bool,
    /// Begin with EAP although the client has signed.
    pub ignore_auth: bool,
    /// Ask for this key exchange method in IKE_SA_INIT, whatever was offered.
    pub insist_on: Option<KeMethod>,
    /// Speak RFC 7427.
    pub signature_hashes: bool,
    /// Send no more than so many octets of a key exchange value in IKE_INTERMEDIATE.
    pub cut_ciphertext: Option<usize>,
    /// Choose additional key exchanges without saying that IKE_INTERMEDIATE is known.
    pub silent_intermediate: bool,
    /// Prove nothing of IKE_INTERMEDIATE.
    pub unproven_intermediate: bool,
    /// Cut IKE messages above this many octets (RFC 7383); none: no support.
    pub fragment: Option<usize>,

    /// Answer the rekeying of a Child SA with this error instead.
    pub refuse_child_rekey: Option<NotifyType>,
    /// Answer the rekeying of the IKE SA with this error instead.
    pub refuse_ike_rekey: Option<NotifyType>,
    /// Answer a further Child SA with this error instead.
    pub refuse_new_child: Option<NotifyType>,
    /// Who loses when both ends rekey the same SA: whose exchange has the lowest nonce. None leaves it to chance.
    pub loser: Option<Side>,
    /// How long a Child SA lives.
    pub child_life: Option<Life>,
    /// How long an IKE SA lives.
    pub ike_life: Option<Life>,
    /// How long authentication is good for (RFC 4478): told to the client, and the end of the IKE SA.
    pub auth_lifetime: Option<Duration>,
    /// How long authentication may take.
    pub half_open: Duration,
    /// Ask whether the client lives when it was silent for so long.
    pub dpd: Option<Duration>,
    /// How long a request may go unanswered before the IKE SA is forgotten.
    pub patience: Duration,
    /// Tell whoever uses unknown SPIs, in clear (RFC 7296, section 1.5).
    pub complain: bool,

    /// Speak MOBIKE (RFC 4555).
    pub mobike: bool,
    /// All addresses of the gateway's, as ADDITIONAL_*_ADDRESS tells them.
    pub addresses: Vec<IpAddr>,
    /// Addresses, of either end, that no update may move to.
    pub unacceptable: Vec<IpAddr>,
    /// Rekey the Child SAs after an update of addresses, as strongSwan's kernel-libipsec does.
    pub rekey_after_update: bool,
    /// Move the Child SAs only when the client has answered from its new address (RFC 4555, section 3.7).
    pub check_routability: bool,

    /// Send clients elsewhere (RFC 5685).
    pub redirect: Option<Redirect>,
    /// Give tickets that live so long (RFC 5723).
    pub tickets: Option<Duration>,
    /// Tickets outlive a restart, as those do that carry their state themselves.
    pub tickets_survive: bool,
    /// Leave NAT detection out of IKE_SESSION_RESUME.
    pub resumes_without_nat: bool,
    /// What becomes of the older IKE SAs of whoever connects anew.
    pub unique: Unique,

    /// Inner addresses that the first client gets; others get the next ones.
    pub pool: Vec<IpAddr>,
    /// Whoever comes again gets the address that it had.
    pub sticky: bool,
    /// Name servers that it assigns.
    pub servers: Vec<IpAddr>,
    /// TSr; none: as the client asked.
    pub selectors: Option<Vec<TrafficSelector>>,
}

impl GatewayConfig {
    /// A gateway without faults and without extras, but with all that a usual gateway speaks.
    #[must_use]
    pub fn new(identity: Identity, proof: Proof, client: ClientAuth) -> Self {
        Self {
            identity,
            proof,
            client,
            // Without additional key exchanges (RFC 9370).
            ike: default_ike()
                .into_iter()
                .filter(|proposal| !proposal.has_additional())
                .collect(),
            esp: default_esp()
                .into_iter()
                .filter(|proposal| proposal.additional.is_empty())
                .collect(),
            pfs: Pfs::Optional,
            evidence: Vec::new(),
            cookie: false,
            refuse_init: None,
            refuse_auth: None,
            refuse_child: None,
            bare_refusal: false,
            wrong_msk: false,
            eap_only: EapOnly::Never,
            multiple_auth: false,
            ignore_auth: false,
            insist_on: None,
            signature_hashes: true,
            cut_ciphertext: None,
            silent_intermediate: false,
            unproven_intermediate: false,
            fragment: Some(1200),
            refuse_child_rekey: None,
            refuse_ike_rekey: None,
            refuse_new_child: None,
            loser: None,
            child_life: None,
            ike_life: None,
            auth_lifetime: None,
            half_open: Duration::from_secs(30),
            dpd: None,
            patience: Duration::from_secs(30),
            complain: true,
            mobike: true,
            addresses: Vec::new(),
            unacceptable: Vec::new(),
            rekey_after_update: false,
            check_routability: false,
            redirect: None,
            tickets: None,
            tickets_survive: false,
            resumes_without_nat: false,
            unique: Unique::Keep,
            pool: Vec::new(),
            sticky: true,
            servers: Vec::new(),
            selectors: None,
        }
    }
}

/// How the gateway proves itself.
pub enum Proof {
    /// A pre-shared key.
    Psk(Vec<u8>),
    /// A certificate chain and its key.
    Certificate(Vec<Certificate>, PrivateKey),
}

/// What the gateway demands of the client.
pub enum ClientAuth {
    /// A pre-shared key.
    Psk(Vec<u8>),
    /// A signature by the key of the certificate that comes with it.
    Certificate,
    /// EAP, with a server of its own for each conversation.
    Eap(Box<dyn Fn() -> EapServer>),
    /// A signature, and then EAP (RFC 4739), with a server of its own for each conversation.
    CertificateThenEap(Box<dyn Fn() -> EapServer>),
}

/// Whether the gateway leaves its certificate out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EapOnly {
    /// Never.
    Never,
    /// When the client asks for it (RFC 5998).
    IfAsked,
    /// Always, as nobody may.
    Always,
}

/// Whether CREATE_CHILD_SA for a Child SA has a key exchange of its own, and so perfect forward secrecy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pfs {
    /// Never: an offer with a key exchange is refused.
    Never,
    /// As the client likes; of its own accord with one, and without after a refusal.
    Optional,
    /// Always: an offer without a key exchange is refused.
    Required,
}

/// One of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The gateway.
    Gateway,
    /// The client.
    Client,
}

/// How long an SA lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// At this age its end begins.
    pub age: Duration,
    /// What is done then.
    pub end: End,
}

/// What is done with an SA that has come of age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is rekeyed; if that has not worked out a tenth of its life later (a minute at least), it is deleted.
    Rekey,
    /// It is deleted.
    Delete,
}

/// Where clients are sent to, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// Only who comes to this address of the gateway's; none: everybody.
    pub at: Option<IpAddr>,
    /// In which exchange.
    pub when: RedirectWhen,
    /// Where to.
    pub to: Elsewhere,
}

/// The exchange in which a client is sent elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectWhen {
    /// IKE_SA_INIT.
    Init,
    /// The first IKE_AUTH response.
    FirstAuth,
    /// The last IKE_AUTH response.
    LastAuth,
}

/// Another gateway (RFC 5685, section 9.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// By its address.
    Address(IpAddr),
    /// By its name.
    Name(String),
}

/// What becomes of the older IKE SAs of an identity that connects anew, unless it says INITIAL_CONTACT, which ends them
/// silently in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unique {
    /// Nothing.
    Keep,
    /// They are deleted: at once, or ten seconds later when the client comes from the same address, as strongSwan does
    /// because it may be authenticating anew.
    Replace,
}
