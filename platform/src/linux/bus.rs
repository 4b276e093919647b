//! The system's D-Bus.

use std::time::Duration;

use zbus::Connection;
use zbus::connection::Builder;

/// How long whoever is asked may take for one answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Connects to the bus at `address`; to the system's usual one if there is none.
pub(super) async fn connect(address: Option<&str>) -> zbus::Result<Connection> {
    let builder = address.map_or_else(Builder::system, Builder::address);
    let connecting = builder.method_timeout(PATIENCE).build();
    let late = |_| zbus::Error::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
    tokio::time::timeout(PATIENCE, connecting).await.map_err(late)?
}
