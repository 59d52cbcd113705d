//! The built-in page to chat on: one file, which may load nothing and talk with nobody but this server.

use axum::http::header;
use axum::response::{Html, IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

const HTML: &str = include_str!("page.html");

/// The page, and what a browser is told that it may do.
pub(super) struct Page {
    policy: String,
}

impl Page {
    pub(super) fn new() -> Self {
        let (script, style) = (hash("<script>", "</script>"), hash("<style>", "</style>"));
        let policy = format!(
            "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
        Self { policy }
    }

    pub(super) fn respond(&self) -> Response {
        let headers = [
            (header::CONTENT_SECURITY_POLICY, self.policy.as_str()),
            (header::REFERRER_POLICY, "no-referrer"),
            (header::CACHE_CONTROL, "no-cache"),
        ];
        (headers, Html(HTML)).into_response()
    }
}

/// What a policy calls the one element of its kind.
fn hash(begin: &str, end: &str) -> String {
    let inside = HTML.split_once(begin).and_then(|(_, rest)| rest.split_once(end));
    let text = inside.map_or("", |(text, _)| text);
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_whole_in_itself() {
        for tag in ["<script", "<style"] {
            assert_eq!(HTML.matches(tag).count(), 1, "{tag}");
        }
        for outside in ["http:", "https:", "src=", "@import", "url(", "innerHTML", "style=", " onclick", " onload"] {
            let found = HTML.lines().find(|line| line.contains(outside));
            assert_eq!(found, None, "{outside}");
        }
    }
}
