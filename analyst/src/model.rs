//! What the log says of a (user, content), worked out apart from the projector's fold.

use likewise_schema::{Offset, Pair, RequestId, Timestamp};
use likewise_storage::records::LikeRecord;

/// How many accepted ids of a pair are remembered one by one.
const REMEMBERED: usize = 16;

/// What an event did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: its id had been accepted before, or is older than what can be told apart.
    Ignored,
    /// It was accepted and left the state as it was.
    Kept,
    /// The pair became liked.
    Gained,
    /// The pair became not liked.
    Lost,
}

impl Effect {
    /// By how much the content's count changes.
    pub fn change(self) -> i64 {
        match self {
            Effect::Gained => 1,
            Effect::Lost => -1,
            Effect::Ignored | Effect::Kept => 0,
        }
    }
}

/// What there is to know of a pair after some of its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// Whether it is liked.
    pub is_liked: bool,
    created_at: Timestamp,
    updated_at: Timestamp,
    liked_at: Option<Timestamp>,
    /// Where the last accepted event is.
    pub version: Offset,
    /// The last accepted ids, oldest first.
    recent: Vec<[u8; 16]>,
    /// The greatest time-ordered id that is not remembered any more.
    horizon: Option<[u8; 16]>,
}

/// A UUID of version 7 and of the standard's variant (RFC 9562, 4.1 and 5.7): its bytes are in the order of its time.
fn is_time_ordered(id: &[u8; 16]) -> bool {
    id[6] & 0xf0 == 0x70 && id[8] & 0xc0 == 0x80
}

impl Life {
    /// Lives through one event. `None` is a pair of which nothing was heard before.
    pub fn meet(
        life: &mut Option<Self>,
        id: &RequestId,
        liked: bool,
        received_at: Timestamp,
        offset: Offset,
    ) -> Effect {
        let id = *id.as_bytes();
        let Some(known) = life else {
            *life = Some(Self {
                is_liked: liked,
                created_at: received_at,
                updated_at: received_at,
                liked_at: liked.then_some(received_at),
                version: offset,
                recent: vec![id],
                horizon: None,
            });
            return if liked { Effect::Gained } else { Effect::Kept };
        };
        let is_beyond = known.horizon.is_some_and(|horizon| is_time_ordered(&id) && id <= horizon);
        if is_beyond || known.recent.contains(&id) {
            return Effect::Ignored;
        }
        if known.recent.len() == REMEMBERED {
            let oldest = known.recent.remove(0);
            if is_time_ordered(&oldest) && known.horizon.is_none_or(|horizon| oldest > horizon) {
                known.horizon = Some(oldest);
            }
        }
        known.recent.push(id);
        known.updated_at = received_at;
        known.version = offset;
        match (std::mem::replace(&mut known.is_liked, liked), liked) {
            (false, true) => {
                known.liked_at = Some(received_at);
                Effect::Gained
            }
            (true, false) => Effect::Lost,
            _ => Effect::Kept,
        }
    }

    /// The row that a record store must have.
    pub fn record(&self, pair: Pair) -> LikeRecord {
        LikeRecord {
            pair,
            is_canceled: !self.is_liked,
            created_at: self.created_at,
            updated_at: self.updated_at,
            liked_at: self.liked_at,
            version: self.version,
            ring: self.recent.iter().map(|id| RequestId::from_bytes(*id)).collect(),
            floor: self.horizon.map(RequestId::from_bytes),
        }
    }
}
