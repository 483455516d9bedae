//! Who calls, and what they may do: a user acts and reads for themselves, a service key for any user within its scopes.

use std::sync::Arc;

use actix_web::{HttpMessage, HttpRequest};
use likewise_schema::UserId;

use crate::{
    authority::{Sender, unauthorized},
    keys::{Scope, ServiceKey},
    params::Params,
    problem::{Kind, Problem},
};

/// Who calls. Where whoever calls may name a user, `?viewer=` and a body's `userId` name them.
#[derive(Clone, Debug)]
pub struct Caller(Who);

#[derive(Clone, Debug)]
enum Who {
    Trusted { viewer: Option<UserId> },
    Nobody,
    User(UserId),
    Service { key: Arc<ServiceKey>, viewer: Option<UserId> },
}

impl Caller {
    /// The caller of a request. Takes `viewer` from the parameters of those who may name one; from others it is a
    /// parameter that is not known here.
    pub fn of(request: &HttpRequest, params: &mut Params<'_>) -> Result<Self, Problem> {
        Self::with(request, || params.optional("viewer"))
    }

    /// The caller of a request whose body names the user, where the caller may name one.
    pub fn naming_in_body(request: &HttpRequest) -> Result<Self, Problem> {
        Self::with(request, || None)
    }

    fn with(request: &HttpRequest, viewer: impl FnOnce() -> Option<UserId>) -> Result<Self, Problem> {
        let extensions = request.extensions();
        Ok(Self(match extensions.get::<Sender>() {
            Some(Sender::Trusted) => Who::Trusted { viewer: viewer() },
            Some(Sender::Nobody) | None => Who::Nobody,
            Some(Sender::Holder(Some(user))) => Who::User(*user),
            Some(Sender::Holder(None)) => return Err(unauthorized()),
            Some(Sender::Service(key)) => Who::Service { key: Arc::clone(key), viewer: viewer() },
        }))
    }

    /// Whether the caller is a backend, which sends for many users.
    pub fn is_service(&self) -> bool {
        matches!(self.0, Who::Service { .. })
    }

    /// Through whose eyes a read is answered; none is nobody's. Fails for a key without the scope.
    pub fn viewer(&self) -> Result<Option<UserId>, Problem> {
        match &self.0 {
            Who::Trusted { viewer } => Ok(*viewer),
            Who::Nobody => Ok(None),
            Who::User(user) => Ok(Some(*user)),
            Who::Service { viewer: None, .. } => Ok(None),
            Who::Service { key, viewer } => key.must_have(Scope::Reads).map(|()| *viewer),
        }
    }

    /// Who sends commands: fails for nobody and for a key without the scope. None where the request names the user.
    pub fn actor(&self) -> Result<Option<UserId>, Problem> {
        match &self.0 {
            Who::Trusted { .. } => Ok(None),
            Who::Nobody => Err(unauthorized()),
            Who::User(user) => Ok(Some(*user)),
            Who::Service { key, .. } => key.must_have(Scope::Commands).map(|()| None),
        }
    }

    /// The user who acts where no body names one; a fault of the parameters if nothing does.
    pub fn acting_viewer(&self, params: &mut Params<'_>) -> Result<Option<UserId>, Problem> {
        let user = match (self.actor()?, &self.0) {
            (Some(user), _) => Some(user),
            (None, Who::Trusted { viewer } | Who::Service { viewer, .. }) => *viewer,
            (None, _) => None,
        };
        if user.is_none() {
            params.fault("viewer", "is missing: it names the user that this caller acts for");
        }
        Ok(user)
    }

    /// Fails unless the caller may read what is `owner`'s alone.
    pub fn may_read_of(&self, owner: UserId) -> Result<(), Problem> {
        match &self.0 {
            Who::Trusted { viewer: Some(viewer) } if *viewer != owner => Err((&Kind::FORBIDDEN).into()),
            Who::Trusted { .. } => Ok(()),
            Who::Nobody => Err(unauthorized()),
            Who::User(user) if *user == owner => Ok(()),
            Who::User(_) => Err((&Kind::FORBIDDEN).into()),
            Who::Service { key, .. } => key.must_have(Scope::Reads),
        }
    }

    /// Fails for callers that a list for `audience` is not for.
    pub fn must_be_among(&self, audience: Audience) -> Result<(), Problem> {
        match (&self.0, audience) {
            (Who::Trusted { .. }, _) | (_, Audience::Public) => Ok(()),
            (Who::Nobody, _) => Err(unauthorized()),
            (Who::User(_), Audience::SignedIn) => Ok(()),
            (Who::User(_), Audience::Service) => Err((&Kind::FORBIDDEN).into()),
            (Who::Service { key, .. }, _) => key.must_have(Scope::Reads),
        }
    }
}

/// Who may see something that is not one user's alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Everybody.
    Public,
    /// Users and services.
    SignedIn,
    /// Services only.
    Service,
}
