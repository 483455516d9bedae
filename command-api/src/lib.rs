//! The command role: turns a like into a `LikeToggled` event in the log.
//!
//! [`Commands`] is the role without HTTP, which the simulation drives; the other files are its resources. May depend
//! on the schema, the storage ports and the shared edge. Must never know how a like is folded, which adapter is behind
//! a port, or the other roles.

#![forbid(unsafe_code)]

mod backlog;
mod commands;
mod likes;
mod status;

use std::sync::Arc;

use actix_web::{http::Method, web};
use likewise_http::{Concurrency, Routes};
use utoipa::OpenApi;

pub use self::{
    backlog::{Backlog, BacklogLimit},
    commands::{Accepted, Command, Commands, Deadline, Ports, Refusal},
};

/// Commands under way at once in one process; more wait 50 ms, then are refused.
const COMMANDS_MAX: usize = 4096;

/// What the handlers share.
pub struct State {
    commands: Commands,
    concurrency: Concurrency,
}

impl State {
    /// Handlers' state around the role.
    pub fn new(commands: Commands) -> Self {
        Self { commands, concurrency: Concurrency::new(COMMANDS_MAX) }
    }

    /// Keeps the knowledge of the projection's lag fresh; runs as long as the role does.
    pub async fn watch_backlog(&self) {
        self.commands.watch_backlog().await;
    }
}

/// Adds the role's routes.
pub fn routes(routes: &mut Routes, state: &Arc<State>) {
    let state = web::Data::from(Arc::clone(state));
    macro_rules! handler {
        ($handler:path) => {{
            let state = state.clone();
            move |request, payload| $handler(state.clone(), request, payload)
        }};
    }
    routes.add(Method::POST, "/v1/likes", handler!(likes::create));
    routes.add(Method::POST, "/v1/likes/batch", handler!(likes::batch));
    routes.add(Method::PUT, "/v1/contents/{contentType}/{contentId}/like", handler!(likes::like));
    routes.add(Method::DELETE, "/v1/contents/{contentType}/{contentId}/like", handler!(likes::unlike));
    let state = state.clone();
    routes.add(Method::GET, "/v1/commands/{requestId}", move |request| status::get(state.clone(), request));
}

/// The role's part of the OpenAPI document.
#[derive(OpenApi)]
#[openapi(paths(likes::create, likes::batch, likes::like, likes::unlike, status::get))]
pub struct Api;
