//! Who is let in: the name that the server is called by, the origin of a page, the key.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::record::{Record, Recorded};
use super::refuse::{FORBIDDEN, UNAUTHORIZED, respond};
use super::routes::Server;
use crate::api::Refusal;

/// Paths that need no key: a balancer asks for the one, and a person types theirs into the other.
const OPEN: [&str; 2] = ["/", "/health"];

/// How long a browser may remember what it may ask.
const REMEMBER: &str = "600";

/// Records a request, and lets it in or not.
pub(super) async fn gate(State(server): State<Arc<Server>>, mut request: Request<Body>, next: Next) -> Response {
    let (method, path) = (request.method().as_str(), request.uri().path());
    let record = Record::begin(method, path, Arc::clone(&server.desk), Arc::clone(&server.log));
    request.extensions_mut().insert(Arc::clone(&record));
    let origin = allowed_origin(&server.rules.origins, request.headers());
    let mut response = match refused(&server, &request) {
        Some((status, message)) => {
            record.failed(message);
            let code = if status == UNAUTHORIZED { "invalid_api_key" } else { "bad_host" };
            respond(&Refusal::new(status, message).code(code))
        }
        None if is_preflight(&request) && origin.is_some() => preflight(request.headers()),
        None => next.run(request).await,
    };
    if let Some(origin) = origin {
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        response.headers_mut().append(header::VARY, HeaderValue::from_static("Origin"));
    }
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if server.is_ending() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    record.note().status = response.status().as_u16();
    hold(response, record)
}

/// Keeps the record as long as the response's body.
fn hold(response: Response, record: Arc<Record>) -> Response {
    response.map(|body| Body::new(Recorded { body, _record: record }))
}

fn refused(server: &Server, request: &Request<Body>) -> Option<(u16, &'static str)> {
    if !server.rules.names.as_ref().is_none_or(|names| is_called(names, request)) {
        return Some((FORBIDDEN, "this server does not go by the name in `Host`; --allow-host lets it"));
    }
    let free = OPEN.contains(&request.uri().path()) || is_preflight(request);
    if free || server.keys.is_empty() || has_key(&server.keys, request.headers()) {
        return None;
    }
    Some((UNAUTHORIZED, "an API key is needed: `Authorization: Bearer KEY`"))
}

/// Whether a request means this server: a page of elsewhere whose name was made to point here does not.
fn is_called(names: &[String], request: &Request<Body>) -> bool {
    let host = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or("?"));
    let authority = request.uri().authority().map(|authority| authority.as_str());
    host.into_iter().chain(authority).all(|host| is_one_of(names, host))
}

fn is_one_of(names: &[String], host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        || names.iter().any(|known| known.eq_ignore_ascii_case(bare))
}

fn allowed_origin(origins: &[String], headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    let known = origins.iter().any(|known| known == "*" || known.as_bytes() == origin.as_bytes());
    known.then(|| origin.clone())
}

fn is_preflight(request: &Request<Body>) -> bool {
    request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn preflight(headers: &HeaderMap) -> Response {
    let asked = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let asked = asked.unwrap_or(HeaderValue::from_static("authorization, content-type"));
    let fixed = |text| HeaderValue::from_static(text);
    let told: [(HeaderName, HeaderValue); 3] = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, fixed("GET, POST, OPTIONS")),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, asked),
        (header::ACCESS_CONTROL_MAX_AGE, fixed(REMEMBER)),
    ];
    (StatusCode::NO_CONTENT, told).into_response()
}

/// What keys are compared by, so that the time it takes tells nothing of them.
pub(super) fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

fn has_key(keys: &[[u8; 32]], headers: &HeaderMap) -> bool {
    let given = headers.get(header::AUTHORIZATION).and_then(|given| given.to_str().ok()).unwrap_or_default();
    let Some((scheme, key)) = given.split_once(' ') else { return false };
    let given = digest(key.trim());
    let differs = |key: &[u8; 32]| key.iter().zip(given).fold(0, |sum, (a, b)| sum | (a ^ b)) != 0;
    // all of them, whichever fits
    let fits = keys.iter().fold(false, |fits, key| fits | !differs(key));
    scheme.eq_ignore_ascii_case("bearer") && fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_goes_by_its_names() {
        let names = ["box.lan".to_owned()];
        for host in ["localhost", "LOCALHOST:80", "127.0.0.1:8080", "127.9.9.9", "[::1]:8080", "[::1]", "box.lan:1"] {
            assert!(is_one_of(&names, host), "{host}");
        }
        for host in ["evil.example", "evil.example:8080", "localhost.evil.example", "1.2.3.4", "", "[::2]:1", "?"] {
            assert!(!is_one_of(&names, host), "{host}");
        }
    }

    #[test]
    fn keys_fit_whole() {
        let keys = [digest("secret"), digest("other")];
        let with = |value: &str| HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap())]);
        for value in ["Bearer secret", "bearer other", "Bearer  secret"] {
            assert!(has_key(&keys, &with(value)), "{value}");
        }
        for value in ["Bearer secre", "Bearer secret2", "secret", "Basic secret", "Bearer ", "Bearer"] {
            assert!(!has_key(&keys, &with(value)), "{value}");
        }
        assert!(!has_key(&keys, &HeaderMap::new()));
    }
}
