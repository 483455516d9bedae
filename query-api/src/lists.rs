//! A content's likers and a user's likes, newest first, page by page.

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use likewise_http::{Caller, Params, Problem};
use likewise_schema::{ContentId, ContentType, Timestamp, UserId};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{Age, State, after, busy, within};

const PAGE_MAX: usize = 100;
const PAGE: usize = 20;

/// One user who likes the content.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LikerItem {
    #[schema(value_type = String)]
    user_id: UserId,
    #[schema(value_type = String, format = "date-time")]
    liked_at: Timestamp,
}

/// One content that the user likes.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LikedItem {
    #[schema(value_type = String)]
    content_type: ContentType,
    #[schema(value_type = String)]
    content_id: ContentId,
    #[schema(value_type = String, format = "date-time")]
    liked_at: Timestamp,
}

/// One page.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Page<T> {
    items: Vec<T>,
    /// For the next page; none on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
    #[serde(flatten)]
    age: Age,
}

/// One page of likers.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "describes the answer for OpenAPI")]
pub(crate) struct LikersPage {
    items: Vec<LikerItem>,
    /// For the next page; none on the last one.
    next_cursor: Option<String>,
}

/// One page of likes.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "describes the answer for OpenAPI")]
pub(crate) struct LikesPage {
    items: Vec<LikedItem>,
    /// For the next page; none on the last one.
    next_cursor: Option<String>,
}

fn page<T>(items: Vec<T>, next_cursor: Option<String>, as_of: Option<Timestamp>) -> HttpResponse
where
    T: Serialize,
{
    let page = Page { items, next_cursor, age: as_of.into() };
    HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "private, no-store")).json(page)
}

/// Takes the last entry of a full page away: that there is one more means that there is a next page.
fn cut<T>(mut entries: Vec<T>, limit: usize) -> (Vec<T>, bool) {
    let has_more = entries.len() > limit;
    entries.truncate(limit);
    (entries, has_more)
}

const NOT_A_CURSOR: &str = "must be the nextCursor of an earlier page of this list";

/// Who likes a content, newest first.
#[utoipa::path(get, path = "/v1/contents/{contentType}/{contentId}/likers", tag = "queries",
    params(("contentType" = String, Path), ("contentId" = String, Path),
           ("limit" = Option<u32>, Query, description = "1 to 100, 20 if left out"),
           ("cursor" = Option<String>, Query, description = "`nextCursor` of the page before"),
           ("viewer" = Option<String>, Query, description = "Who asks, in the open loopback mode"),
           ("after" = Option<Vec<String>>, Query, description = "A position that the answer must reflect; repeatable"),
           ("wait" = Option<u32>, Query, description = "Seconds to wait for it, at most 5")),
    responses((status = 200, body = LikersPage), (status = 400, description = "A parameter is not valid"),
              (status = 401, description = "It is not for everybody"), (status = 403, description = "It is for services only"),
              (status = 503, description = "The truth cannot be reached")))]
pub(crate) async fn likers(state: web::Data<State>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let mut params = Params::of(&request);
    let content = params.content();
    let limit = params.number("limit", 1..=PAGE_MAX, PAGE);
    let cursor = params.text("cursor");
    Caller::of(&request, &mut params)?.must_be_among(state.likers)?;
    let after = after(&mut params);
    let last = content.zip(cursor.as_ref()).and_then(|(content, cursor)| state.secret.open_liker(&content, cursor));
    if cursor.is_some() && last.is_none() {
        params.fault("cursor", NOT_A_CURSOR);
    }
    params.finish()?;
    let Some(content) = content else { return Err((&likewise_http::Kind::INVALID_PARAMETER).into()) };
    let _turn = state.class(&state.lists, &after).enter().await.map_err(|_| busy())?;
    let (entries, as_of) = within(&after, state.reads.likers(content, last, limit + 1, &after)).await?;
    let (entries, has_more) = cut(entries, limit);
    let next = entries.last().filter(|_| has_more).map(|last| state.secret.seal_liker(&content, last));
    let items = entries.iter().map(|liker| LikerItem { user_id: liker.user, liked_at: liker.liked_at });
    Ok(page(items.collect(), next, as_of))
}

/// What a user likes, newest first; for its owner.
#[utoipa::path(get, path = "/v1/users/{userId}/likes", tag = "queries",
    params(("userId" = String, Path),
           ("contentType" = Option<String>, Query, description = "Only contents of this type"),
           ("limit" = Option<u32>, Query, description = "1 to 100, 20 if left out"),
           ("cursor" = Option<String>, Query, description = "`nextCursor` of the page before"),
           ("viewer" = Option<String>, Query, description = "Who asks, in the open loopback mode; the owner if left out"),
           ("after" = Option<Vec<String>>, Query, description = "A position that the answer must reflect; repeatable"),
           ("wait" = Option<u32>, Query, description = "Seconds to wait for it, at most 5")),
    responses((status = 200, body = LikesPage), (status = 400, description = "A parameter is not valid"),
              (status = 401, description = "It is for its owner"), (status = 403, description = "Not the caller's list"),
              (status = 503, description = "The truth cannot be reached")))]
pub(crate) async fn likes(state: web::Data<State>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let mut params = Params::of(&request);
    let user = params.path::<UserId>("userId");
    let filter = params.optional::<ContentType>("contentType");
    let limit = params.number("limit", 1..=PAGE_MAX, PAGE);
    let cursor = params.text("cursor");
    let caller = Caller::of(&request, &mut params)?;
    let after = after(&mut params);
    let last = user.zip(cursor.as_ref()).and_then(|(user, cursor)| state.secret.open_liked(user, filter, cursor));
    if cursor.is_some() && last.is_none() {
        params.fault("cursor", NOT_A_CURSOR);
    }
    params.finish()?;
    let Some(user) = user else { return Err((&likewise_http::Kind::INVALID_PARAMETER).into()) };
    caller.may_read_of(user)?;
    let _turn = state.class(&state.lists, &after).enter().await.map_err(|_| busy())?;
    let (entries, as_of) = within(&after, state.reads.likes_of(user, filter, last, limit + 1, &after)).await?;
    let (entries, has_more) = cut(entries, limit);
    let next = entries.last().filter(|_| has_more).map(|last| state.secret.seal_liked(user, filter, last));
    let items = entries.iter().map(|liked| LikedItem {
        content_type: liked.content.content_type,
        content_id: liked.content.content_id,
        liked_at: liked.liked_at,
    });
    Ok(page(items.collect(), next, as_of))
}
