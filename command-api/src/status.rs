//! `GET /v1/commands/{requestId}`: what became of a command.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use likewise_http::{Caller, Kind, Params, Problem};
use likewise_schema::{Content, Position, RequestId};
use likewise_storage::requests::RequestKey;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    State,
    commands::Progress,
    likes::{RETRY, busy},
};

/// By when a status is answered.
const STATUS_DEADLINE: Duration = Duration::from_millis(500);

/// What became of a command.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CommandStatus {
    /// Its requestId.
    #[schema(value_type = String, format = "uuid")]
    request_id: RequestId,
    /// `accepted`: in the log, not projected yet. `applied`: projected. `superseded`: a v7 id that the pair's last 16
    /// commands no longer hold: later ones have taken its place. `unknown`: nothing is known of it (any more).
    status: &'static str,
    /// Where its event is, if that is still known.
    #[schema(value_type = Option<String>)]
    position: Option<Position>,
}

/// What became of a command, for its owner.
#[utoipa::path(get, path = "/v1/commands/{requestId}", tag = "commands",
    params(("requestId" = String, Path), ("viewer" = Option<String>, Query, description = "The owner, for a service key and in the open loopback mode"),
           ("content" = Option<String>, Query, description = "`post:42`: finds a command after its answer was forgotten")),
    responses((status = 200, body = CommandStatus), (status = 400, description = "A parameter is not valid"),
              (status = 401, description = "No credential that is accepted"),
              (status = 403, description = "The key's scopes do not cover commands"),
              (status = 503, description = "The records are away")))]
pub(crate) async fn get(state: web::Data<State>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let mut params = Params::of(&request);
    let request_id = params.path::<RequestId>("requestId");
    let content = params.optional::<Content>("content");
    let subject = Caller::of(&request, &mut params)?.acting_viewer(&mut params)?;
    params.finish()?;
    let (Some(request_id), Some(subject)) = (request_id, subject) else {
        return Err((&Kind::INVALID_PARAMETER).into());
    };
    let away = || Problem::new(&Kind::UNAVAILABLE, "The records are away.").with_retry_after(RETRY);
    let _turn = state.concurrency.enter().await.map_err(|_| busy())?;
    let progress = state.commands.progress(RequestKey { subject, request: request_id }, content);
    let progress = tokio::time::timeout(STATUS_DEADLINE, progress).await.map_err(|_| away())?;
    let (status, position) = match progress.map_err(|_| away())? {
        Progress::Accepted(position) => ("accepted", Some(position)),
        Progress::Applied(position) => ("applied", position),
        Progress::Superseded(position) => ("superseded", Some(position)),
        Progress::Unknown => ("unknown", None),
    };
    let answer = CommandStatus { request_id, status, position };
    Ok(HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "no-store")).json(answer))
}
