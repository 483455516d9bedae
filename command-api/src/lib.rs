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

use std::{sync::Arc, time::Duration};

use actix_web::{http::Method, web};
use likewise_http::{Concurrency, Routes};
use likewise_schema::ContentType;
use utoipa::OpenApi;

pub use self::{
    backlog::{Backlog, BacklogLimit},
    commands::{Accepted, Budget, Command, Commands, Deadline, Limits, Ports, Refusal},
};

/// Commands under way at once in one process; more wait 50 ms, then are refused.
const COMMANDS_MAX: usize = 4096;
/// What a command may take before fewer are taken at once: half of what a like may take end to end.
const COMMAND_TARGET: Duration = Duration::from_millis(100);

/// What the handlers share.
pub struct State {
    commands: Arc<Commands>,
    content_types: Vec<ContentType>,
    concurrency: Concurrency,
}

impl State {
    /// Handlers' state around the role, for contents of these types; of any type if there are none.
    pub fn new(commands: Commands, content_types: Vec<ContentType>) -> Self {
        let concurrency = Concurrency::adaptive("commands", COMMANDS_MAX, COMMAND_TARGET);
        Self { commands: Arc::new(commands), content_types, concurrency }
    }

    /// The role without HTTP.
    pub fn commands(&self) -> &Arc<Commands> {
        &self.commands
    }

    /// Whether likes of such contents are taken.
    fn takes(&self, content_type: &ContentType) -> bool {
        self.content_types.is_empty() || self.content_types.contains(content_type)
    }

    /// Keeps what the role knows of its surroundings fresh; runs as long as the role does.
    pub async fn keep_up(&self) {
        self.commands.keep_up().await;
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
