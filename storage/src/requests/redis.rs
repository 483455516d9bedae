//! Requests and buckets in Redis, shared by all command APIs. Time is the server's.

use std::{fmt, net::IpAddr, time::Duration};

use async_trait::async_trait;
use likewise_schema::{Position, lua};
use redis::Script;
use uuid::Uuid;

use super::{
    ANSWER_LIFE, ATTENDANCE_LIFE, Admitted, Bucket, Charge, IN_FLIGHT_LIFE, Intent, Level, RequestKey, RequestStore,
};
use crate::{
    StoreError,
    redis::{Address, Connection, Part, RedisTimeouts},
};

const STORE: &str = "Redis";

/// The request store in Redis.
pub struct RedisRequests {
    connection: Connection,
    /// Whether keys of two tags can be on two nodes.
    is_cluster: bool,
    admit: Script,
    release: Script,
    attend: Script,
}

impl fmt::Debug for RedisRequests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedisRequests")
    }
}

impl RedisRequests {
    /// The store at a URL, connected when it is first used.
    pub fn new(url: &str, timeouts: RedisTimeouts) -> Result<Self, StoreError> {
        let address = Address::parse(STORE, url)?;
        Ok(Self {
            is_cluster: address.is_cluster(),
            connection: Connection::new(STORE, address, timeouts.request, timeouts.connect),
            admit: Script::new(lua::ADMIT),
            release: Script::new(lua::RELEASE),
            attend: Script::new(lua::ATTEND),
        })
    }

    /// The address's charge where it may be on another node than the request, and the others.
    fn split<'a>(&self, charges: &'a [Charge]) -> (&'a [Charge], &'a [Charge]) {
        let begins_with_address = matches!(charges.first(), Some(Charge { bucket: Bucket::Address(_), .. }));
        charges.split_at(usize::from(self.is_cluster && begins_with_address))
    }

    /// The script's answer; without a request only the buckets are asked.
    async fn ask(&self, request: Option<(RequestKey, Intent)>, charges: &[Charge]) -> Result<Admitted, StoreError> {
        let (key, mark) = match &request {
            Some((key, intent)) => (Some(Part::Key(request_key(*key))), text(intent, None)),
            None => (None, String::new()),
        };
        let life = IN_FLIGHT_LIFE.as_millis().to_string();
        let parts = key.into_iter().chain([Part::Argument(mark), Part::Argument(life)]).chain(parts_of(charges));
        let answer: Vec<redis::Value> = self.connection.script(&self.admit, parts).await?;
        let intent = request.map(|(_, intent)| intent);
        admitted(answer, intent).ok_or_else(|| StoreError::unavailable(STORE, "a script gave what it does not give"))
    }

    async fn give_back(&self, key: Option<RequestKey>, charges: &[Charge]) -> Result<(), StoreError> {
        let has_request = Part::Argument(u8::from(key.is_some()).to_string());
        let key = key.map(|key| Part::Key(request_key(key)));
        let parts = key.into_iter().chain([has_request]).chain(parts_of(charges));
        let _always_0: i64 = self.connection.script(&self.release, parts).await?;
        Ok(())
    }
}

/// The first of an answer says what the rest is.
fn admitted(answer: Vec<redis::Value>, intent: Option<Intent>) -> Option<Admitted> {
    const KNOWN: i64 = 0;
    const FRESH: i64 = 1;
    const EXHAUSTED: i64 = 2;
    let number = |value: &redis::Value| redis::from_redis_value_ref::<i64>(value).ok();
    let level = |pair: &[redis::Value]| {
        let [remaining, micros] = pair else { return None };
        let remaining = u32::try_from(number(remaining)?).ok()?;
        Some(Level { remaining, next_in: Duration::from_micros(u64::try_from(number(micros)?).ok()?) })
    };
    let (kind, rest) = answer.split_first()?;
    match (number(kind)?, rest) {
        (KNOWN, [text]) => {
            let text: String = redis::from_redis_value_ref(text).ok()?;
            Some(match parse(&text) {
                Some((other, _)) if Some(other) != intent => Admitted::Conflict,
                Some((_, Some(position))) => Admitted::Answered(position),
                Some((_, None)) => Admitted::InFlight,
                None => return None,
            })
        }
        (FRESH, levels) => Some(Admitted::Fresh(levels.chunks(2).map(level).collect::<Option<_>>()?)),
        (EXHAUSTED, [charge, of_it @ ..]) => {
            Some(Admitted::Exhausted { charge: usize::try_from(number(charge)?).ok()?, level: level(of_it)? })
        }
        _ => None,
    }
}

/// All keys of a user have one tag, so that a command needs one script on one node.
fn request_key(key: RequestKey) -> String {
    format!("like:request:{{{}}}:{}", key.subject, key.request)
}

fn bucket_key(bucket: &Bucket) -> String {
    match bucket {
        Bucket::Pair(pair) => format!("like:rate:{{{}}}:{}", pair.user, pair.content),
        Bucket::User(user) => format!("like:rate:{{{user}}}"),
        Bucket::Address(IpAddr::V4(address)) => format!("like:rate:{{{address}}}"),
        Bucket::Address(IpAddr::V6(address)) => format!("like:rate:{{{:032x}}}", address.to_bits()),
    }
}

fn parts_of(charges: &[Charge]) -> impl Iterator<Item = Part> {
    charges.iter().flat_map(|Charge { bucket, policy }| {
        let [burst, window] = [policy.burst.to_string(), policy.window.as_micros().to_string()].map(Part::Argument);
        [Part::Key(bucket_key(bucket)), burst, window]
    })
}

/// `user content liked position`, the position `-` while the request is in flight.
fn text(intent: &Intent, position: Option<Position>) -> String {
    let position = position.map_or_else(|| "-".into(), |position| position.to_string());
    format!("{} {} {} {position}", intent.user, intent.content, u8::from(intent.liked))
}

/// None for what this program did not write.
fn parse(text: &str) -> Option<(Intent, Option<Position>)> {
    let mut parts = text.split(' ');
    let (user, content) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let liked = parts.next()? == "1";
    let position = match parts.next()? {
        "-" => None,
        position => Some(position.parse().ok()?),
    };
    Some((Intent { user, content, liked }, position))
}

#[async_trait]
impl RequestStore for RedisRequests {
    async fn admit(&self, key: RequestKey, intent: Intent, charges: &[Charge]) -> Result<Admitted, StoreError> {
        let (apart, here) = self.split(charges);
        match self.ask(Some((key, intent)), here).await? {
            // What is on another node is asked last: of a request that is known it is not asked at all.
            Admitted::Fresh(levels) if !apart.is_empty() => match self.ask(None, apart).await {
                Ok(Admitted::Fresh(first)) => Ok(Admitted::Fresh([first, levels].concat())),
                refused => {
                    let _a_courtesy = self.give_back(Some(key), here).await;
                    refused
                }
            },
            Admitted::Exhausted { charge, level } => Ok(Admitted::Exhausted { charge: apart.len() + charge, level }),
            admitted => Ok(admitted),
        }
    }

    async fn finish(&self, key: RequestKey, intent: Intent, position: Position) -> Result<(), StoreError> {
        let mut set = redis::cmd("SET");
        set.arg(request_key(key)).arg(text(&intent, Some(position))).arg("PX").arg(ANSWER_LIFE.as_millis() as u64);
        self.connection.command(&set).await
    }

    async fn release(&self, key: RequestKey, charges: &[Charge]) -> Result<(), StoreError> {
        let (apart, here) = self.split(charges);
        if !apart.is_empty() {
            self.give_back(None, apart).await?;
        }
        self.give_back(Some(key), here).await
    }

    async fn find(&self, key: RequestKey) -> Result<Option<(Intent, Option<Position>)>, StoreError> {
        let known: Option<String> = self.connection.command(redis::cmd("GET").arg(request_key(key))).await?;
        Ok(known.as_deref().and_then(parse))
    }

    async fn attend(&self, process: Uuid) -> Result<u32, StoreError> {
        let arguments = [process.to_string(), ATTENDANCE_LIFE.as_millis().to_string()].map(Part::Argument);
        let parts = [Part::Key("like:command-apis".into())].into_iter().chain(arguments);
        self.connection.script(&self.attend, parts).await
    }
}
