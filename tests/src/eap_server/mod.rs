//! The server side of the EAP methods, as a gateway or its authentication server runs it.
//!
//! Made for tests: it may panic on a peer that breaks the protocol, and it breaks the protocol itself on demand.

mod mschapv2;
mod password;
mod tls;
mod tunnel;

pub use mschapv2::{MsChapBehaviour, MsChapServer};
pub use password::{GtcServer, Md5Server};
pub use tls::{EapTlsServer, TlsBehaviour, tls_server_config};
pub use tunnel::{Avp, Inside, PeapInside, TtlsInside, TunnelServer, Word, avps};

/// What the server does with a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerStep {
    /// It sends this EAP-Request.
    Request(Vec<u8>),
    /// It is content with the peer: an EAP-Success, and the MSK for the gateway.
    Success {
        /// The EAP-Success.
        packet: Vec<u8>,
        /// The Master Session Key, if the method makes one.
        msk: Option<Box<[u8; 64]>>,
    },
    /// It refuses the peer with this EAP-Failure.
    Failure(Vec<u8>),
}

/// The server side of one EAP conversation.
#[derive(Debug)]
pub struct EapServer {
    method: ServerMethod,
    identifier: u8,
    ask_identity: bool,
    identity: Option<String>,
}

/// The method that a server runs.
#[derive(Debug)]
pub enum ServerMethod {
    /// EAP-TLS.
    Tls(Box<EapTlsServer>),
    /// EAP-TTLS or PEAP.
    Tunnel(Box<TunnelServer>),
    /// EAP-MSCHAPv2.
    MsChapV2(MsChapServer),
    /// EAP-GTC.
    Gtc(GtcServer),
    /// EAP-MD5.
    Md5(Md5Server),
}

/// What a method does with the type data of a response.
enum Verdict {
    Continue(Vec<u8>),
    Accept(Option<Box<[u8; 64]>>),
    Refuse,
}

impl EapServer {
    /// A server that runs `method`, after a request for the peer's identity if `ask_identity` says so.
    #[must_use]
    pub const fn new(method: ServerMethod, ask_identity: bool) -> Self {
        Self {
            method,
            identifier: 0,
            ask_identity,
            identity: None,
        }
    }

    /// The first request.
    pub fn start(&mut self) -> Vec<u8> {
        if self.ask_identity {
            self.request(1, &[])
        } else {
            self.start_method()
        }
    }

    /// The peer's answer to the request for its identity.
    #[must_use]
    pub fn identity(&self) -> Option<&str> {
        self.identity.as_deref()
    }

    /// The method, to see how it ended.
    #[must_use]
    pub const fn method(&self) -> &ServerMethod {
        &self.method
    }

    /// Takes a response.
    ///
    /// # Panics
    ///
    /// If it is no EAP-Response to the last request, or of a type that was not asked for.
    pub fn handle(&mut self, response: &[u8]) -> ServerStep {
        let [2, identifier, high, low, kind, data @ ..] = response else {
            panic!("not an EAP-Response: {response:02x?}");
        };
        assert_eq!(*identifier, self.identifier, "the identifier of the request");
        assert_eq!(
            usize::from(u16::from_be_bytes([*high, *low])),
            response.len(),
            "the length of the response"
        );

        let verdict = match (kind, &mut self.method) {
            (1, _) if self.ask_identity && self.identity.is_none() => {
                self.identity = Some(String::from_utf8(data.to_vec()).expect("an identity in UTF-8"));
                return ServerStep::Request(self.start_method());
            }
            (3, _) => Verdict::Refuse,
            (13, ServerMethod::Tls(server)) => server.handle(data),
            (21 | 25, ServerMethod::Tunnel(server)) => server.handle(data),
            (26, ServerMethod::MsChapV2(server)) => server.handle(data),
            (6, ServerMethod::Gtc(server)) => server.handle(data),
            (4, ServerMethod::Md5(server)) => server.handle(*identifier, data),
            (kind, _) => panic!("a response of EAP type {kind} that nobody asked for"),
        };
        match verdict {
            Verdict::Continue(data) => ServerStep::Request(self.request(self.kind(), &data)),
            Verdict::Accept(msk) => ServerStep::Success {
                packet: vec![3, self.identifier, 0, 4],
                msk,
            },
            Verdict::Refuse => ServerStep::Failure(vec![4, self.identifier, 0, 4]),
        }
    }

    const fn kind(&self) -> u8 {
        match &self.method {
            ServerMethod::Tls(_) => 13,
            ServerMethod::Tunnel(server) => server.kind(),
            ServerMethod::MsChapV2(_) => 26,
            ServerMethod::Gtc(_) => 6,
            ServerMethod::Md5(_) => 4,
        }
    }

    fn start_method(&mut self) -> Vec<u8> {
        let data = match &mut self.method {
            ServerMethod::Tls(_) => vec![tls::START],
            ServerMethod::Tunnel(server) => server.start(),
            ServerMethod::MsChapV2(server) => server.challenge(),
            ServerMethod::Gtc(server) => server.question(),
            ServerMethod::Md5(server) => server.challenge(),
        };
        self.request(self.kind(), &data)
    }

    fn request(&mut self, kind: u8, data: &[u8]) -> Vec<u8> {
        self.identifier = self.identifier.wrapping_add(1);
        let length = u16::try_from(5 + data.len())
            .expect("a request that fits")
            .to_be_bytes();
        let mut packet = vec![1, self.identifier, length[0], length[1], kind];
        packet.extend_from_slice(data);
        packet
    }
}
