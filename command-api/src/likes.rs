//! `POST /v1/likes`, its batch, and `PUT`/`DELETE` of one like.

use std::{borrow::Cow, net::IpAddr, str::FromStr, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{self, HeaderName},
    web,
};
use likewise_http::{
    BodyLimit, Caller, Fault, Fields, Found, Kind, Outcome, Params, Problem, Proxies, note_ids, read_body, refuse_body,
    retry_after, trace_parent, wait_preference, whole_seconds,
};
use likewise_schema::{Content, ContentId, ContentType, Invalid, Position, RequestId, Timestamp, UserId};
use likewise_storage::requests::Intent;
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};
use uuid::Uuid;

use crate::{
    State,
    commands::{Accepted, Budget, Command, Refusal},
};

const BODY: BodyLimit = BodyLimit(4 * 1024);
const BATCH_BODY: BodyLimit = BodyLimit(64 * 1024);
const BATCH_MAX: usize = 100;
/// How soon to try again after the server was too busy.
pub(crate) const RETRY: Duration = Duration::from_secs(1);

type Answer = Result<HttpResponse, Problem>;

/// A like or unlike.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "describes the body for OpenAPI; it is read member by member, to name every fault")]
pub(crate) struct LikeRequest {
    /// Idempotency key: a UUID, version 7 advised. `Idempotency-Key` may stand for it.
    #[schema(format = "uuid", required = false)]
    request_id: String,
    /// The user; a string or an integer. A service key names the user it acts for; a user's token does so itself, and
    /// takes no `userId`.
    #[schema(example = "7")]
    user_id: Option<String>,
    /// `[a-z][a-z0-9_-]{0,19}`
    #[schema(example = "post")]
    content_type: String,
    /// 1..=2^63-1; a string or an integer.
    #[schema(example = "42")]
    content_id: String,
    /// The absolute state.
    liked: bool,
    /// When it happened, by the client's clock; informational.
    #[schema(format = "date-time")]
    occurred_at: Option<String>,
}

/// Up to 100 commands.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body for OpenAPI")]
pub(crate) struct BatchRequest {
    /// At most one command of each (user, content).
    commands: Vec<LikeRequest>,
}

/// A command that the log has.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LikeAnswer {
    /// Its idempotency key.
    #[schema(value_type = String, format = "uuid")]
    request_id: RequestId,
    /// Whose like.
    #[schema(value_type = String)]
    user_id: UserId,
    /// Of what kind of content.
    #[schema(value_type = String)]
    content_type: ContentType,
    /// Of which one.
    #[schema(value_type = String)]
    content_id: ContentId,
    /// The state asked for.
    liked: bool,
    /// `accepted`: it is in the log. `applied`: and projected.
    status: &'static str,
    /// For `after` in reads.
    #[schema(value_type = String)]
    position: Position,
    /// The content's likes once it was applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<i64>,
}

/// One outcome for each command of a batch, in order.
#[derive(Serialize, ToSchema)]
pub(crate) struct BatchAnswer {
    /// A command's answer with `status: accepted`, or a problem.
    #[schema(value_type = Vec<Object>)]
    results: Vec<serde_json::Value>,
}

fn answer(command: &Command, accepted: &Accepted, count: Option<i64>) -> LikeAnswer {
    let Intent { user, content, liked } = command.intent;
    LikeAnswer {
        request_id: command.request_id,
        user_id: user,
        content_type: content.content_type,
        content_id: content.content_id,
        liked,
        status: if count.is_some() { "applied" } else { "accepted" },
        position: accepted.position,
        count,
    }
}

/// Like or unlike a content.
#[utoipa::path(post, path = "/v1/likes", tag = "commands", request_body = LikeRequest,
    params(
        ("Prefer" = Option<String>, Header, description = "`wait=N`: wait up to N (at most 5) seconds until it is projected"),
        ("Idempotency-Key" = Option<String>, Header, description = "May stand for requestId, and must equal it"),
    ),
    responses(
        (status = 202, description = "The log has it", body = LikeAnswer),
        (status = 200, description = "It is projected (with `Prefer: wait`)", body = LikeAnswer),
        (status = 400, description = "Not the JSON expected"),
        (status = 401, description = "No credential that is accepted"),
        (status = 403, description = "The key's scopes do not cover commands"),
        (status = 409, description = "The same request is in flight"),
        (status = 413, description = "Over 4 KiB"),
        (status = 415, description = "Not plain JSON"),
        (status = 422, description = "A value out of range, or a requestId used for another command"),
        (status = 429, description = "Over 6 changes a minute of one pair"),
        (status = 503, description = "`outcome` says whether it may have been done"),
    ))]
pub(crate) async fn create(state: web::Data<State>, request: HttpRequest, payload: web::Payload) -> Answer {
    let sender = Sender::of(&state, &request)?;
    let body = read_body(&request, payload, BODY).await?;
    let mut fields = Fields::parse(&body)?;
    let command = sender.read_command(&mut fields, idempotency_key(&request)?);
    fields.finish()?;
    let command = command.ok_or(Problem::from(&Kind::INVALID_BODY))?;
    submit(&state, &request, command).await
}

/// What setting a like and taking it back come to.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "describes the answers for OpenAPI")]
enum Toggled {
    /// The log has it
    #[response(status = 202)]
    Accepted(LikeAnswer),
    /// It is projected
    #[response(status = 200)]
    Applied(LikeAnswer),
    /// A parameter is not valid
    #[response(status = 400)]
    Invalid,
    /// No credential that is accepted
    #[response(status = 401)]
    Unauthorized,
    /// The key's scopes do not cover commands
    #[response(status = 403)]
    Forbidden,
    /// The same request is in flight
    #[response(status = 409)]
    InFlight,
    /// A value out of range, or a requestId used for another command
    #[response(status = 422)]
    InvalidValue,
    /// Too many changes
    #[response(status = 429)]
    TooMany,
    /// See `outcome`
    #[response(status = 503)]
    Unavailable,
}

/// Like a content.
#[utoipa::path(
    put,
    path = "/v1/contents/{contentType}/{contentId}/like",
    tag = "commands",
    params(
        ("contentType" = String, Path), ("contentId" = String, Path),
        ("viewer" = Option<String>, Query, description = "The user that a service key acts for; in the open loopback mode, who likes"),
        ("Idempotency-Key" = Option<String>, Header, description = "Made by the server if it is left out"),
        ("Prefer" = Option<String>, Header, description = "`wait=N`"),
    ),
    responses(Toggled)
)]
pub(crate) async fn like(state: web::Data<State>, request: HttpRequest, payload: web::Payload) -> Answer {
    toggle(state, request, payload, true).await
}

/// Take a like back.
#[utoipa::path(
    delete,
    path = "/v1/contents/{contentType}/{contentId}/like",
    tag = "commands",
    params(
        ("contentType" = String, Path), ("contentId" = String, Path),
        ("viewer" = Option<String>, Query, description = "The user that a service key acts for; in the open loopback mode, who likes"),
        ("Idempotency-Key" = Option<String>, Header, description = "Made by the server if it is left out"),
        ("Prefer" = Option<String>, Header, description = "`wait=N`"),
    ),
    responses(Toggled)
)]
pub(crate) async fn unlike(state: web::Data<State>, request: HttpRequest, payload: web::Payload) -> Answer {
    toggle(state, request, payload, false).await
}

async fn toggle(state: web::Data<State>, request: HttpRequest, payload: web::Payload, liked: bool) -> Answer {
    let mut params = Params::of(&request);
    let content = params.content();
    let caller = Caller::of(&request, &mut params)?;
    let user = caller.acting_viewer(&mut params)?;
    if content.is_some_and(|content| !state.takes(&content.content_type)) {
        params.fault("contentType", TYPE_NOT_TAKEN);
    }
    params.finish()?;
    refuse_body(payload).await?;
    let (Some(content), Some(user)) = (content, user) else { return Err((&Kind::INVALID_PARAMETER).into()) };
    let request_id = match idempotency_key(&request)? {
        Some(key) => key.parse().map_err(|invalid: Invalid| {
            Problem::from(&Kind::INVALID_VALUE).with_errors(vec![Fault::parameter("Idempotency-Key", invalid.detail())])
        })?,
        None => RequestId::from_uuid(Uuid::now_v7()),
    };
    let trace_parent = trace_parent(&request, || Uuid::new_v4().as_u128());
    let (intent, address) = (Intent { user, content, liked }, address_of(&caller, &request));
    submit(&state, &request, Command { intent, request_id, occurred_at: None, trace_parent, address }).await
}

/// Up to 100 commands in one request.
#[utoipa::path(post, path = "/v1/likes/batch", tag = "commands", request_body = BatchRequest,
    responses((status = 200, description = "One outcome each, in order", body = BatchAnswer),
              (status = 400, description = "Not the JSON expected"), (status = 413, description = "Over 64 KiB"),
              (status = 401, description = "No credential that is accepted"),
              (status = 403, description = "The key's scopes do not cover commands"),
              (status = 503, description = "Nothing was done"),
              (status = 415, description = "Not plain JSON"),
              (status = 422, description = "A value out of range, or two commands for one pair")))]
pub(crate) async fn batch(state: web::Data<State>, request: HttpRequest, payload: web::Payload) -> Answer {
    let sender = Sender::of(&state, &request)?;
    let body = read_body(&request, payload, BATCH_BODY).await?;
    let commands = read_batch(&body, &sender)?;
    let _turn = state.concurrency.enter().await.map_err(|_| busy())?;
    let outcomes = commands.iter().map(|command| state.commands.submit(command));
    let outcomes = futures::future::join_all(outcomes).await;
    let results = commands.iter().zip(outcomes).map(|(command, outcome)| match outcome {
        Ok(accepted) => serde_json::to_value(answer(command, &accepted, None)).unwrap_or_default(),
        Err(refusal) => problem(refusal).to_json(),
    });
    Ok(HttpResponse::Ok().json(BatchAnswer { results: results.collect() }))
}

fn read_batch(body: &[u8], sender: &Sender<'_>) -> Result<Vec<Command>, Problem> {
    let mut fields = Fields::parse(body)?;
    let elements = fields.required("commands").and_then(|raw| fields.array("commands", raw));
    match &elements {
        Some(elements) if elements.is_empty() => fields.value_fault("commands", "must hold 1 to 100 commands"),
        Some(elements) if elements.len() > BATCH_MAX => fields.value_fault("commands", "must hold 1 to 100 commands"),
        _ => {}
    }
    fields.finish()?;
    let mut commands = Vec::new();
    let (mut form, mut value) = (Vec::new(), Vec::new());
    for (index, raw) in elements.unwrap_or_default().into_iter().enumerate() {
        let outcome = Fields::parse_at(raw, format!("/commands/{index}")).and_then(|mut fields| {
            let command = sender.read_command(&mut fields, None);
            fields.finish()?;
            command.ok_or(Problem::from(&Kind::INVALID_BODY))
        });
        match outcome {
            Ok(command) => commands.push(command),
            Err(problem) if problem.status() == 422 => value.extend(problem.into_errors()),
            Err(problem) => form.extend(problem.into_errors()),
        }
    }
    if !form.is_empty() {
        form.append(&mut value);
        return Err(Problem::from(&Kind::INVALID_BODY).with_errors(form));
    }
    let mut pairs = std::collections::HashSet::new();
    for (index, command) in commands.iter().enumerate() {
        if value.is_empty() && !pairs.insert((command.intent.user, command.intent.content)) {
            value.push(Fault::field(
                format!("/commands/{index}"),
                "names a user and content that an earlier command names",
            ));
        }
    }
    if !value.is_empty() {
        return Err(Problem::from(&Kind::INVALID_VALUE).with_errors(value));
    }
    Ok(commands)
}

const TYPE_NOT_TAKEN: &str = "is not a type that this server takes";

/// Where a command came from, if that counts: a backend sends for many.
fn address_of(caller: &Caller, request: &HttpRequest) -> Option<IpAddr> {
    let proxies = request.app_data::<Proxies>().filter(|_| !caller.is_service())?;
    proxies.client(request)
}

/// Who sends commands in a body, and what they have in common.
struct Sender<'a> {
    state: &'a State,
    request: &'a HttpRequest,
    /// None where each command names its user.
    user: Option<UserId>,
    address: Option<IpAddr>,
}

impl<'a> Sender<'a> {
    fn of(state: &'a State, request: &'a HttpRequest) -> Result<Self, Problem> {
        // The body names the user, where somebody has to: no parameter does.
        let params = Params::of(request);
        let caller = Caller::naming_in_body(request)?;
        let user = caller.actor()?;
        params.finish()?;
        Ok(Self { state, request, user, address: address_of(&caller, request) })
    }

    /// Reads a command's members, noting every fault. None if there is one.
    fn read_command(&self, fields: &mut Fields<'_>, key: Option<String>) -> Option<Command> {
        let in_body = match key {
            Some(_) => fields.optional("requestId").and_then(|raw| fields.text("requestId", raw)),
            None => text(fields, "requestId"),
        };
        let request_id = match (&in_body, &key) {
            (Some(id), _) => parsed::<RequestId>(fields, "requestId", id),
            (None, Some(key)) => parsed(fields, "requestId", key),
            (None, None) => None,
        };
        if let (Some(_), Some(key), Some(id)) = (&in_body, &key, request_id)
            && key.parse() != Ok(id)
        {
            fields.value_fault("requestId", "must equal Idempotency-Key when both are sent");
        }
        let user = self.user.or_else(|| number::<UserId>(fields, "userId"));
        let content_type =
            text(fields, "contentType").and_then(|kind| parsed::<ContentType>(fields, "contentType", &kind));
        if content_type.is_some_and(|kind| !self.state.takes(&kind)) {
            fields.value_fault("contentType", TYPE_NOT_TAKEN);
        }
        let content_id = number::<ContentId>(fields, "contentId");
        let liked = fields.required("liked").and_then(|raw| fields.boolean("liked", raw));
        let occurred_at = match fields.optional("occurredAt") {
            Some(raw) => fields.text("occurredAt", raw).map(|time| {
                Timestamp::parse(&time).map_err(|invalid| fields.value_fault("occurredAt", invalid.detail())).ok()
            }),
            None => Some(None),
        };
        let content = Content { content_type: content_type?, content_id: content_id? };
        Some(Command {
            intent: Intent { user: user?, content, liked: liked? },
            request_id: request_id?,
            occurred_at: occurred_at?,
            trace_parent: trace_parent(self.request, || Uuid::new_v4().as_u128()),
            address: self.address,
        })
    }
}

fn parsed<T: FromStr<Err = Invalid>>(fields: &mut Fields<'_>, name: &str, text: &str) -> Option<T> {
    text.parse().map_err(|invalid: Invalid| fields.value_fault(name, invalid.detail())).ok()
}

/// An id: a string or an integer.
fn number<T: FromStr<Err = Invalid>>(fields: &mut Fields<'_>, name: &str) -> Option<T> {
    let raw = fields.required(name)?;
    match fields.text_or_integer(name, raw)? {
        Found::Text(text) => parsed(fields, name, &text),
        Found::Integer(number) => parsed(fields, name, &number.map_or_else(String::new, |number| number.to_string())),
    }
}

fn text<'a>(fields: &mut Fields<'a>, name: &str) -> Option<Cow<'a, str>> {
    let raw = fields.required(name)?;
    fields.text(name, raw)
}

/// The key of `Idempotency-Key`, quoted or bare.
fn idempotency_key(request: &HttpRequest) -> Result<Option<String>, Problem> {
    let mut values = request.headers().get_all("idempotency-key");
    let Some(value) = values.next() else { return Ok(None) };
    let fault =
        |detail| Problem::from(&Kind::INVALID_PARAMETER).with_errors(vec![Fault::parameter("Idempotency-Key", detail)]);
    if values.next().is_some() {
        return Err(fault("may be given once"));
    }
    let text = value.to_str().map_err(|_| fault("must be a UUID"))?.trim();
    let bare = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    Ok(Some(bare.to_owned()))
}

async fn submit(state: &State, request: &HttpRequest, command: Command) -> Answer {
    note_ids(request, &command.trace_parent, command.request_id);
    let accepted = {
        let mut turn = state.concurrency.enter().await.map_err(|_| busy())?;
        let outcome = state.commands.submit(&command).await;
        if matches!(&outcome, Ok(Accepted { replayed: false, .. }) | Err(Refusal::Unknown(_))) {
            turn.worked();
        }
        outcome.map_err(problem)?
    };
    let wait = wait_preference(request);
    let count = match wait {
        Some(wait) => state.commands.applied_count(&command.intent, accepted.position, wait).await,
        None => None,
    };
    let mut response = if count.is_some() { HttpResponse::Ok() } else { HttpResponse::Accepted() };
    response.insert_header((header::LOCATION, format!("/v1/commands/{}", command.request_id)));
    response.insert_header((header::CACHE_CONTROL, "no-store"));
    if let Some(wait) = wait {
        response.insert_header(("Preference-Applied", format!("wait={}", wait.as_secs())));
    }
    if accepted.replayed {
        response.insert_header(("Idempotent-Replayed", "true"));
    }
    for (name, value) in budget_headers(&accepted.budgets) {
        response.insert_header((name, value));
    }
    Ok(response.json(answer(&command, &accepted, count)))
}

pub(crate) fn busy() -> Problem {
    Problem::from(&Kind::REDUCED_CAPACITY).with_outcome(Outcome::Rejected).with_retry_after(retry_after())
}

/// `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers): `q` tokens in `w` seconds, of which `r` are
/// left; the next comes in `t` seconds. Nothing without budgets.
fn budget_headers(budgets: &[Budget]) -> Vec<(&'static str, String)> {
    if budgets.is_empty() {
        return Vec::new();
    }
    let list = |item: &dyn Fn(&Budget) -> String| budgets.iter().map(item).collect::<Vec<_>>().join(", ");
    let policies = list(&|Budget { charge, .. }| {
        format!("\"{}\";q={};w={}", charge.bucket.name(), charge.policy.burst, whole_seconds(charge.policy.window))
    });
    let levels = list(&|Budget { charge, level }| {
        format!("\"{}\";r={};t={}", charge.bucket.name(), level.remaining, whole_seconds(level.next_in))
    });
    vec![("ratelimit-policy", policies), ("ratelimit", levels)]
}

fn problem(refusal: Refusal) -> Problem {
    match refusal {
        Refusal::InFlight { retry_after } => Problem::from(&Kind::IN_FLIGHT).with_retry_after(retry_after),
        Refusal::Reused => (&Kind::REQUEST_ID_REUSED).into(),
        Refusal::RequestIdTime { now } => Problem::from(&Kind::REQUEST_ID_TIME).with_server_time(now),
        Refusal::Quota(budget) => {
            let problem = Problem::from(&Kind::QUOTA_EXCEEDED).with_retry_after(budget.level.next_in);
            budget_headers(&[budget])
                .into_iter()
                .fold(problem, |problem, (name, value)| problem.with_header(HeaderName::from_static(name), value))
        }
        Refusal::Backlog => busy(),
        Refusal::Rejected(_) => Problem::new(&Kind::UNAVAILABLE, "The log takes no commands.")
            .with_outcome(Outcome::Rejected)
            .with_retry_after(retry_after()),
        Refusal::Unknown(_) => {
            Problem::from(&Kind::OUTCOME_UNKNOWN).with_outcome(Outcome::Unknown).with_retry_after(retry_after())
        }
    }
}
