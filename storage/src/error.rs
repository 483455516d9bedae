//! Why a store gave no answer.

/// A store's failure. Its text names the store and the reason, never a credential or a user's data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It may work later: out of reach, busy, out of space.
    #[error("{store} is unavailable: {reason}")]
    Unavailable {
        /// Which store.
        store: &'static str,
        /// Why.
        reason: String,
    },
    /// A person has to look: what is stored is damaged or belongs to another service.
    #[error("{store} cannot be used: {reason}")]
    Unusable {
        /// Which store.
        store: &'static str,
        /// Why, and what to do.
        reason: String,
    },
}

impl StoreError {
    /// It may work later.
    pub fn unavailable(store: &'static str, reason: impl ToString) -> Self {
        Self::Unavailable { store, reason: reason.to_string() }
    }

    /// A person has to look.
    pub fn unusable(store: &'static str, reason: impl ToString) -> Self {
        Self::Unusable { store, reason: reason.to_string() }
    }
}
