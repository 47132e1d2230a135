//! The files that the page is made of. They are part of the program: nothing is fetched from elsewhere.

/// One file.
#[derive(Debug, PartialEq, Eq)]
pub struct Asset {
    /// What it is.
    pub media_type: &'static str,
    /// All of it.
    pub body: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

/// What is shown to those who may not see anything.
pub const CLOSED: Asset = Asset { media_type: HTML, body: include_str!("page/closed.html") };

/// What the browser that has opened a link gets: it leads to the page. A redirect would not do: where the link was on
/// another site, the browser would follow it without the new cookie.
pub const OPENED: Asset = Asset { media_type: HTML, body: include_str!("page/opened.html") };

/// The file at a path.
pub fn find(path: &str) -> Option<Asset> {
    let (media_type, body) = match path {
        "/" => (HTML, include_str!("page/index.html")),
        "/page.css" => (CSS, include_str!("page/page.css")),
        "/icon.svg" => (IMAGE, include_str!("page/icon.svg")),
        "/main.js" => (SCRIPT, include_str!("page/main.js")),
        "/model.js" => (SCRIPT, include_str!("page/model.js")),
        "/dom.js" => (SCRIPT, include_str!("page/dom.js")),
        "/graph.js" => (SCRIPT, include_str!("page/graph.js")),
        "/tables.js" => (SCRIPT, include_str!("page/tables.js")),
        "/policy.js" => (SCRIPT, include_str!("page/policy.js")),
        _ => return None,
    };
    Some(Asset { media_type, body })
}

/// Whether anybody may have it: what the page of those who may not see anything is made of.
pub fn is_public(path: &str) -> bool {
    matches!(path, "/page.css" | "/icon.svg")
}
