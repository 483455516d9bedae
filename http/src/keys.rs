//! Service keys: what backends that act for users send. A file holds their hashes, never the keys.

use std::{path::Path, sync::Arc};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use likewise_schema::{Timestamp, hex};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::{
    problem::{Kind, Problem},
    watched::Watched,
};

/// What every key begins with.
pub(crate) const PREFIX: &str = "lk_";

/// What a key may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Sending commands for any user, and asking what became of them.
    Commands,
    /// Reading any user's statuses and lists.
    Reads,
    /// The admin port.
    Admin,
}

/// A service key as its file holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceKey {
    /// Names it: the part of the key after `lk_`.
    pub id: String,
    /// What it is for, in its maker's words.
    pub name: String,
    /// What it may be used for.
    pub scopes: Vec<Scope>,
    /// When it was made.
    pub created: Timestamp,
    /// Until when it is accepted.
    pub expires: Option<Timestamp>,
    /// SHA-256 of the whole key, in hexadecimal digits. A key is 256 random bits, so that no slower hash is needed.
    pub hash: String,
}

impl ServiceKey {
    /// Fails unless the key may be used for it.
    pub(crate) fn must_have(&self, scope: Scope) -> Result<(), Problem> {
        if self.scopes.contains(&scope) { Ok(()) } else { Err((&Kind::INSUFFICIENT_SCOPE).into()) }
    }
}

/// The file: `{"keys": […]}`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceKeys {
    /// All keys.
    pub keys: Vec<Arc<ServiceKey>>,
}

impl ServiceKeys {
    /// What a file holds. The error says what it must be.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|_| "must be as likewise key create writes it".into())
    }

    /// Adds a key made of `random` bytes, and gives it: it is nowhere else.
    pub fn create(
        &mut self,
        name: &str,
        scopes: Vec<Scope>,
        created: Timestamp,
        expires: Option<Timestamp>,
        random: &[u8; 40],
    ) -> String {
        let (id, secret) = random.split_at(8);
        let id = hex(id);
        let key = format!("{PREFIX}{id}_{}", URL_SAFE_NO_PAD.encode(secret));
        let hash = hash_of(&key);
        self.keys.push(Arc::new(ServiceKey { id, name: name.to_owned(), scopes, created, expires, hash }));
        key
    }

    /// The key that was sent, if it is one of these and has not expired.
    fn find(&self, sent: &str, now: Timestamp) -> Option<Arc<ServiceKey>> {
        let (id, _) = sent.strip_prefix(PREFIX)?.split_once('_')?;
        let known = self.keys.iter().find(|key| key.id == id)?;
        let is_it = bool::from(hash_of(sent).as_bytes().ct_eq(known.hash.as_bytes()));
        (is_it && known.expires.is_none_or(|end| now < end)).then(|| Arc::clone(known))
    }
}

fn hash_of(key: &str) -> String {
    hex(&Sha256::digest(key))
}

/// The keys of a file that is read again when it changes.
pub(crate) struct Keys(Watched<ServiceKeys>);

impl Keys {
    /// The error is a sentence about the file.
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        Watched::open_or_default(path.to_owned(), ServiceKeys::parse).map(Self)
    }

    pub(crate) fn look(&self) {
        self.0.look();
    }

    pub(crate) fn find(&self, sent: &str, now: Timestamp) -> Option<Arc<ServiceKey>> {
        self.0.get().find(sent, now)
    }
}
