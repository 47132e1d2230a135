//! A host of the mesh that updates the keys of its TLS sessions without end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use murmesh_lab::Host;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;

use super::peer::{PATIENCE, connect, on};

/// Updates the keys of TLS sessions with `target` as fast as it can, one session after the other, until `enough`. In
/// each, `first` is said at its begin, and `again` after sixteen updates each time.
pub fn flood_key_updates(
    from: &Host,
    target: SocketAddr,
    config: &Arc<ClientConfig>,
    [first, again]: [&[u8]; 2],
    enough: &AtomicBool,
) -> Result<()> {
    on(from, async {
        while !enough.load(Ordering::Relaxed) {
            let Some(stream) = connect(target).await? else { continue };
            let connector = TlsConnector::from(config.clone());
            // It may be refused, for having been there too often.
            let Ok(mut stream) = connector.connect(target.ip().into(), stream).await else { continue };
            let mut said = stream.write_all(first).await;
            while said.is_ok() && !enough.load(Ordering::Relaxed) {
                for _ in 0..16 {
                    stream.get_mut().1.refresh_traffic_keys()?;
                }
                said = timeout(PATIENCE, async {
                    stream.write_all(again).await?;
                    stream.flush().await
                })
                .await?;
            }
        }
        Ok(())
    })
}
