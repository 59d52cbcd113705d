//! What a client is told instead of an answer: an error object as OpenAI's, with the right status.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::api::Refusal;

pub(super) const BAD: u16 = 400;
pub(super) const UNAUTHORIZED: u16 = 401;
pub(super) const FORBIDDEN: u16 = 403;
pub(super) const NOT_FOUND: u16 = 404;
pub(super) const NOT_ALLOWED: u16 = 405;
pub(super) const TOO_SLOW: u16 = 408;
pub(super) const TOO_LARGE: u16 = 413;
pub(super) const UNSUPPORTED: u16 = 415;
pub(super) const TOO_MANY: u16 = 429;
pub(super) const FAILED: u16 = 500;
pub(super) const LOST: u16 = 502;
pub(super) const UNAVAILABLE: u16 = 503;
pub(super) const TIMED_OUT: u16 = 504;

/// Seconds after which it is worth another try.
const AGAIN: [(u16, &str); 2] = [(TOO_MANY, "1"), (UNAVAILABLE, "5")];

/// A run that ended under an answer.
pub(super) fn lost(why: &str) -> Refusal {
    Refusal::new(LOST, format!("{why}; the model is loaded again, ask again soon")).code("rank_lost")
}

/// An answer that took too long.
pub(super) fn late() -> Refusal {
    Refusal::new(TIMED_OUT, "the answer took longer than this server allows").code("timeout")
}

/// What nobody foresaw.
pub(super) fn failed(why: impl ToString) -> Refusal {
    Refusal::new(FAILED, why.to_string()).code("failed")
}

/// The object, and the headers that say when to try again or how.
pub(super) fn respond(refusal: &Refusal) -> Response {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, object(&refusal.body())).into_response();
    let again = AGAIN.iter().find(|(status, _)| *status == refusal.status);
    if let Some((_, seconds)) = again {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
    }
    if refusal.status == UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// A JSON body.
pub(super) fn object(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// What is said of something that is well.
pub(super) fn status(status: &str) -> Value {
    json!({"status": status})
}
