//! The one place where a refusal becomes an answer: `application/problem+json` (RFC 9457).

use std::{fmt, time::Duration};

use actix_web::{
    HttpResponse, HttpResponseBuilder, ResponseError,
    http::{StatusCode, header},
};
use likewise_schema::Timestamp;
use serde::Serialize;

use crate::server::secure;

/// A kind of refusal: a stable `type`, its status, and what a person needs to know.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// Last part of the `type` URI; the page is `/problems/<slug>`.
    pub slug: &'static str,
    /// HTTP status.
    pub status: u16,
    /// The title, the same for every occurrence.
    pub title: &'static str,
    /// What it means and what to do: the text of the page.
    pub help: &'static str,
    /// The registered URI, where IANA has one for it.
    iana: Option<&'static str>,
}

macro_rules! kinds {
    ($($name:ident = $slug:literal $status:literal $title:literal $iana:expr, $help:literal;)*) => {
        impl Kind {
            $(#[doc = $title] pub const $name: Kind =
                Kind { slug: $slug, status: $status, title: $title, help: $help, iana: $iana };)*
        }
        /// Every kind.
        pub const KINDS: &[&Kind] = &[$(&Kind::$name),*];
    };
}

const QUOTA: Option<&str> = Some("https://iana.org/assignments/http-problem-types#quota-exceeded");
const CAPACITY: Option<&str> = Some("https://iana.org/assignments/http-problem-types#temporary-reduced-capacity");

kinds! {
    INVALID_BODY = "invalid-body" 400 "The body is not what this resource takes" None,
        "The body is not JSON, or a field is missing, unknown, repeated or of the wrong JSON type. `errors` names every \
         field at fault. Nothing was done; mend the request before sending it again.";
    INVALID_PARAMETER = "invalid-parameter" 400 "A parameter is not valid" None,
        "A part of the path, a query parameter or a header is missing, unknown, repeated or out of range. `errors` \
         names every one at fault. Nothing was done.";
    UNAUTHORIZED = "unauthorized" 401 "Authentication is needed" None,
        "The request carries no credential that this server accepts: send `Authorization: Bearer` with a token of its \
         issuer that has not expired, or with a service key.";
    FORBIDDEN = "forbidden" 403 "This is for its owner" None,
        "The caller may not act or read for another user.";
    INSUFFICIENT_SCOPE = "insufficient-scope" 403 "The key is not for this" None,
        "The service key is valid, but its scopes do not cover what is asked for. Nothing was done.";
    NOT_FOUND = "not-found" 404 "There is nothing here" None,
        "No resource has this path.";
    METHOD_NOT_ALLOWED = "method-not-allowed" 405 "The resource does not take this method" None,
        "The header `Allow` lists the methods that it takes.";
    BODY_TIMEOUT = "body-timeout" 408 "The body did not arrive in time" None,
        "The body of a request must arrive within five seconds. Nothing was done.";
    IN_FLIGHT = "request-in-flight" 409 "The same request is being worked on" None,
        "Another request with this requestId has not been answered yet. Send it again after `Retry-After`; it has one \
         effect however often it is sent.";
    BODY_TOO_LARGE = "body-too-large" 413 "The body is too large" None,
        "A command may have 4 KiB, a batch 64 KiB. Nothing was done.";
    URI_TOO_LONG = "uri-too-long" 414 "The URI is too long" None,
        "A URI may have 8 KiB.";
    MISDIRECTED = "misdirected" 421 "The host is not this server" None,
        "Without authentication the server answers only to the names of this machine: localhost, 127.0.0.1 and [::1].";
    UNSUPPORTED_MEDIA_TYPE = "unsupported-media-type" 415 "The body must be plain JSON" None,
        "Send `Content-Type: application/json` and no `Content-Encoding`. Nothing was done.";
    INVALID_VALUE = "invalid-value" 422 "A value is out of its range" None,
        "The body is well formed, but values in it cannot be right. `errors` names every one. Nothing was done.";
    REQUEST_ID_REUSED = "request-id-reused" 422 "The requestId belongs to another command" None,
        "This caller has used the requestId for another user, content or state. A new intent needs a new requestId. \
         Nothing was done.";
    REQUEST_ID_TIME = "request-id-time" 422 "The time inside the requestId is too far from now" None,
        "A version 7 UUID may be at most 20 seconds ahead of the server's clock and at most 7 days old. `serverTime` \
         tells the right time: make a new requestId by it. Nothing was done.";
    QUOTA_EXCEEDED = "quota-exceeded" 429 "Too many changes" QUOTA,
        "A user may change their like of one content 6 times a minute; there can be limits for a user and for an \
         address too. `RateLimit-Policy` names them, `Retry-After` tells when the next command is taken. Nothing was done.";
    INTERNAL = "internal" 500 "The server failed" None,
        "A fault in the server. The outcome of a command is unknown: send it again with the same requestId.";
    REDUCED_CAPACITY = "temporary-reduced-capacity" 503 "The server is busy" CAPACITY,
        "More arrives than can be taken. `outcome` is `rejected`: this request did nothing; an earlier one with the same \
         requestId may have. Send it again after `Retry-After`.";
    OUTCOME_UNKNOWN = "outcome-unknown" 503 "The outcome is not known" None,
        "The log did not confirm the command in time: it may have been written, or may yet be. Send it again with the \
         same requestId after `Retry-After`; it has one effect.";
    UNAVAILABLE = "unavailable" 503 "A part that is needed is away" None,
        "The answer cannot be had right now, and none is invented. A command marked `outcome: rejected` \
         was not done by this request; an earlier one with the same requestId may have done it.";
}

/// What a refused command may have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It may have been written, or may yet be.
    Unknown,
    /// It was certainly not written.
    Rejected,
}

/// One thing that is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// JSON pointer to the field (RFC 6901).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// The parameter or header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    /// What is wrong, without repeating the value.
    pub detail: String,
}

impl Fault {
    /// A fault of the field at `pointer`.
    pub fn field(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: Some(pointer.into()), parameter: None, detail: detail.into() }
    }

    /// A fault of a parameter.
    pub fn parameter(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: None, parameter: Some(name.into()), detail: detail.into() }
    }
}

/// A refusal on its way to the client. The rare parts are boxed: it travels in every result.
#[derive(Clone, Debug)]
pub struct Problem(Box<Parts>);

#[derive(Clone, Debug)]
struct Parts {
    kind: &'static Kind,
    detail: Option<String>,
    errors: Vec<Fault>,
    outcome: Option<Outcome>,
    retry_after: Option<Duration>,
    server_time: Option<Timestamp>,
    headers: Vec<(header::HeaderName, String)>,
}

/// The JSON of a problem; also what a batch shows for one of its commands.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(skip_serializing_if = "<[Fault]>::is_empty")]
    errors: &'a [Fault],
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<Outcome>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_time: Option<Timestamp>,
}

impl From<&'static Kind> for Problem {
    fn from(kind: &'static Kind) -> Self {
        Self(Box::new(Parts {
            kind,
            detail: None,
            errors: Vec::new(),
            outcome: None,
            retry_after: None,
            server_time: None,
            headers: Vec::new(),
        }))
    }
}

impl Problem {
    /// A refusal of `kind` with a sentence about this occurrence.
    pub fn new(kind: &'static Kind, detail: impl Into<String>) -> Self {
        let mut problem = Self::from(kind);
        problem.0.detail = Some(detail.into());
        problem
    }

    /// With all faults found.
    #[must_use]
    pub fn with_errors(mut self, errors: Vec<Fault>) -> Self {
        self.0.errors = errors;
        self
    }

    /// With what a command may have done.
    #[must_use]
    pub fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.0.outcome = Some(outcome);
        self
    }

    /// With `Retry-After`, in whole seconds, at least 1.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// With the server's time, for a client whose clock is wrong.
    #[must_use]
    pub fn with_server_time(mut self, now: Timestamp) -> Self {
        self.0.server_time = Some(now);
        self
    }

    /// With one more header. A value that is not one is left out.
    #[must_use]
    pub fn with_header(mut self, name: header::HeaderName, value: String) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// The status.
    pub fn status(&self) -> u16 {
        self.0.kind.status
    }

    /// What a command may have done, if that is said.
    pub fn outcome(&self) -> Option<Outcome> {
        self.0.outcome
    }

    /// The faults, for the refusal of a whole that this is a part of; at least one.
    pub fn into_errors(self) -> Vec<Fault> {
        let Parts { errors, kind, .. } = *self.0;
        if errors.is_empty() { vec![Fault::field("", kind.title)] } else { errors }
    }

    /// The document, for a batch's result.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self.document()).unwrap_or_default()
    }

    fn document(&self) -> Document<'_> {
        let Parts { kind, detail, errors, outcome, retry_after, server_time, .. } = &*self.0;
        Document {
            r#type: kind.iana.map_or_else(|| format!("/problems/{}", kind.slug), str::to_owned),
            title: kind.title,
            status: kind.status,
            detail: detail.as_deref(),
            errors,
            outcome: *outcome,
            retry_after: retry_after.map(whole_seconds),
            server_time: *server_time,
        }
    }
}

/// A wait as headers tell it: seconds, rounded up, at least 1.
pub fn whole_seconds(time: Duration) -> u64 {
    (time.as_secs() + u64::from(time.subsec_nanos() > 0)).max(1)
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.kind.title)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.0.kind.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponseBuilder::new(self.status_code());
        response.insert_header((header::CONTENT_TYPE, "application/problem+json"));
        response.insert_header((header::CACHE_CONTROL, "no-store"));
        if let Some(after) = self.0.retry_after {
            response.insert_header((header::RETRY_AFTER, whole_seconds(after).to_string()));
        }
        for (name, value) in &self.0.headers {
            response.insert_header((name.clone(), value.clone()));
        }
        let mut response = response.body(serde_json::to_string(&self.document()).unwrap_or_default());
        secure(response.headers_mut());
        response
    }
}
