//! Which path leads where.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::Request;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Router, middleware};

use super::Rules;
use super::answer::answer;
use super::desk::{Desk, Phase};
use super::gate::{digest, gate};
use super::health::{health, metrics, models, now, one_model};
use super::page::Page;
use super::record::Log;
use super::refuse::{BAD, NOT_ALLOWED, NOT_FOUND, respond};
use crate::api::{Endpoint, Refusal};

/// What all requests share.
pub(super) struct Server {
    pub(super) desk: Arc<Desk>,
    pub(super) rules: Rules,
    pub(super) keys: Vec<[u8; 32]>,
    pub(super) log: Log,
    pub(super) created: u64,
    page: Page,
}

impl Server {
    pub(super) fn new(desk: Arc<Desk>, rules: Rules, log: Log) -> Arc<Self> {
        let keys = rules.keys.iter().map(|key| digest(key)).collect();
        Arc::new(Self { desk, rules, keys, log, created: now(), page: Page::new() })
    }

    /// Whether connections are not to be kept.
    pub(super) fn is_ending(&self) -> bool {
        matches!(self.desk.phase(), Phase::Draining | Phase::Over)
    }
}

type Shared = State<Arc<Server>>;

pub(super) fn router(server: Arc<Server>) -> Router {
    let chat = |State(server): Shared, request: Request<Body>| answer(server, Endpoint::Chat, request);
    let completions = |State(server): Shared, request: Request<Body>| answer(server, Endpoint::Completions, request);
    let one = |State(server): Shared, id: Result<Path<String>, PathRejection>| async move {
        match id {
            Ok(Path(id)) => one_model(&server, &id),
            Err(rejection) => respond(&Refusal::new(BAD, rejection.body_text())),
        }
    };
    Router::new()
        .route("/", get(|State(server): Shared| async move { server.page.respond() }))
        .route("/health", get(|State(server): Shared| async move { health(&server) }))
        .route("/metrics", get(|State(server): Shared| async move { metrics(&server) }))
        .route("/v1/models", get(|State(server): Shared| async move { models(&server) }))
        .route("/v1/models/{*id}", get(one))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .fallback(unknown)
        .method_not_allowed_fallback(not_allowed)
        .layer(middleware::from_fn_with_state(Arc::clone(&server), gate))
        .with_state(server)
}

async fn unknown(request: Request<Body>) -> Response {
    let message = format!("there is nothing at {}", request.uri().path());
    respond(&Refusal::new(NOT_FOUND, message).code("unknown_url"))
}

async fn not_allowed(request: Request<Body>) -> Response {
    let message = format!("{} is not for {}", request.method(), request.uri().path());
    respond(&Refusal::new(NOT_ALLOWED, message).code("method_not_allowed"))
}
