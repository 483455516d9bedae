//! `likewise abuse report`: accounts that like in lockstep, and contents that grow as they never did, from the log.
//!
//! Lockstep: accounts that one hand moves like the same contents within minutes of each other, many times. Each account's
//! likes are a set of (content, ten minutes); accounts whose sets overlap share MinHash values (Broder 1997), and are
//! brought together by bands of two of them (locality-sensitive hashing; Leskovec, Rajaraman, Ullman, Mining of Massive
//! Datasets, chapter 3). What a band brings together is a group if enough of its accounts share enough of the set.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io::Write,
};

use clap::{Args, Subcommand, ValueEnum};
use likewise_analyst::{
    range::{Edge, Range},
    reader::Pace,
    stream::Stream,
};
use likewise_schema::{Content, Timestamp, UserId};
use likewise_storage::Clock;
use serde::Serialize;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{Failure, config::Settings, reading, wiring};

#[derive(Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Print accounts that like in lockstep, and contents whose likes grow as they never did. Bursts from one address are
    /// not in the log: likewise_limited_total tells of them.
    Report(Report),
}

#[derive(Args)]
struct Report {
    /// How far back to look: 2 hours to 7 days.
    #[arg(long, value_name = "TIME", default_value = "24h")]
    window: humantime::Duration,
    /// Fewest accounts of a group.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    min_accounts: u32,
    /// Fewest contents that a group has liked within minutes of each other.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(2..=1_000))]
    min_contents: u32,
    /// What it looks like.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// One document
    Json,
    /// A line for each account of a group and for each content
    Csv,
}

/// Likes that are held in memory: about 50 bytes each, and as much again twice while they are grouped.
const LIKES_MAX: usize = 20_000_000;
/// The longest window.
const WINDOW_MAX_MILLIS: i64 = 7 * 24 * 3600 * 1000;
/// The time within which likes count as made together.
const TOGETHER_MILLIS: i64 = 600_000;
/// Bands of two MinHash values: accounts that share a third of their likes meet in one with a chance of 0.85, those
/// that share a twentieth with 0.04.
const BANDS: u64 = 16;
/// The share of a group's accounts that have made a like which the group is said to share.
const SHARED_BY: f64 = 0.6;
/// Likes in the last hour below which no content is reported, and times the hourly mean before.
const GROWTH_MIN: u64 = 100;
const GROWTH_TIMES: f64 = 10.0;
const HOUR_MILLIS: i64 = 3_600_000;

/// One like, as far as it counts here.
#[derive(Clone, Copy, Debug)]
struct Like {
    user: UserId,
    content: Content,
    at: Timestamp,
}

/// Accounts that like in lockstep.
#[derive(Debug, Serialize)]
struct Group {
    accounts: Vec<UserId>,
    contents: Vec<String>,
    first: Timestamp,
    last: Timestamp,
}

/// A content that grows as it never did.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Growth {
    content: String,
    last_hour: u64,
    hourly_before: f64,
}

/// The whole report.
#[derive(Debug, Serialize)]
struct Findings {
    from: Timestamp,
    to: Timestamp,
    likes: usize,
    lockstep: Vec<Group>,
    growth: Vec<Growth>,
}

pub(crate) async fn run(settings: &Settings, options: &Options) -> Result<(), Failure> {
    let What::Report(report) = &options.what;
    let window = i64::try_from(report.window.as_millis()).unwrap_or(i64::MAX);
    if !(2 * HOUR_MILLIS..=WINDOW_MAX_MILLIS).contains(&window) {
        return Err(
            "--window must be at least 2 hours, to have something to compare the last one with, and at most 7 days"
                .into(),
        );
    }
    let to = Clock::system().now();
    let from = Timestamp::saturating_from_millis(to.millis() - window);
    let likes = read(settings, from).await?;
    let findings = Findings {
        from,
        to,
        likes: likes.len(),
        lockstep: lockstep(&likes, report.min_accounts as usize, report.min_contents as usize),
        growth: growth(&likes, from, to),
    };
    let mut out = std::io::stdout().lock();
    let printed = match report.format {
        Format::Table => findings.table(&mut out),
        Format::Json => {
            serde_json::to_writer_pretty(&mut out, &findings).map_err(Into::into).and_then(|()| writeln!(out))
        }
        Format::Csv => findings.csv(&mut out),
    };
    match printed {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// The likes since a time.
async fn read(settings: &Settings, from: Timestamp) -> Result<Vec<Like>, Failure> {
    let log = wiring::readable_log(&settings.log).await?;
    let range = Range { from: Some(Edge::Time(from)), ..Range::default() };
    let mut stream = Stream::new(&log, range, &Pace::new(0)).await?;
    let bar = reading::progress_bar(stream.remaining());
    let mut likes = Vec::new();
    while let Some(entry) = stream.next().await? {
        bar.set_position(stream.read());
        if let Ok(event) = entry.event
            && event.liked
            && event.received_at >= from
        {
            if likes.len() == LIKES_MAX {
                return Err(
                    format!("there are over {LIKES_MAX} likes in this window: choose a shorter --window").into()
                );
            }
            likes.push(Like { user: event.user_id, content: event.content(), at: event.received_at });
        }
    }
    bar.finish_and_clear();
    Ok(likes)
}

/// A content within ten minutes.
type Moment = (Content, i64);

fn number_of((content, slot): &Moment) -> u64 {
    xxh3_64(format!("{content} {slot}").as_bytes())
}

/// Groups of accounts, largest first. Both grids of ten minutes are looked at, for a like just before a border and one just
/// after it belong together.
fn lockstep(likes: &[Like], min_accounts: usize, min_contents: usize) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for shift in [0, TOGETHER_MILLIS / 2] {
        let mut by_user: HashMap<UserId, HashMap<Moment, Timestamp>> = HashMap::new();
        for like in likes {
            let moment = (like.content, (like.at.millis() + shift) / TOGETHER_MILLIS);
            by_user.entry(like.user).or_default().entry(moment).or_insert(like.at);
        }
        by_user.retain(|_, moments| moments.len() >= min_contents);
        let mut buckets: HashMap<(u64, u64, u64), Vec<UserId>> = HashMap::new();
        for (user, moments) in &by_user {
            let numbers: Vec<u64> = moments.keys().map(number_of).collect();
            let least = |seed: u64| {
                numbers.iter().map(|number| xxh3_64_with_seed(&number.to_le_bytes(), seed)).min().unwrap_or_default()
            };
            for band in 0..BANDS {
                buckets.entry((band, least(2 * band), least(2 * band + 1))).or_default().push(*user);
            }
        }
        for users in buckets.into_values().filter(|users| users.len() >= min_accounts) {
            groups.extend(group(&users, &by_user, min_accounts, min_contents));
        }
    }
    // Each band finds much the same accounts: those of a group that was found are not told again.
    groups.sort_by_key(|group| std::cmp::Reverse(group.accounts.len()));
    let mut told: HashSet<UserId> = HashSet::new();
    groups.retain(|group| {
        let known = group.accounts.iter().filter(|user| told.contains(user)).count();
        let is_news = known * 2 < group.accounts.len();
        told.extend(&group.accounts);
        is_news
    });
    groups
}

/// What users who met in a band have in common, if that is enough.
fn group(
    users: &[UserId],
    by_user: &HashMap<UserId, HashMap<Moment, Timestamp>>,
    min_accounts: usize,
    min_contents: usize,
) -> Option<Group> {
    let mut made: HashMap<&Moment, usize> = HashMap::new();
    for user in users {
        by_user[user].keys().for_each(|moment| *made.entry(moment).or_default() += 1);
    }
    let enough = (users.len() as f64 * SHARED_BY).ceil() as usize;
    let shared: HashSet<&Moment> = made.into_iter().filter(|(_, by)| *by >= enough).map(|(moment, _)| moment).collect();
    if shared.len() < min_contents {
        return None;
    }
    let of = |user: &UserId| by_user[user].iter().filter(|(moment, _)| shared.contains(moment));
    // Those who met tell what is shared; others who share it may have met elsewhere.
    let accounts: BTreeSet<UserId> = by_user.keys().copied().filter(|user| of(user).count() >= min_contents).collect();
    if accounts.len() < min_accounts {
        return None;
    }
    let times: Vec<Timestamp> = accounts.iter().flat_map(|user| of(user).map(|(_, at)| *at)).collect();
    let contents: BTreeSet<String> = shared.iter().map(|(content, _)| content.to_string()).collect();
    Some(Group {
        accounts: accounts.into_iter().collect(),
        contents: contents.into_iter().collect(),
        first: times.iter().min().copied()?,
        last: times.iter().max().copied()?,
    })
}

/// Contents whose last hour is far above their hours before, the steepest first.
fn growth(likes: &[Like], from: Timestamp, to: Timestamp) -> Vec<Growth> {
    let mut counts: BTreeMap<Content, (u64, u64)> = BTreeMap::new();
    for like in likes {
        let (last, before) = counts.entry(like.content).or_default();
        let is_recent = like.at.millis() > to.millis() - HOUR_MILLIS;
        *(if is_recent { last } else { before }) += 1;
    }
    let hours = ((to.millis() - HOUR_MILLIS - from.millis()) as f64 / HOUR_MILLIS as f64).max(1.0);
    let found = counts.into_iter().filter_map(|(content, (last_hour, before))| {
        let hourly_before = before as f64 / hours;
        let is_steep = last_hour >= GROWTH_MIN && last_hour as f64 >= GROWTH_TIMES * hourly_before.max(1.0);
        is_steep.then(|| Growth { content: content.to_string(), last_hour, hourly_before })
    });
    let mut found: Vec<Growth> = found.collect();
    found.sort_by_key(|growth| std::cmp::Reverse(growth.last_hour));
    found
}

/// Accounts and contents that a line of the table shows.
const SHOWN: usize = 5;

impl Findings {
    fn table(&self, out: &mut impl Write) -> std::io::Result<()> {
        let some = |items: Vec<String>| {
            let more = items.len().saturating_sub(SHOWN);
            let text = items.into_iter().take(SHOWN).collect::<Vec<_>>().join(" ");
            if more > 0 { format!("{text} and {more} more") } else { text }
        };
        writeln!(out, "{} likes from {} to {}\n", self.likes, self.from, self.to)?;
        writeln!(out, "Lockstep: {} groups", self.lockstep.len())?;
        for group in &self.lockstep {
            let accounts = group.accounts.iter().map(ToString::to_string).collect();
            writeln!(
                out,
                "  {} accounts, {} contents, {} to {}",
                group.accounts.len(),
                group.contents.len(),
                group.first,
                group.last
            )?;
            writeln!(out, "    accounts  {}\n    contents  {}", some(accounts), some(group.contents.clone()))?;
        }
        writeln!(out, "\nGrowth: {} contents", self.growth.len())?;
        for Growth { content, last_hour, hourly_before } in &self.growth {
            writeln!(out, "  {content}  {last_hour} in the last hour, {hourly_before:.1} an hour before")?;
        }
        Ok(())
    }

    fn csv(&self, out: &mut impl Write) -> std::io::Result<()> {
        writeln!(out, "finding,group,subject,number")?;
        for (index, group) in self.lockstep.iter().enumerate() {
            for account in &group.accounts {
                writeln!(out, "lockstep-account,{},{account},{}", index + 1, group.contents.len())?;
            }
            for content in &group.contents {
                writeln!(out, "lockstep-content,{},{content},{}", index + 1, group.accounts.len())?;
            }
        }
        for Growth { content, last_hour, .. } in &self.growth {
            writeln!(out, "growth,,{content},{last_hour}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000_000;

    /// Draws a number that follows from another.
    fn mix(number: u64) -> u64 {
        xxh3_64(&number.to_le_bytes())
    }

    fn like(user: u64, content: u64, millis_ago: i64) -> Like {
        Like {
            user: UserId::new(user as i64).unwrap(),
            content: format!("post:{content}").parse().unwrap(),
            at: Timestamp::from_millis(NOW - millis_ago).unwrap(),
        }
    }

    /// Users who like what is popular, whenever they come by.
    fn crowd(users: u64, likes: u64) -> Vec<Like> {
        let one = |user: u64, number: u64| {
            let draw = mix(user << 20 | number);
            // A third of all likes goes to ten posts.
            let content = if draw.is_multiple_of(3) { 1 + (draw >> 8) % 10 } else { 11 + (draw >> 8) % 5000 };
            like(1 + user, content, ((draw >> 20) % 86_000_000) as i64)
        };
        (0..users).flat_map(|user| (0..likes).map(move |number| one(user, number))).collect()
    }

    #[test]
    fn a_group_in_lockstep_is_found_among_a_crowd_and_the_crowd_is_not() {
        let mut likes = crowd(5000, 30);
        assert!(lockstep(&likes, 10, 5).is_empty());
        for user in 0..200_u64 {
            for content in 0..20_u64 {
                // Within six minutes of each other, across a border of ten minutes, each on a day of its own.
                let jitter = (mix(user << 10 | content) % 360_000) as i64;
                likes.push(like(1_000_000 + user, 900_000 + content, 3_600_000 + content as i64 * 1_800_000 + jitter));
            }
            // And as many others, each to itself.
            for number in 0..20 {
                likes.push(like(
                    1_000_000 + user,
                    11 + mix(user << 30 | number) % 5000,
                    (mix(user ^ number) % 86_000_000) as i64,
                ));
            }
        }
        let found = lockstep(&likes, 10, 5);
        let accounts: BTreeSet<UserId> = found.iter().flat_map(|group| group.accounts.clone()).collect();
        let theirs = accounts.iter().filter(|user| user.get() >= 1_000_000).count();
        println!("{} groups, {theirs} of 200 accounts, {} others", found.len(), accounts.len() - theirs);
        assert!(theirs >= 190, "{theirs} of 200");
        assert_eq!(accounts.len(), theirs, "nobody of the crowd");
        assert!(found[0].contents.iter().all(|content| content.starts_with("post:9000")), "{:?}", found[0].contents);
    }

    #[test]
    fn a_content_that_grows_as_it_never_did_is_told() {
        let (from, to) = (NOW - 24 * HOUR_MILLIS, NOW);
        let (from, to) = (Timestamp::from_millis(from).unwrap(), Timestamp::from_millis(to).unwrap());
        let mut likes = Vec::new();
        likes.extend((0..500).map(|user| like(user + 1, 1, 60_000)));
        // Popular all day: as many in this hour as in any.
        likes.extend((0..24 * 500).map(|number| like(number + 1, 2, number as i64 * 7_199)));
        // Steep, and small.
        likes.extend((0..50).map(|user| like(user + 1, 3, 60_000)));
        let found: Vec<(String, u64)> =
            growth(&likes, from, to).into_iter().map(|growth| (growth.content, growth.last_hour)).collect();
        assert_eq!(found, [("post:1".to_owned(), 500)]);
    }
}
