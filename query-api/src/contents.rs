//! Counts and the viewer's statuses: of one content, and of up to 100 at once.

use std::hash::{DefaultHasher, Hash, Hasher};

use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, http::header, web};
use likewise_http::{Caller, Params, Problem, client_has};
use likewise_schema::{Content, ContentId, ContentType, Position, UserId};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{Age, Item, State, after, busy, within};

const CONTENTS_MAX: usize = 100;

/// A content's likes.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Likes {
    #[schema(value_type = String)]
    content_type: ContentType,
    #[schema(value_type = String)]
    content_id: ContentId,
    /// How many users like it.
    count: i64,
    /// Whether the viewer does; null without a viewer.
    liked: Option<bool>,
    /// The last event that this reflects; null before the first.
    #[schema(value_type = Option<String>)]
    position: Option<Position>,
    /// `stale: true` with `asOf` if the answer may be old.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    age: Age,
}

/// The likes of contents, in the order asked for.
#[derive(Serialize, ToSchema)]
pub(crate) struct LikesOfMany {
    items: Vec<Likes>,
}

impl From<Item> for Likes {
    fn from(item: Item) -> Self {
        let last = item.claim.next_offset.previous();
        Self {
            content_type: item.content.content_type,
            content_id: item.content.content_id,
            count: item.count,
            liked: item.liked,
            position: last.map(|offset| Position { partition: item.claim.partition, offset }),
            age: item.as_of.into(),
        }
    }
}

/// What a viewer sees is theirs alone, and an old answer is kept by nobody. What anybody sees may be kept for a second, and
/// has a tag: it changes with the counts, so a client that has them needs no body. True if this client has.
fn begin(request: &HttpRequest, viewer: Option<UserId>, items: &[Item]) -> (HttpResponseBuilder, bool) {
    let cache = |control: &'static str| (header::CACHE_CONTROL, control);
    let mut response = HttpResponse::Ok();
    if viewer.is_some() || items.iter().any(|item| item.as_of.is_some()) {
        response.insert_header(cache("private, no-store"));
        return (response, false);
    }
    let mut hasher = DefaultHasher::new();
    items.iter().for_each(|item| (item.content, item.count).hash(&mut hasher));
    let tag = format!("{:016x}", hasher.finish());
    let is_known = client_has(request, &tag);
    if is_known {
        response = HttpResponse::NotModified();
    }
    response.insert_header(cache("public, max-age=1")).insert_header((header::ETAG, format!("W/\"{tag}\"")));
    (response, is_known)
}

/// A content's count, and whether the viewer likes it.
#[utoipa::path(get, path = "/v1/contents/{contentType}/{contentId}/likes", tag = "queries",
    params(("contentType" = String, Path), ("contentId" = String, Path),
           ("viewer" = Option<String>, Query, description = "The user whose status is wanted, in the open loopback mode"),
           ("after" = Option<Vec<String>>, Query, description = "A position that the answer must reflect; repeatable"),
           ("wait" = Option<u32>, Query, description = "Seconds to wait for it, at most 5")),
    responses((status = 200, body = Likes),
              (status = 304, description = "As `If-None-Match` says"),
              (status = 400, description = "A parameter is not valid"),
              (status = 503, description = "The truth cannot be reached")))]
pub(crate) async fn one(state: web::Data<State>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let mut params = Params::of(&request);
    let content = params.content();
    let viewer = Caller::of(&request, &mut params)?.viewer()?;
    let after = after(&mut params);
    params.finish()?;
    let contents: Vec<Content> = content.into_iter().collect();
    let _turn = state.class(&state.concurrency, &after).enter().await.map_err(|_| busy())?;
    let items = within(&after, state.reads.items(&contents, viewer, &after)).await?;
    let (mut response, is_known) = begin(&request, viewer, &items);
    Ok(if is_known { response.finish() } else { response.json(items.into_iter().next().map(Likes::from)) })
}

/// Counts of up to 100 contents, and which of them the viewer likes.
#[utoipa::path(get, path = "/v1/likes", tag = "queries",
    params(("content" = Vec<String>, Query, description = "`post:42`; 1 to 100, repeats allowed"),
           ("viewer" = Option<String>, Query, description = "The user whose statuses are wanted, in the open loopback mode"),
           ("after" = Option<Vec<String>>, Query, description = "A position that the answer must reflect; repeatable"),
           ("wait" = Option<u32>, Query, description = "Seconds to wait for it, at most 5")),
    responses((status = 200, body = LikesOfMany),
              (status = 304, description = "As `If-None-Match` says"),
              (status = 400, description = "A parameter is not valid"),
              (status = 503, description = "The truth cannot be reached")))]
pub(crate) async fn many(state: web::Data<State>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let mut params = Params::of(&request);
    let contents: Vec<Content> = params.all("content");
    if contents.is_empty() || contents.len() > CONTENTS_MAX {
        params.fault("content", "must be given 1 to 100 times");
    }
    let viewer = Caller::of(&request, &mut params)?.viewer()?;
    let after = after(&mut params);
    params.finish()?;
    let _turn = state.class(&state.concurrency, &after).enter().await.map_err(|_| busy())?;
    let items = within(&after, state.reads.items(&contents, viewer, &after)).await?;
    let (mut response, is_known) = begin(&request, viewer, &items);
    let answer = |items: Vec<Item>| LikesOfMany { items: items.into_iter().map(Likes::from).collect() };
    Ok(if is_known { response.finish() } else { response.json(answer(items)) })
}
