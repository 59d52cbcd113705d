//! What is said of the server itself: whether it is ready, which models it has, its metrics.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::desk::Phase;
use super::refuse::{NOT_FOUND, object, respond, status};
use super::routes::Server;
use crate::api::Refusal;

pub(super) fn health(server: &Server) -> Response {
    let phase = server.desk.phase();
    let mut response = object(&status(phase.name()));
    if phase != Phase::Ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

pub(super) fn metrics(server: &Server) -> Response {
    let text = server.desk.metrics.text(&server.desk);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// When the server began, in seconds.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn model(name: &str, context: usize, created: u64) -> Value {
    json!({"id": name, "object": "model", "created": created, "owned_by": "tbshard", "max_model_len": context})
}

pub(super) fn models(server: &Server) -> Response {
    let texts = server.desk.texts();
    let models: Vec<Value> = texts.iter().map(|texts| model(&texts.name, texts.context, server.created)).collect();
    object(&json!({"object": "list", "data": models}))
}

pub(super) fn one_model(server: &Server, id: &str) -> Response {
    match server.desk.texts().filter(|texts| texts.name == id) {
        Some(texts) => object(&model(&texts.name, texts.context, server.created)),
        None => respond(&Refusal::new(NOT_FOUND, format!("there is no model `{id}` here")).code("model_not_found")),
    }
}
