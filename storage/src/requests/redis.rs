//! Requests and buckets in Redis, shared by all command APIs. Time is the server's.

use std::{fmt, net::IpAddr};

use async_trait::async_trait;
use likewise_schema::{Position, lua};
use redis::Script;

use super::{ANSWER_LIFE, Begin, Bucket, IN_FLIGHT_LIFE, Intent, Policy, RequestKey, RequestStore, Taken};
use crate::{
    StoreError,
    redis::{Address, Connection, Part, RedisTimeouts},
};
use std::time::Duration;

const STORE: &str = "Redis";

/// The request store in Redis.
pub struct RedisRequests {
    connection: Connection,
    abandon: Script,
    take: Script,
    give_back: Script,
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
            connection: Connection::new(STORE, address, timeouts.request, timeouts.connect),
            abandon: Script::new(lua::ABANDON),
            take: Script::new(lua::TAKE),
            give_back: Script::new(lua::GIVE_BACK),
        })
    }
}

fn request_key(key: RequestKey) -> String {
    format!("like:request:{{{}}}:{}", key.subject, key.request)
}

fn bucket_key(bucket: &Bucket) -> String {
    match bucket {
        Bucket::Pair(pair) => format!("like:rate:{{pair:{}:{}}}", pair.user, pair.content),
        Bucket::User(user) => format!("like:rate:{{user:{user}}}"),
        Bucket::Address(IpAddr::V4(address)) => format!("like:rate:{{address:{address}}}"),
        Bucket::Address(IpAddr::V6(address)) => format!("like:rate:{{address:{:032x}}}", address.to_bits()),
    }
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

fn policy_arguments(policy: Policy) -> [Part; 2] {
    [policy.burst.to_string(), policy.window.as_micros().to_string()].map(Part::Argument)
}

#[async_trait]
impl RequestStore for RedisRequests {
    async fn begin(&self, key: RequestKey, intent: Intent) -> Result<Begin, StoreError> {
        let mut set = redis::cmd("SET");
        set.arg(request_key(key)).arg(text(&intent, None)).arg("NX").arg("GET");
        set.arg("PX").arg(IN_FLIGHT_LIFE.as_millis() as u64);
        let known: Option<String> = self.connection.command(&set).await?;
        let Some(known) = known else { return Ok(Begin::Fresh) };
        Ok(match parse(&known) {
            Some((other, _)) if other != intent => Begin::Conflict,
            Some((_, Some(position))) => Begin::Answered(position),
            Some((_, None)) => Begin::InFlight,
            None => Begin::Fresh,
        })
    }

    async fn finish(&self, key: RequestKey, intent: Intent, position: Position) -> Result<(), StoreError> {
        let mut set = redis::cmd("SET");
        set.arg(request_key(key)).arg(text(&intent, Some(position))).arg("PX").arg(ANSWER_LIFE.as_millis() as u64);
        self.connection.command(&set).await
    }

    async fn abandon(&self, key: RequestKey) -> Result<(), StoreError> {
        let _always_0: i64 = self.connection.script(&self.abandon, [Part::Key(request_key(key))]).await?;
        Ok(())
    }

    async fn find(&self, key: RequestKey) -> Result<Option<(Intent, Option<Position>)>, StoreError> {
        let known: Option<String> = self.connection.command(redis::cmd("GET").arg(request_key(key))).await?;
        Ok(known.as_deref().and_then(parse))
    }

    async fn take(&self, bucket: Bucket, policy: Policy) -> Result<Taken, StoreError> {
        let [burst, window] = policy_arguments(policy);
        let parts = [Part::Key(bucket_key(&bucket)), burst, window];
        let (allowed, remaining, micros): (i64, u32, u64) = self.connection.script(&self.take, parts).await?;
        Ok(Taken { allowed: allowed == 1, remaining, next_in: Duration::from_micros(micros) })
    }

    async fn give_back(&self, bucket: Bucket, policy: Policy) -> Result<(), StoreError> {
        let [burst, window] = policy_arguments(policy);
        let parts = [Part::Key(bucket_key(&bucket)), burst, window];
        let _always_0: i64 = self.connection.script(&self.give_back, parts).await?;
        Ok(())
    }
}
