//! Fetching over HTTP beside the tunnel: names are looked up there, and connections made by sockets with our mark.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use peregrine_core::command::HostFault;
use peregrine_core::fetch::{Fetch, HttpUrl};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::sleep;

use super::socket;
use crate::http::{Reply, exchange};

/// One address has this much head start over the next (RFC 8305, section 5).
const HEAD_START: Duration = Duration::from_millis(250);
/// More addresses of a name are not tried.
const MAX_ADDRESSES: usize = 4;

/// The body of what is to be fetched. `resolve` looks up names beside the tunnel.
pub(super) async fn fetch<R>(fetch: Fetch, resolve: impl Fn(String) -> R) -> io::Result<Vec<u8>>
where
    R: Future<Output = Result<Vec<IpAddr>, HostFault>>,
{
    let mut url = fetch.url.clone();
    for _ in 0..=Fetch::MAX_REDIRECTIONS {
        let addresses = match url.host().parse() {
            Ok(address) => vec![address],
            Err(_) => resolve(url.host().to_owned())
                .await
                .map_err(|fault| io::Error::other(fault.reason))?,
        };
        let mut stream = connect(&permitted(&fetch, &url, &addresses)?).await?;
        let post = fetch.post.as_ref().map(|(kind, body)| (*kind, &body[..]));
        match exchange(&mut stream, &url, post).await? {
            Reply::Body(body) => return Ok(body),
            Reply::Elsewhere(location) => {
                url = url
                    .join(&location)
                    .map_err(|error| io::Error::other(format!("sent elsewhere: {error}")))?;
            }
        }
    }
    Err(io::Error::other("sent elsewhere too often"))
}

/// Those of the addresses that may be connected to.
fn permitted(fetch: &Fetch, url: &HttpUrl, addresses: &[IpAddr]) -> io::Result<Vec<SocketAddr>> {
    let permitted = addresses.iter().filter(|address| fetch.permits(**address));
    let permitted: Vec<_> = permitted
        .take(MAX_ADDRESSES)
        .map(|address| SocketAddr::new(*address, url.port()))
        .collect();
    match (permitted.is_empty(), addresses.first()) {
        (false, _) => Ok(permitted),
        (true, None) => Err(io::Error::other("its name has no address")),
        (true, Some(address)) => Err(io::Error::other(format!(
            "its address {address} is not one that is asked from here"
        ))),
    }
}

/// A connection to the first address that accepts one.
async fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut connecting: FuturesUnordered<_> = (0..)
        .zip(addresses)
        .map(|(place, address)| async move {
            sleep(HEAD_START * place).await;
            let socket = TcpSocket::from_std_stream(socket::marked_tcp(*address)?.into());
            socket.connect(*address).await
        })
        .collect();
    let mut outcome = Err(io::ErrorKind::AddrNotAvailable.into());
    while let Some(connected) = connecting.next().await {
        outcome = connected;
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}
