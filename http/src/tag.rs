//! Entity tags: whether a client already has what it asks for.

use actix_web::{
    HttpRequest,
    http::header::{self, Header, IfNoneMatch},
};

/// Whether the request's `If-None-Match` names `tag`, weak or strong, or any.
pub fn client_has(request: &HttpRequest, tag: &str) -> bool {
    let names_it = |sent: IfNoneMatch| match sent {
        IfNoneMatch::Any => true,
        IfNoneMatch::Items(tags) => tags.iter().any(|known| known.tag() == tag),
    };
    request.headers().contains_key(header::IF_NONE_MATCH) && IfNoneMatch::parse(request).is_ok_and(names_it)
}
