//! What gains likes: computed beside the requests, from the ten-minute buckets.
//!
//! The score of a content is Σ gained · 2^(−age/half-life) over the slots of the window, as in exponentially decayed counts
//! (Cormode, Shkapenyuk, Srivastava, Xu: Forward Decay, ICDE 2009); gained is likes gained less those taken back, so that
//! toggling gains nothing. Of each slot the contents that moved most are kept, so what is in the sums of a day is exact
//! but for contents that were never among them.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use likewise_http::{Kind, Params, Problem};
use likewise_schema::{Content, ContentId, ContentType, Timestamp};
use likewise_storage::{
    Clock, RecordStore, StoreError,
    records::{Checkpoint, Claim, Gain, keep_of_each_type},
};
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::State;

/// How long after the newest slots were read they are read again, and how much of the time that may take.
const EVERY: Duration = Duration::from_secs(5);
const SHARE_OF_TIME: u32 = 20;
/// How long after a slot that is over was read it is read again: a projection that was behind may have added to it.
const AGAIN_AFTER: Duration = Duration::from_secs(3600);
/// An answer that was computed longer ago is marked as stale.
const AGE_MAX_MILLIS: i64 = 300_000;
/// Contents kept of each slot and type.
const KEPT_OF_SLOT: usize = 1000;
/// Contents kept of each window and type.
const KEPT: usize = 100;
const LIMIT: usize = 20;

struct Window {
    name: &'static str,
    /// How many slots, the one that is not over included.
    slots: i64,
    /// After how many slots a like counts half.
    half_life: f64,
}

const WINDOWS: [Window; 2] =
    [Window { name: "1h", slots: 6, half_life: 2.0 }, Window { name: "24h", slots: SLOTS_KEPT, half_life: 36.0 }];
/// Slots of the longest window.
const SLOTS_KEPT: i64 = 144;

/// What was computed last.
#[derive(Default)]
pub(crate) struct Trending {
    slots: Mutex<BTreeMap<i64, Slot>>,
    /// By window.
    computed: [RwLock<Option<Computed>>; WINDOWS.len()],
}

struct Slot {
    gains: Vec<Gain>,
    read_at: Instant,
}

struct Busy {
    content: Content,
    score: f64,
    gained: i64,
}

struct Computed {
    busiest: Vec<Busy>,
    /// When the projection last heard from the log.
    at: Timestamp,
    /// It was behind.
    stale: bool,
}

impl Trending {
    /// Reads the slots that may have changed, the newest first, from the first store that answers, and computes each window
    /// as soon as its slots are known. Gives how long to wait before the next time.
    pub(crate) async fn compute(
        &self,
        stores: impl Iterator<Item = &dyn RecordStore>,
        clock: &Clock,
        is_old: impl Fn(&Claim) -> bool,
    ) -> Duration {
        let started = Instant::now();
        for records in stores {
            match self.compute_from(records, clock, &is_old).await {
                Ok(()) => break,
                Err(error) => tracing::warn!(%error, "what is trending cannot be computed"),
            }
        }
        EVERY.max(started.elapsed() * SHARE_OF_TIME)
    }

    async fn compute_from(
        &self,
        records: &dyn RecordStore,
        clock: &Clock,
        is_old: impl Fn(&Claim) -> bool,
    ) -> Result<(), StoreError> {
        let last = clock.now().ten_minute_slot();
        // Asked for nothing, a store gives its checkpoints. Before the slots, which reflect at least this.
        let claims: Vec<Claim> = records.firsts(&[], 0).await?.checkpoints.iter().map(Checkpoint::claim).collect();
        let at = claims.iter().map(|claim| claim.heard_at).min().unwrap_or_else(|| clock.now());
        let stale = claims.iter().any(is_old);
        for age in 0..SLOTS_KEPT {
            let slot = last - age;
            let known_for = self.slots.lock().get(&slot).map(|known| known.read_at.elapsed());
            if age < 2 || known_for.is_none_or(|known_for| known_for > AGAIN_AFTER) {
                let gains = records.gains(slot, KEPT_OF_SLOT).await?;
                self.slots.lock().insert(slot, Slot { gains, read_at: Instant::now() });
            }
            for (window, computed) in WINDOWS.iter().zip(&self.computed).filter(|(window, _)| window.slots == age + 1) {
                *computed.write() = Some(Computed { busiest: self.busiest_of(window, last), at, stale });
            }
        }
        self.slots.lock().retain(|slot, _| *slot > last - SLOTS_KEPT);
        Ok(())
    }

    fn busiest_of(&self, window: &Window, last: i64) -> Vec<Busy> {
        let mut sums: HashMap<Content, Busy> = HashMap::new();
        for (slot, known) in self.slots.lock().range(last - window.slots + 1..=last) {
            let weight = 0.5_f64.powf((last - slot) as f64 / window.half_life);
            for Gain { content, likes } in &known.gains {
                let busy = sums.entry(*content).or_insert(Busy { content: *content, score: 0.0, gained: 0 });
                busy.score += *likes as f64 * weight;
                busy.gained += likes;
            }
        }
        let mut busiest: Vec<Busy> = sums.into_values().filter(|busy| busy.gained > 0 && busy.score > 0.0).collect();
        busiest.sort_by(|one, other| other.score.total_cmp(&one.score).then(one.content.cmp(&other.content)));
        keep_of_each_type(&mut busiest, KEPT, |busy| busy.content);
        busiest
    }

    /// The busiest contents of the last hour and what they gained, as far as they are known.
    pub(crate) fn hottest(&self) -> Vec<(Content, i64)> {
        let computed = self.computed[0].read();
        computed.iter().flat_map(|computed| &computed.busiest).map(|busy| (busy.content, busy.gained)).collect()
    }

    /// The busiest contents of the last hour, as far as they are known.
    pub(crate) fn busiest(&self) -> Vec<Content> {
        self.hottest().into_iter().map(|(content, _)| content).collect()
    }
}

/// A content that gains likes.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TrendingItem {
    #[schema(value_type = String)]
    content_type: ContentType,
    #[schema(value_type = String)]
    content_id: ContentId,
    /// Likes gained in the window less those taken back.
    gained: i64,
    /// The same, each like counted by half for every half-life since: 20 minutes of an hour, 6 hours of a day.
    score: f64,
}

/// The busiest contents first.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TrendingAnswer {
    items: Vec<TrendingItem>,
    /// When the projection that it was computed from last heard from the log.
    #[schema(value_type = String, format = "date-time")]
    as_of: Timestamp,
    /// It may be old.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stale: bool,
}

/// What gained most likes lately.
#[utoipa::path(get, path = "/v1/trending", tag = "queries",
    params(("window" = Option<String>, Query, description = "`1h` or `24h`, the latter if left out"),
           ("contentType" = Option<String>, Query, description = "Only contents of this type"),
           ("limit" = Option<u32>, Query, description = "1 to 100, 20 if left out")),
    responses((status = 200, body = TrendingAnswer), (status = 400, description = "A parameter is not valid"),
              (status = 503, description = "It was not computed yet")))]
pub(crate) async fn trending(state: web::Data<State>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let mut params = Params::of(&request);
    let filter = params.optional::<ContentType>("contentType");
    let limit = params.number("limit", 1..=KEPT, LIMIT);
    let name = params.text("window").unwrap_or_else(|| "24h".into());
    let window = WINDOWS.iter().position(|known| known.name == name);
    if window.is_none() {
        params.fault("window", "must be 1h or 24h");
    }
    params.finish()?;
    let away =
        || Problem::new(&Kind::UNAVAILABLE, "What is trending was not computed yet.").with_retry_after(crate::RETRY);
    let computed = state.reads.trending.computed[window.unwrap_or_default()].read();
    let Computed { busiest, at, stale } = computed.as_ref().ok_or_else(away)?;
    let is_asked = |busy: &&Busy| filter.is_none_or(|kind| busy.content.content_type == kind);
    let items = busiest.iter().filter(is_asked).take(limit).map(|busy| TrendingItem {
        content_type: busy.content.content_type,
        content_id: busy.content.content_id,
        gained: busy.gained,
        score: busy.score,
    });
    let stale = *stale || state.reads.ports.clock.now().millis() - at.millis() > AGE_MAX_MILLIS;
    let answer = TrendingAnswer { items: items.collect(), as_of: *at, stale };
    Ok(HttpResponse::Ok().insert_header((header::CACHE_CONTROL, "public, max-age=10")).json(answer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examples::post;

    #[test]
    fn a_like_counts_by_half_for_every_half_life() {
        let trending = Trending::default();
        let slot = |likes: &[(i64, i64)]| {
            let gains = likes.iter().map(|(id, likes)| Gain { content: post(*id), likes: *likes }).collect();
            Slot { gains, read_at: Instant::now() }
        };
        let slots = [(4, vec![(1, 100)]), (8, vec![(1, 8), (2, 2), (3, 9)]), (10, vec![(2, 5), (3, -9)])];
        trending.slots.lock().extend(slots.map(|(number, likes)| (number, slot(&likes))));
        let window = Window { name: "", slots: 6, half_life: 2.0 };
        let busiest = trending.busiest_of(&window, 10);
        let found: Vec<_> = busiest.iter().map(|busy| (busy.content, busy.score, busy.gained)).collect();
        assert_eq!(
            found,
            [(post(2), 6.0, 7), (post(1), 4.0, 8)],
            "slot 4 is outside of the window, and what was taken back does not count"
        );
    }
}
