//! The demo's busy crowd: invented users who like the demo's posts, so that one sees a busy day. Bounded in rate, in time
//! and in how many rows it makes, and only where nobody can be harmed by it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use actix_web::{HttpResponse, http::Method};
use futures::{StreamExt, stream};
use likewise_command_api::{Command, Commands};
use likewise_http::{Kind, Problem, Routes};
use likewise_schema::{Content, RequestId, UserId, trace_parent};
use likewise_storage::requests::Intent;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval};
use uuid::Uuid;

/// Likes in a second.
const RATE: u64 = 1000;
/// The crowd goes home by itself.
const LASTS: Duration = Duration::from_secs(60);
/// How often some of the crowd like something.
const TICK: Duration = Duration::from_millis(20);
/// Under way at once.
const AT_ONCE: usize = 64;
/// Users in the crowd. Each likes one post; once all have, they take it back one after the other, and so on.
const USERS: u64 = 60_000;
/// Their numbers begin here, beyond those that are given out.
const FIRST_USER: u64 = 9_000_000_000_000_000_000;
/// Each process has a crowd of its own, so that what an earlier one did is not done again in vain.
const CROWDS: u64 = 1000;
/// Posts of the demo page, the more often the better they are liked.
const POSTS: [u64; 10] = [1, 1, 1, 1, 1, 2, 2, 3, 42, 43];

/// The crowd.
pub(crate) struct Crowd {
    commands: Arc<Commands>,
    /// Until when it is here.
    until: Mutex<Option<Instant>>,
    is_here: AtomicBool,
    first_user: u64,
    /// What it has done so far.
    turn: AtomicU64,
}

impl Crowd {
    pub(crate) fn new(commands: &Arc<Commands>) -> Arc<Self> {
        Arc::new(Self {
            commands: Arc::clone(commands),
            until: Mutex::new(None),
            is_here: AtomicBool::new(false),
            first_user: FIRST_USER + rand::random_range(0..CROWDS) * USERS,
            turn: AtomicU64::new(0),
        })
    }

    fn left(&self) -> Option<Duration> {
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.and_then(|until| until.checked_duration_since(Instant::now()))
    }

    fn come(self: &Arc<Self>) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + LASTS);
        let this = Arc::clone(self);
        tokio::spawn(async move {
            // One of them at a time; who comes while the last one is leaving comes again.
            while this.left().is_some() && !this.is_here.swap(true, Ordering::AcqRel) {
                this.like().await;
                this.is_here.store(false, Ordering::Release);
            }
        });
    }

    fn leave(&self) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn like(&self) {
        let mut ticks = interval(TICK);
        // A server that cannot keep up is not asked for more later.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.left().is_some() {
            ticks.tick().await;
            let some = RATE * TICK.as_millis() as u64 / 1000;
            let from = self.turn.fetch_add(some, Ordering::Relaxed);
            stream::iter(from..from + some)
                .map(|turn| self.one(turn))
                .buffer_unordered(AT_ONCE)
                .for_each(|()| std::future::ready(()))
                .await;
        }
    }

    async fn one(&self, turn: u64) {
        let post = POSTS[turn as usize % POSTS.len()];
        let (user, phase) = (self.first_user + turn % USERS, turn / USERS);
        let command =
            UserId::new(user as i64).ok().zip(format!("post:{post}").parse::<Content>().ok()).map(|(user, content)| {
                Command {
                    intent: Intent { user, content, liked: phase % 2 == 0 },
                    request_id: RequestId::from_uuid(Uuid::now_v7()),
                    occurred_at: None,
                    trace_parent: trace_parent(Uuid::new_v4().as_u128(), turn),
                    address: None,
                }
            });
        if let Some(command) = command {
            // A refusal is part of a busy day.
            let _refused = self.commands.submit(&command).await;
        }
    }
}

/// Adds what the page asks for: how it is to behave, and the crowd, if there may be one.
pub(crate) fn routes(routes: &mut Routes, crowd: Option<&Arc<Crowd>>, is_open: bool) {
    let state = move |crowd: Option<Arc<Crowd>>| {
        let left = crowd.as_ref().map(|crowd| crowd.left().map_or(0, |left| left.as_secs() + 1));
        HttpResponse::Ok()
            .insert_header(("Cache-Control", "no-store"))
            .json(json!({ "open": is_open, "busySeconds": left }))
    };
    let known = crowd.cloned();
    routes.add(Method::GET, "/demo/state", move || {
        let answer = state(known.clone());
        async move { answer }
    });
    // No GET or POST: a page of another site could send those without being asked.
    let mut on = |method: Method, change: fn(&Arc<Crowd>)| {
        let known = crowd.cloned();
        routes.add(method, "/demo/busy", move || {
            let answer = known.clone().ok_or(Problem::from(&Kind::NOT_FOUND)).map(|crowd| {
                change(&crowd);
                state(Some(crowd))
            });
            async move { answer }
        });
    };
    on(Method::PUT, Crowd::come);
    on(Method::DELETE, |crowd| crowd.leave());
}
