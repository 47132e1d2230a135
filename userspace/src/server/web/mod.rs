//! The server's page: the mesh as it is now, to be looked at in a browser on the server's own host.
//!
//! It changes nothing, and is only served on loopback. Who may see it, and by what, is in [`access`].

mod access;
mod answer;
mod assets;
mod state;

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::Request;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tracing::{info, warn};

use super::ServerError;
use super::listener::listen;
use crate::http::{self, Limits};
use access::Access;
use state::Live;
pub use state::Sources;

/// Where the page is, unless told otherwise.
pub const DEFAULT_PAGE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9194);

/// Browsers make six connections each, and wait on one of them for something new.
const LIMITS: Limits = Limits { connections: 64, timeout: Duration::from_secs(60) };

/// Where a server has its page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PageOptions {
    /// At [`DEFAULT_PAGE`]; nowhere where that is taken.
    #[default]
    Default,
    /// There.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

/// Not an address that the page may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageAddressError {
    /// Not an address.
    #[error("{0:?} is neither off nor an address such as {DEFAULT_PAGE}")]
    Unknown(String),
    /// Other machines could read it on its way.
    #[error(
        "{0} is not a loopback address: the page is not encrypted; to see it from elsewhere use `ssh -L`"
    )]
    NotLoopback(SocketAddr),
}

impl FromStr for PageOptions {
    type Err = PageAddressError;

    fn from_str(text: &str) -> Result<Self, PageAddressError> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let unknown = |_| PageAddressError::Unknown(crate::identity::excerpt(text));
        let address: SocketAddr = text.parse().map_err(unknown)?;
        if address.ip().is_loopback() {
            Ok(Self::At(address))
        } else {
            Err(PageAddressError::NotLoopback(address))
        }
    }
}

/// The page, bound and not served yet.
pub struct Page {
    listener: TcpListener,
    doors: Doors,
}

/// What gives out links to the page.
#[derive(Debug, Clone)]
pub struct Doors {
    address: SocketAddr,
    access: Arc<Access>,
}

/// What a connection is answered from.
struct Shared {
    doors: Doors,
    live: Live,
}

impl Page {
    /// `None` where there is to be none, or its default address cannot be had: a server is there for more than that.
    ///
    /// # Errors
    /// Another address cannot be listened on.
    pub fn bind(options: PageOptions) -> Result<Option<Self>, ServerError> {
        let (address, is_needed) = match options {
            PageOptions::Default => (DEFAULT_PAGE, false),
            PageOptions::At(address) => (address, true),
            PageOptions::Off => return Ok(None),
        };
        let bound = listen(address).and_then(|listener| Ok((listener.local_addr()?, listener)));
        let (address, listener) = match bound {
            Ok(bound) => bound,
            Err(error) => {
                let error = ServerError::Page { address, reason: error.to_string() };
                if is_needed {
                    return Err(error);
                }
                warn!("{error}");
                return Ok(None);
            }
        };
        Ok(Some(Self { listener, doors: Doors { address, access: Arc::default() } }))
    }

    /// What gives out links to it.
    pub fn doors(&self) -> Doors {
        self.doors.clone()
    }

    /// Serves for as long as it is run.
    pub async fn serve(self, sources: Sources) {
        info!(address = %self.doors.address, "the page is there; `murmesh ui` gives a link to it");
        let shared = Arc::new(Shared { doors: self.doors, live: Live::new(sources) });
        let answer = move |request: Request<Incoming>| {
            let shared = shared.clone();
            async move { shared.answer(&request).await }
        };
        http::serve(self.listener, LIMITS, answer).await;
    }
}

impl Doors {
    /// A link that can be opened once, and until when.
    ///
    /// # Errors
    /// The operating system gives no randomness.
    pub fn link(&self) -> Result<(String, SystemTime), aws_lc_rs::error::Unspecified> {
        let key = self.access.new_link()?;
        Ok((format!("http://{}/open?key={key}", self.address), SystemTime::now() + access::LINK_LIFETIME))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_on_loopback_or_nowhere() {
        assert_eq!("off".parse(), Ok(PageOptions::Off));
        assert_eq!("127.0.0.1:80".parse(), Ok(PageOptions::At(([127, 0, 0, 1], 80).into())));
        assert!("[::1]:80".parse::<PageOptions>().is_ok());
        assert!(matches!("0.0.0.0:80".parse::<PageOptions>(), Err(PageAddressError::NotLoopback(_))));
        assert!(matches!("80".parse::<PageOptions>(), Err(PageAddressError::Unknown(_))));
    }
}
