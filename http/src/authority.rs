//! Whom a server believes: nobody's word but a token's or a key's, or, on loopback only, anybody's.

use std::{path::Path, sync::Arc};

use actix_web::http::header::{self, HeaderMap};
use likewise_schema::UserId;

use crate::{
    keys::{self, Keys, Scope, ServiceKey},
    now,
    problem::{Kind, Problem},
    tokens::{TokenKeys, TokenRules, Tokens},
    watched::LOOK_EVERY,
};

/// Decides who a caller is.
pub struct Authority(Option<Credentials>);

struct Credentials {
    tokens: Option<Tokens>,
    keys: Keys,
}

/// Who sent a request.
#[derive(Clone, Debug)]
pub(crate) enum Sender {
    /// Whoever the request names: the server runs without authentication.
    Trusted,
    /// Nobody in particular.
    Nobody,
    /// The holder of a token; none if the token names no user.
    Holder(Option<UserId>),
    /// A backend.
    Service(Arc<ServiceKey>),
}

impl Authority {
    /// Believes whoever connects.
    pub fn open() -> Self {
        Self(None)
    }

    /// Believes tokens, and the service keys in a file, which may not be there yet. The error is a sentence about a file.
    pub fn new(tokens: Option<(TokenRules, &TokenKeys)>, keys: &Path) -> Result<Self, String> {
        let tokens = tokens.map(|(rules, keys)| Tokens::new(rules, keys)).transpose()?;
        Ok(Self(Some(Credentials { tokens, keys: Keys::open(keys)? })))
    }

    /// Whether whoever connects is believed.
    pub fn is_open(&self) -> bool {
        self.0.is_none()
    }

    /// Reads files with keys again when they change; runs as long as the server does.
    pub async fn keep_up(&self) {
        let Some(Credentials { tokens, keys }) = &self.0 else { return std::future::pending().await };
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            tokens.iter().for_each(Tokens::look);
            keys.look();
        }
    }

    /// The sender of a request. A credential that is not accepted is refused, whatever is asked for.
    pub(crate) fn sender(&self, headers: &HeaderMap) -> Result<Sender, Problem> {
        let Some(credentials) = &self.0 else { return Ok(Sender::Trusted) };
        let mut sent = headers.get_all(header::AUTHORIZATION);
        let Some(value) = sent.next() else { return Ok(Sender::Nobody) };
        let credential = value.to_str().ok().filter(|_| sent.next().is_none()).and_then(bearer);
        credential.and_then(|credential| credentials.accept(credential)).ok_or_else(unauthorized)
    }
}

impl Sender {
    /// Fails unless the admin port is for the sender.
    pub(crate) fn must_be_admin(&self) -> Result<(), Problem> {
        match self {
            Self::Trusted | Self::Holder(_) => Ok(()),
            Self::Nobody => Err(unauthorized()),
            Self::Service(key) => key.must_have(Scope::Admin),
        }
    }
}

impl Credentials {
    fn accept(&self, credential: &str) -> Option<Sender> {
        if credential.starts_with(keys::PREFIX) {
            return self.keys.find(credential, now()).map(Sender::Service);
        }
        self.tokens.as_ref()?.verify(credential).map(|verified| Sender::Holder(verified.user))
    }
}

/// The credential of `Bearer <credential>` (RFC 6750).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, credential) = value.split_once(' ')?;
    let is_one = !credential.is_empty() && credential.bytes().all(|b| b.is_ascii_graphic());
    (scheme.eq_ignore_ascii_case("bearer") && is_one).then_some(credential)
}

/// The same words whatever was wrong with a credential.
pub(crate) fn unauthorized() -> Problem {
    Problem::from(&Kind::UNAUTHORIZED).with_header(header::WWW_AUTHENTICATE, "Bearer realm=\"likewise\"".into())
}
