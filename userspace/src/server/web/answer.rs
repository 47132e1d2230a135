//! One request, one answer.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;

use super::Shared;
use super::access::{COOKIE, SESSION_LIFETIME, is_ours};
use super::assets::{self, Asset, CLOSED, OPENED};
use crate::http::Answer;

/// Nothing but what the page's own server has: no script or style in the page itself, no other site, no frame.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

/// Those that each answer has.
const HEADERS: [(&str, &str); 8] = [
    ("content-security-policy", CONTENT_SECURITY_POLICY),
    ("cache-control", "no-store"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
];

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

impl Shared {
    /// Answers. A body that comes with the request is not read.
    pub async fn answer<B>(&self, request: &Request<B>) -> Answer {
        let host =
            request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        if !is_ours(host, self.doors.address) {
            return plain(
                StatusCode::MISDIRECTED_REQUEST,
                "ask for this page as localhost, or by its address\n",
            );
        }
        if request.method() != Method::GET {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "this page changes nothing\n");
        }
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        if path == "/open" {
            return self.open(query);
        }
        if !assets::is_public(path) && !self.admits(request) {
            return if path.starts_with("/api/") {
                plain(StatusCode::UNAUTHORIZED, "run `murmesh ui` on the server's host for a new link\n")
            } else {
                of_asset(StatusCode::UNAUTHORIZED, &CLOSED)
            };
        }
        match path {
            "/api/mesh" => match self.live.state(&parameter(query, "after").unwrap_or_default()).await {
                Some(state) => with_type(StatusCode::OK, JSON, state),
                None => with_type(StatusCode::NO_CONTENT, JSON, Bytes::new()),
            },
            "/api/reach" => self.reach(query),
            _ => match assets::find(path) {
                Some(asset) => of_asset(StatusCode::OK, &asset),
                None => plain(StatusCode::NOT_FOUND, "there is nothing here\n"),
            },
        }
    }

    fn admits<B>(&self, request: &Request<B>) -> bool {
        let cookies = request.headers().get_all(header::COOKIE);
        cookies
            .iter()
            .filter_map(|cookies| cookies.to_str().ok())
            .any(|cookies| self.doors.access.admits(cookies))
    }

    fn open(&self, query: &str) -> Answer {
        let session = parameter(query, "key").and_then(|key| self.doors.access.open(&key));
        let Some(session) = session else { return of_asset(StatusCode::UNAUTHORIZED, &CLOSED) };
        let lifetime = SESSION_LIFETIME.as_secs();
        let cookie = format!("{COOKIE}={session}; Path=/; Max-Age={lifetime}; HttpOnly; SameSite=Strict");
        let mut answer = of_asset(StatusCode::OK, &OPENED);
        if let Ok(cookie) = HeaderValue::from_str(&cookie) {
            answer.headers_mut().insert(header::SET_COOKIE, cookie);
        }
        answer
    }

    fn reach(&self, query: &str) -> Answer {
        let (Some(from), Some(to)) = (parameter(query, "from"), parameter(query, "to")) else {
            return plain(StatusCode::BAD_REQUEST, "name a source (from) and a destination (to)\n");
        };
        match self.live.reach(&from, &to) {
            Ok(reached) => with_type(StatusCode::OK, JSON, reached.into()),
            Err(error) => plain(StatusCode::BAD_REQUEST, &format!("{error}\n")),
        }
    }
}

/// The first value of a name in a query; spaces are `%20`.
fn parameter(query: &str, name: &str) -> Option<String> {
    let value = query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name)?.1;
    Some(percent_decode_str(value).decode_utf8().ok()?.into_owned())
}

fn of_asset(status: StatusCode, asset: &Asset) -> Answer {
    with_type(status, asset.media_type, Bytes::from_static(asset.body.as_bytes()))
}

fn plain(status: StatusCode, text: &str) -> Answer {
    with_type(status, TEXT, Bytes::copy_from_slice(text.as_bytes()))
}

fn with_type(status: StatusCode, media_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_by_their_names() {
        let query = "from=host%2Fa%20b&to=&from=c";
        assert_eq!(parameter(query, "from").as_deref(), Some("host/a b"));
        assert_eq!(parameter(query, "to").as_deref(), Some(""));
        assert_eq!((parameter(query, "after"), parameter("from=%ff", "from")), (None, None));
    }

    #[test]
    fn an_answer_keeps_browsers_from_everything_else() {
        let answer = plain(StatusCode::OK, "");
        let policy = answer.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.headers().len(), HEADERS.len() + 1);
    }
}
