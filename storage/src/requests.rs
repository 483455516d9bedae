//! The request store: commands in flight, their answers, and token buckets. A courtesy: exactness never depends on it.

mod memory;
#[cfg(feature = "servers")]
mod redis;

use std::{net::IpAddr, time::Duration};

use async_trait::async_trait;
use likewise_schema::{Content, Pair, Position, RequestId, UserId};

pub use self::memory::MemoryRequests;
#[cfg(feature = "servers")]
pub use self::redis::RedisRequests;
use crate::StoreError;

/// How long a command counts as in flight unless it is answered.
pub const IN_FLIGHT_LIFE: Duration = Duration::from_secs(3);
/// How long an answer is kept for a repeated request.
pub const ANSWER_LIFE: Duration = Duration::from_secs(3600);

/// What a command asks for: the same requestId with another of these is another command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intent {
    /// For whom.
    pub user: UserId,
    /// Of what.
    pub content: Content,
    /// The absolute state.
    pub liked: bool,
}

/// A request of one caller: two callers may use the same requestId.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestKey {
    /// The caller.
    pub subject: UserId,
    /// Its key.
    pub request: RequestId,
}

/// What is known of a request on arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// Nothing: it is now in flight, and the caller's to finish or abandon.
    Fresh,
    /// Another sender is at it.
    InFlight,
    /// It was answered.
    Answered(Position),
    /// The requestId was used for another intent.
    Conflict,
}

/// What a token bucket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bucket {
    /// Changes of one user's like of one content.
    Pair(Pair),
    /// Commands of one user.
    User(UserId),
    /// Commands from one address.
    Address(IpAddr),
}

/// How a bucket fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Tokens of a full bucket.
    pub burst: u32,
    /// Time in which `burst` tokens flow in.
    pub window: Duration,
}

/// What taking a token came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Whether there was one.
    pub allowed: bool,
    /// Whole tokens left.
    pub remaining: u32,
    /// How long until there is one (again).
    pub next_in: Duration,
}

/// The request port.
#[async_trait]
pub trait RequestStore: Send + Sync + 'static {
    /// Marks a request as in flight for [`IN_FLIGHT_LIFE`], unless something is known of it.
    async fn begin(&self, key: RequestKey, intent: Intent) -> Result<Begin, StoreError>;

    /// Keeps the answer for [`ANSWER_LIFE`].
    async fn finish(&self, key: RequestKey, intent: Intent, position: Position) -> Result<(), StoreError>;

    /// Forgets a request in flight that certainly had no effect.
    async fn abandon(&self, key: RequestKey) -> Result<(), StoreError>;

    /// What is known of a request: its intent, and its position once it is answered.
    async fn find(&self, key: RequestKey) -> Result<Option<(Intent, Option<Position>)>, StoreError>;

    /// Takes one token.
    async fn take(&self, bucket: Bucket, policy: Policy) -> Result<Taken, StoreError>;

    /// Gives one token back, for something that was certainly not done. A bucket never holds more than its burst.
    async fn give_back(&self, bucket: Bucket, policy: Policy) -> Result<(), StoreError>;
}
