//! Who calls. Without authentication the server is bound to loopback and trusts what it is told.

use likewise_schema::UserId;

use crate::{
    params::Params,
    problem::{Kind, Problem},
};

/// Who calls: in the open loopback mode, whoever the request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    viewer: Option<UserId>,
}

impl Caller {
    /// The caller of a request: `?viewer=<userId>`, or nobody in particular.
    pub fn of(params: &mut Params<'_>) -> Self {
        Self { viewer: params.optional("viewer") }
    }

    /// Through whose eyes a read is answered.
    pub fn viewer(&self) -> Option<UserId> {
        self.viewer
    }

    /// Fails if the caller is somebody else than `owner`.
    pub fn must_be(&self, owner: UserId) -> Result<(), Problem> {
        match self.viewer {
            Some(viewer) if viewer != owner => Err((&Kind::FORBIDDEN).into()),
            _ => Ok(()),
        }
    }
}
