//! The request store: commands in flight, their answers, and token buckets. A courtesy: exactness never depends on it.

mod memory;
#[cfg(feature = "servers")]
mod redis;

use std::{net::IpAddr, time::Duration};

use async_trait::async_trait;
use likewise_schema::{Content, Pair, Position, RequestId, UserId};
use uuid::Uuid;

pub use self::memory::MemoryRequests;
#[cfg(feature = "servers")]
pub use self::redis::RedisRequests;
use crate::StoreError;

/// How long a command counts as in flight unless it is answered.
pub const IN_FLIGHT_LIFE: Duration = Duration::from_secs(3);
/// How long an answer is kept for a repeated request.
pub const ANSWER_LIFE: Duration = Duration::from_secs(3600);
/// How long a process counts after it last said that it is there.
pub const ATTENDANCE_LIFE: Duration = Duration::from_secs(5);

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

/// What a token bucket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bucket {
    /// Changes of one user's like of one content.
    Pair(Pair),
    /// Commands of one user.
    User(UserId),
    /// Commands from one address, or one network of them.
    Address(IpAddr),
}

impl Bucket {
    /// What it limits, in a word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pair(_) => "pair",
            Self::User(_) => "user",
            Self::Address(_) => "address",
        }
    }
}

/// How a bucket fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Tokens of a full bucket; at least 1.
    pub burst: u32,
    /// Time in which `burst` tokens flow in.
    pub window: Duration,
}

impl Policy {
    /// What one of `processes` may give out on its own, so that together they give about as much as this.
    #[must_use]
    pub fn share(self, processes: u32) -> Self {
        let processes = processes.max(1);
        let burst = self.burst.div_ceil(processes).max(1);
        // A burst that was rounded up flows in for longer.
        let window = self.window.mul_f64(f64::from(burst) * f64::from(processes) / f64::from(self.burst.max(1)));
        Self { burst, window }
    }
}

/// One token that a command costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Charge {
    /// Of which bucket.
    pub bucket: Bucket,
    /// How that fills.
    pub policy: Policy,
}

/// A bucket after it was asked for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// Whole tokens left.
    pub remaining: u32,
    /// How long until there is one; zero while there is.
    pub next_in: Duration,
}

/// What a request came to on arrival.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// Nothing was known of it: it is now in flight and charged, and the caller's to finish or release. What each
    /// bucket holds now, in the order of the charges.
    Fresh(Vec<Level>),
    /// Another sender is at it. Nothing was charged.
    InFlight,
    /// It was answered. Nothing was charged.
    Answered(Position),
    /// The requestId was used for another intent. Nothing was charged.
    Conflict,
    /// A bucket is empty. Nothing was charged and nothing is in flight.
    Exhausted {
        /// Which of the charges.
        charge: usize,
        /// What its bucket holds.
        level: Level,
    },
}

/// The request port.
#[async_trait]
pub trait RequestStore: Send + Sync + 'static {
    /// Marks a request as in flight for [`IN_FLIGHT_LIFE`] and takes a token for each charge: all of it, or nothing
    /// where something is known of the request or a bucket is empty. An address's charge comes first.
    async fn admit(&self, key: RequestKey, intent: Intent, charges: &[Charge]) -> Result<Admitted, StoreError>;

    /// Keeps the answer for [`ANSWER_LIFE`].
    async fn finish(&self, key: RequestKey, intent: Intent, position: Position) -> Result<(), StoreError>;

    /// Forgets a request in flight that certainly had no effect, and gives its tokens back; an answer stays. A bucket
    /// never holds more than its burst.
    async fn release(&self, key: RequestKey, charges: &[Charge]) -> Result<(), StoreError>;

    /// What is known of a request: its intent, and its position once it is answered.
    async fn find(&self, key: RequestKey) -> Result<Option<(Intent, Option<Position>)>, StoreError>;

    /// Whether it can be slow or away, because it is not in this process.
    fn can_be_away(&self) -> bool {
        true
    }

    /// Says that `process` gives out tokens, and gives how many processes said so within [`ATTENDANCE_LIFE`].
    async fn attend(&self, process: Uuid) -> Result<u32, StoreError>;
}
