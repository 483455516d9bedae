//! What every record store does.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use likewise_schema::{Content, Offset, Pair, PartitionCount, Position};

use tokio::sync::mpsc;

use super::{at, pair, partition, post, request, user};
use crate::{
    StoreError,
    log::Mark,
    records::{
        Advance, Batch, Beside, BucketDelta, Checkpoint, CommitError, Committed, Count, CountDelta, DigestBuilder,
        Fence, First, Gain, Generation, KeptCount, LikeRecord, Liked, Liker, Owner, RecordStore, Repair, Scan, Writes,
    },
};

type Store = Arc<dyn RecordStore>;

fn offset(number: i64) -> Offset {
    Offset::new(number).expect("a valid offset")
}

fn owner(micros: i64) -> Owner {
    Owner { log_identity: "log-a".into(), partitions: PartitionCount::DEFAULT, fold_version: 1, micros }
}

fn row(pair: Pair, version: i64, liked: bool) -> LikeRecord {
    LikeRecord {
        pair,
        is_canceled: !liked,
        created_at: at(1),
        updated_at: at(version),
        liked_at: liked.then_some(at(version)),
        version: offset(version),
        ring: vec![request(1), request(version as u128)],
        floor: (version > 5).then_some(request(99)),
    }
}

fn delta(content: Content, delta: i64, version: i64) -> CountDelta {
    CountDelta { content, delta, version: offset(version), first_position: offset(version) }
}

fn batch(fence: Fence, to: i64, read: Vec<Pair>, writes: Writes) -> Batch {
    let advance = Advance {
        next_offset: offset(to),
        mark: Some(Mark { key: Some(format!("key-{to}").into_bytes()), timestamp: at(to) }),
        log_end: offset(to + 3),
        next_event_at: Some(at(to + 1)),
        heard_at: at(to + 2),
    };
    Batch { fence, advance, read, counts: HashMap::new(), fold: Box::new(move |_| writes.clone()) }
}

async fn commit(store: &Store, fence: Fence, to: i64, rows: Vec<LikeRecord>, counts: Vec<CountDelta>) -> Committed {
    let read = rows.iter().map(|row| row.pair).collect();
    let writes = Writes { rows, counts, buckets: vec![] };
    store.commit(batch(fence, to, read, writes)).await.expect("committed")
}

fn after(checkpoint: &Checkpoint, next: i64) -> Fence {
    Fence { next_offset: offset(next), ..checkpoint.fence() }
}

/// Runs the suite on fresh, empty stores from `make`.
pub async fn record_store<F: AsyncFn() -> Arc<dyn RecordStore>>(make: F) {
    acquiring_raises_the_epoch_and_keeps_the_rest(make().await).await;
    tables_of_another_log_count_or_fold_are_refused(make().await).await;
    a_commit_is_taken_from_the_owner_at_its_offset_alone(make().await).await;
    of_racing_commits_one_is_taken(make().await).await;
    the_fold_sees_prior_rows_and_its_writes_are_read_back(make().await).await;
    counts_are_summed(make().await).await;
    ids_of_any_size_are_told_apart(make().await).await;
    a_new_generation_needs_the_fence_and_breaks_it(make().await).await;
    lists_are_newest_first_and_page_without_gaps(make().await).await;
    a_content_lists_its_likers_at_any_size(make().await).await;
    first_events_are_found_by_their_position(make().await).await;
    what_gained_most_in_a_slot_is_found(make().await).await;
    the_digest_is_of_sorted_rows(make().await).await;
    a_scan_shows_what_is_kept_beside_rows(make().await).await;
    a_repair_is_absolute_fenced_and_renews_the_generation(make().await).await;
}

/// All that a scan sends: rows, counts and the sums of buckets.
async fn everything(store: &Store) -> (Vec<LikeRecord>, Vec<KeptCount>, Vec<(Content, i64, i64, i64)>) {
    let (rows, mut rows_found) = mpsc::channel(1);
    let (beside, mut beside_found) = mpsc::channel(1);
    let collect_rows = async {
        let mut all: Vec<LikeRecord> = Vec::new();
        while let Some(chunk) = rows_found.recv().await {
            all.extend(chunk);
        }
        all
    };
    let collect_beside = async {
        let (mut counts, mut buckets) = (Vec::new(), BTreeMap::<(Content, i64), (i64, i64)>::new());
        while let Some(chunk) = beside_found.recv().await {
            for found in chunk {
                match found {
                    Beside::Count(kept) => counts.push(kept),
                    Beside::Bucket(BucketDelta { content, slot, gained, lost }) => {
                        let sums = buckets.entry((content, slot)).or_default();
                        (sums.0, sums.1) = (sums.0 + gained, sums.1 + lost);
                    }
                    Beside::Damaged(_, what) => panic!("{what}"),
                }
            }
        }
        counts.sort_by_key(|kept: &KeptCount| kept.count.content);
        (counts, buckets)
    };
    let scan = store.scan(Scan { rows, beside: Some(beside) });
    let (checkpoints, rows, (counts, buckets)) = tokio::join!(scan, collect_rows, collect_beside);
    checkpoints.expect("scanned");
    let sums = buckets.into_iter().filter(|(_, sums)| *sums != (0, 0));
    (rows, counts, sums.map(|((content, slot), (gained, lost))| (content, slot, gained, lost)).collect())
}

fn kept(content: Content, count: i64, version: i64, first: i64) -> KeptCount {
    let count = Count { content, count, version: offset(version) };
    KeptCount { count, partition: partition(1), first_position: offset(first) }
}

async fn a_scan_shows_what_is_kept_beside_rows(store: Store) {
    let held = store.acquire(partition(1), &owner(10)).await.expect("acquired");
    let rows = vec![row(pair(1, 1), 3, true), row(pair(1, 2), 4, false), row(pair(17, 1), 5, true)];
    let buckets = |gained| vec![BucketDelta { content: post(1), slot: 10, gained, lost: 1 }];
    let writes = |rows: Vec<LikeRecord>, counts, gained| Writes { rows, counts, buckets: buckets(gained) };
    let read = rows.iter().map(|row| row.pair).collect();
    let first = writes(rows.clone(), vec![delta(post(1), 1, 3), delta(post(17), 1, 5)], 2);
    store.commit(batch(held.fence(), 6, read, first)).await.expect("committed");
    let more = writes(vec![], vec![delta(post(1), 2, 7)], 5);
    store.commit(batch(after(&held, 6), 300, vec![], more)).await.expect("committed");
    let (found, counts, sums) = everything(&store).await;
    assert_eq!(found, rows, "by content and user");
    assert_eq!(counts, [kept(post(1), 3, 7, 3), kept(post(17), 1, 5, 5)]);
    assert_eq!(sums, [(post(1), 10, 7, 2)]);
}

async fn a_repair_is_absolute_fenced_and_renews_the_generation(store: Store) {
    let held = store.acquire(partition(1), &owner(10)).await.expect("acquired");
    let rows = vec![row(pair(1, 1), 3, true), row(pair(1, 2), 4, true), row(pair(17, 1), 5, true)];
    let read = rows.iter().map(|row| row.pair).collect();
    let wrong = Writes {
        rows,
        counts: vec![delta(post(1), 7, 4), delta(post(17), 1, 5)],
        buckets: vec![BucketDelta { content: post(1), slot: 10, gained: 9, lost: 0 }],
    };
    store.commit(batch(held.fence(), 6, read, wrong)).await.expect("committed");
    let repair = Repair {
        rows: vec![
            (pair(1, 1), Some(row(pair(1, 1), 2, false))),
            (pair(17, 1), None),
            (pair(33, 9), Some(row(pair(33, 9), 1, true))),
        ],
        counts: vec![(post(1), Some(offset(1))), (post(17), None), (post(33), Some(offset(0)))],
        buckets: vec![BucketDelta { content: post(1), slot: 10, gained: -7, lost: 1 }],
    };
    let late = store.repair(after(&held, 5), Generation(7), repair.clone()).await;
    assert_eq!(late, Err(CommitError::Fenced), "of another offset");
    let renewed = store.repair(after(&held, 6), Generation(7), repair.clone()).await.expect("repaired");
    assert_eq!((renewed.generation, renewed.next_offset), (Generation(7), offset(6)));
    assert!(renewed.epoch > held.epoch, "whoever held the partition has to acquire it anew");
    let refused = store.commit(batch(after(&held, 6), 7, vec![], Writes::default())).await;
    assert_eq!(refused, Err(CommitError::Fenced));
    let (found, counts, sums) = everything(&store).await;
    assert_eq!(found, [row(pair(1, 1), 2, false), row(pair(1, 2), 4, true), row(pair(33, 9), 1, true)]);
    assert_eq!(counts, [kept(post(1), 1, 4, 1), kept(post(33), 1, 1, 0)], "counted from the rows; none without rows");
    assert_eq!(sums, [(post(1), 10, 2, 1)]);
    let again = store.repair(renewed.fence(), Generation(8), Repair { buckets: vec![], ..repair }).await;
    assert_eq!(again.expect("repaired").generation, Generation(8));
    assert_eq!(everything(&store).await.0, found, "rows are absolute");
    let list = store.likers(post(1), None, 10).await.expect("read").value;
    assert_eq!(list.iter().map(|liker| liker.user).collect::<Vec<_>>(), [user(2)]);
}

async fn ids_of_any_size_are_told_apart(store: Store) {
    let one = store.acquire(partition(1), &owner(1)).await.expect("acquired");
    let ids = [1, i64::from(i32::MAX) - 14, i64::from(i32::MAX) + 2, 5_000_000_001, i64::MAX - 14];
    let contents = ids.map(post);
    assert!(contents.iter().all(|content| content.shard() == 1), "of one partition");
    let rows = || contents.iter().flat_map(|content| ids.map(|id| Pair { content: *content, user: user(id) }));
    let all: Vec<LikeRecord> = rows().map(|pair| row(pair, 3, true)).collect();
    let counts: Vec<CountDelta> = (1..).zip(contents).map(|(gained, content)| delta(content, gained, 3)).collect();
    commit(&store, one.fence(), 4, all.clone(), counts.clone()).await;
    let pairs: Vec<Pair> = rows().collect();
    assert_eq!(store.rows(&pairs).await.expect("read").value, all.into_iter().map(Some).collect::<Vec<_>>());
    // Once more: each changes its own row and count.
    let later: Vec<LikeRecord> = rows().map(|pair| row(pair, 5, false)).collect();
    commit(&store, after(&one, 4), 6, later.clone(), counts).await;
    assert_eq!(store.rows(&pairs).await.expect("read").value, later.into_iter().map(Some).collect::<Vec<_>>());
    let found = store.counts(&contents).await.expect("read").value;
    let counts: Vec<_> = found.into_iter().map(|count| count.expect("there").count).collect();
    assert_eq!(counts, [2, 4, 6, 8, 10]);
}

async fn first_events_are_found_by_their_position(store: Store) {
    let one = store.acquire(partition(1), &owner(1)).await.expect("acquired");
    let two = store.acquire(partition(2), &owner(1)).await.expect("acquired");
    commit(&store, one.fence(), 8, vec![], vec![delta(post(1), 1, 3), delta(post(17), 1, 5), delta(post(33), 1, 7)])
        .await;
    commit(&store, after(&one, 8), 9, vec![], vec![delta(post(17), 1, 8)]).await;
    commit(&store, two.fence(), 5, vec![], vec![delta(post(2), 0, 4)]).await;
    let position = |number, at| Position { partition: partition(number), offset: offset(at) };
    let from = [position(1, 4), position(2, 0), position(3, 0)];
    let found = store.firsts(&from, 10).await.expect("read");
    let first = |content, position| First { content, position };
    let firsts = [first(post(17), position(1, 5)), first(post(33), position(1, 7)), first(post(2), position(2, 4))];
    let mut value = found.value;
    value.sort_by_key(|first| (first.position.partition, first.position.offset));
    assert_eq!(value, firsts, "a content stays where it was first");
    let next: Vec<_> = found.checkpoints.iter().map(|at| (at.partition, at.next_offset)).collect();
    assert_eq!(next, [(partition(1), offset(9)), (partition(2), offset(5))]);
    let one = store.firsts(&from[..1], 1).await.expect("read").value;
    assert_eq!(one, firsts[..1]);
    assert!(store.firsts(&[], 1).await.expect("read").value.is_empty());
}

async fn what_gained_most_in_a_slot_is_found(store: Store) {
    let one = store.acquire(partition(1), &owner(1)).await.expect("acquired");
    let video = Content { content_type: "video".parse().expect("a type"), ..post(1) };
    let bucket = |content, slot, gained, lost| BucketDelta { content, slot, gained, lost };
    let batches = [
        vec![bucket(post(1), 10, 100, 0), bucket(post(17), 10, 1, 0)],
        vec![
            bucket(post(1), 16, 4, 0),
            bucket(post(17), 16, 3, 1),
            bucket(post(33), 16, 2, 8),
            bucket(video, 16, 1, 0),
        ],
        vec![bucket(post(17), 16, 5, 0), bucket(post(49), 16, 1, 0)],
    ];
    for (next, buckets) in (0..).zip(batches) {
        let writes = Writes { rows: vec![], counts: vec![], buckets };
        store.commit(batch(after(&one, next), next + 1, vec![], writes)).await.expect("committed");
    }
    let gain = |content, likes| Gain { content, likes };
    let found = store.gains(16, 2).await.expect("read");
    assert_eq!(found, [gain(post(17), 7), gain(video, 1), gain(post(33), -6)], "of each type the two that moved most");
    assert_eq!(store.gains(10, 1).await, Ok(vec![gain(post(1), 100)]));
    assert_eq!(store.gains(11, 1).await, Ok(vec![]));
}

async fn acquiring_raises_the_epoch_and_keeps_the_rest(store: Store) {
    assert_eq!(store.checkpoint(partition(3)).await.expect("read"), None, "never owned");
    let first = store.acquire(partition(3), &owner(1000)).await.expect("acquired");
    assert_eq!((first.epoch, first.next_offset, &first.mark), (1000, Offset::ZERO, &None));
    let behind = store.acquire(partition(3), &owner(7)).await.expect("acquired");
    assert_eq!(behind.epoch, 1001, "a clock that is behind still gets a higher epoch");
    commit(&store, behind.fence(), 4, vec![], vec![]).await;
    let ahead = store.acquire(partition(3), &owner(5000)).await.expect("acquired");
    assert_eq!((ahead.epoch, ahead.next_offset), (5000, offset(4)));
    assert_eq!(ahead.mark, Some(Mark { key: Some(b"key-4".to_vec()), timestamp: at(4) }));
    assert_eq!(ahead.generation, first.generation);
    assert_eq!((ahead.log_end, ahead.next_event_at, ahead.heard_at), (offset(7), Some(at(5)), at(6)));
    assert_eq!(store.checkpoint(partition(3)).await.expect("read"), Some(ahead));
}

async fn tables_of_another_log_count_or_fold_are_refused(store: Store) {
    let held = store.acquire(partition(0), &owner(1)).await.expect("acquired");
    let strangers = [
        Owner { log_identity: "log-b".into(), ..owner(9) },
        Owner { partitions: PartitionCount::new(32).expect("valid"), ..owner(9) },
        Owner { fold_version: 2, ..owner(9) },
    ];
    for stranger in strangers {
        let refused = store.acquire(partition(0), &stranger).await.expect_err("refused");
        assert!(matches!(refused, StoreError::Unusable { .. }), "{refused:?}");
    }
    assert_eq!(store.checkpoint(partition(0)).await.expect("read"), Some(held), "nothing changed");
}

async fn a_commit_is_taken_from_the_owner_at_its_offset_alone(store: Store) {
    let zombie = store.acquire(partition(1), &owner(10)).await.expect("acquired");
    let current = store.acquire(partition(1), &owner(20)).await.expect("acquired");
    let writes =
        || Writes { rows: vec![row(pair(1, 1), 1, true)], counts: vec![delta(post(1), 1, 1)], buckets: vec![] };
    let wrong = [zombie.fence(), after(&current, 1), Fence { partition: partition(2), ..current.fence() }];
    for fence in wrong {
        let refused = store.commit(batch(fence, 2, vec![pair(1, 1)], writes())).await;
        assert_eq!(refused, Err(CommitError::Fenced));
    }
    assert_eq!(store.rows(&[pair(1, 1)]).await.expect("read").value, [None], "nothing was written");
    assert_eq!(store.counts(&[post(1)]).await.expect("read").value, [None]);
    store.commit(batch(current.fence(), 2, vec![pair(1, 1)], writes())).await.expect("the owner's is taken");
    let again = store.commit(batch(current.fence(), 2, vec![pair(1, 1)], writes())).await;
    assert_eq!(again, Err(CommitError::Fenced), "a repeated commit has no second effect");
    assert_eq!(store.counts(&[post(1)]).await.expect("read").value[0].map(|count| count.count), Some(1));
}

async fn of_racing_commits_one_is_taken(store: Store) {
    let held = store.acquire(partition(1), &owner(10)).await.expect("acquired");
    let mut racers = Vec::new();
    for _ in 0..8 {
        let (store, fence) = (Arc::clone(&store), held.fence());
        let writes = Writes { counts: vec![delta(post(1), 1, 0)], ..Writes::default() };
        racers.push(tokio::spawn(async move { store.commit(batch(fence, 1, vec![], writes)).await.is_ok() }));
    }
    let mut taken = 0;
    for racer in racers {
        taken += i32::from(racer.await.expect("no panic"));
    }
    assert_eq!(taken, 1);
    assert_eq!(store.counts(&[post(1)]).await.expect("read").value[0].map(|count| count.count), Some(1));
}

async fn the_fold_sees_prior_rows_and_its_writes_are_read_back(store: Store) {
    let held = store.acquire(partition(1), &owner(10)).await.expect("acquired");
    let (first, second) = (row(pair(1, 1), 3, true), row(pair(17, 2), 4, false));
    let committed = commit(&store, held.fence(), 5, vec![first.clone(), second.clone()], vec![]).await;
    assert_eq!(committed.rows, [first.clone(), second.clone()]);
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (keep, changed) = (Arc::clone(&seen), row(pair(1, 1), 8, false));
    let written = changed.clone();
    let mut next = batch(after(&held, 5), 9, vec![pair(17, 2), pair(33, 3), pair(1, 1)], Writes::default());
    next.fold = Box::new(move |prior| {
        *keep.lock().expect("not poisoned") = prior;
        Writes { rows: vec![written.clone()], ..Writes::default() }
    });
    store.commit(next).await.expect("committed");
    assert_eq!(
        *seen.lock().expect("not poisoned"),
        [Some(second.clone()), None, Some(first)],
        "in the order asked for"
    );
    let snapshot = store.rows(&[pair(1, 1), pair(17, 2), pair(33, 3)]).await.expect("read");
    assert_eq!(snapshot.value, [Some(changed), Some(second), None]);
    let claim = snapshot.checkpoints.iter().find(|at| at.partition == partition(1)).expect("a checkpoint").claim();
    assert!(claim.has_reached(offset(8)) && !claim.has_reached(offset(9)));
}

async fn counts_are_summed(store: Store) {
    let held = store.acquire(partition(1), &owner(10)).await.expect("acquired");
    let committed = commit(&store, held.fence(), 3, vec![], vec![delta(post(1), 2, 1), delta(post(17), 0, 2)]).await;
    let count = |id, count, version| Count { content: post(id), count, version: offset(version) };
    assert_eq!(committed.counts, [count(1, 2, 1), count(17, 0, 2)]);
    let committed = commit(&store, after(&held, 3), 5, vec![], vec![delta(post(1), -1, 4)]).await;
    assert_eq!(committed.counts, [count(1, 1, 4)]);
    let mut knowing = batch(
        after(&held, 5),
        9,
        vec![],
        Writes { counts: vec![delta(post(1), 3, 7), delta(post(17), 1, 8)], ..Writes::default() },
    );
    knowing.counts = HashMap::from([(post(1), 1)]);
    let committed = store.commit(knowing).await.expect("committed");
    assert_eq!(
        committed.counts,
        [count(1, 4, 7), count(17, 1, 8)],
        "one that the owner knows, and one that it does not"
    );
    let read = store.counts(&[post(17), post(1), post(33), post(1)]).await.expect("read").value;
    assert_eq!(read, [Some(count(17, 1, 8)), Some(count(1, 4, 7)), None, Some(count(1, 4, 7))]);
}

async fn a_new_generation_needs_the_fence_and_breaks_it(store: Store) {
    let held = store.acquire(partition(1), &owner(10)).await.expect("acquired");
    let refused = store.renew_generation(after(&held, 1), Generation(7)).await;
    assert_eq!(refused, Err(CommitError::Fenced));
    let renewed = store.renew_generation(held.fence(), Generation(7)).await.expect("renewed");
    assert_eq!(renewed.generation, Generation(7));
    assert!(renewed.epoch > held.epoch);
    let late = store.commit(batch(held.fence(), 1, vec![], Writes::default())).await;
    assert_eq!(late, Err(CommitError::Fenced));
}

async fn lists_are_newest_first_and_page_without_gaps(store: Store) {
    let held = store.acquire(partition(1), &owner(10)).await.expect("acquired");
    let held_too = store.acquire(partition(9), &owner(10)).await.expect("acquired");
    // Three moments for ten users each, so that many entries share one; every fourth like was taken back. The likes
    // of one user are in two partitions, which may be on two servers.
    let (mut rows, mut rows_too) = (Vec::new(), Vec::new());
    for number in 1..=30_i64 {
        let mut by_user = row(pair(1, number), number, number % 4 != 0);
        by_user.liked_at = Some(at(number % 3));
        rows.push(by_user);
        let (home, first) = if number % 2 == 0 { (&mut rows, 1) } else { (&mut rows_too, 9) };
        let mut of_user = row(pair(first + 16 * number, 1000), number, number % 4 != 0);
        of_user.liked_at = Some(at(number % 3));
        home.push(of_user);
    }
    let active = |id: &i64| id % 4 != 0;
    let newest_first = |a: &i64, b: &i64| (b % 3).cmp(&(a % 3)).then(a.cmp(b));
    commit(&store, held.fence(), 40, rows, vec![]).await;
    commit(&store, held_too.fence(), 40, rows_too, vec![]).await;
    let mut expected: Vec<i64> = (1..=30).filter(active).collect();
    expected.sort_by(newest_first);

    let (mut walked, mut last): (Vec<i64>, Option<Liker>) = (Vec::new(), None);
    loop {
        let page = store.likers(post(1), last, 4).await.expect("read").value;
        let Some(end) = page.last() else { break };
        last = Some(*end);
        walked.extend(page.iter().map(|liker| liker.user.get()));
    }
    assert_eq!(walked, expected);

    let (mut walked, mut last): (Vec<i64>, Option<Liked>) = (Vec::new(), None);
    loop {
        let page = store.likes_of(user(1000), None, last, 4).await.expect("read").value;
        let Some(end) = page.last() else { break };
        last = Some(*end);
        walked.extend(page.iter().map(|liked| (liked.content.content_id.get() - 1) / 16));
    }
    assert_eq!(walked, expected);
    let of_type = async |kind: &str| {
        let kind = kind.parse().expect("a valid type");
        store.likes_of(user(1000), Some(kind), None, 100).await.expect("read").value.len()
    };
    assert_eq!((of_type("post").await, of_type("photo").await), (expected.len(), 0));
}

/// Grows a content through sizes at which a store may change how it lists, with likes taken back and given again.
async fn a_content_lists_its_likers_at_any_size(store: Store) {
    let held = store.acquire(partition(1), &owner(10)).await.expect("acquired");
    let mut next = 0;
    for step in 0..7_i64 {
        let users = step * 60 + 1..=step * 60 + 60;
        let mut rows: Vec<_> = users.clone().map(|id| row(pair(1, id), id % 5 + step, id % 3 != 0)).collect();
        // Every sixth user of the step before takes the like back or gives it again.
        rows.extend((1..=60).filter(|id| step > 0 && id % 6 == 0).map(|id| {
            let id = (step - 1) * 60 + id;
            row(pair(1, id), 100 + step, id % 4 != 0)
        }));
        let change = rows.iter().map(|row| i64::from(!row.is_canceled)).sum();
        let fence = after(&held, next);
        next += 1;
        commit(&store, fence, next, rows, vec![delta(post(1), change, next)]).await;

        let pairs: Vec<_> = (1..=(step + 1) * 60).map(|id| pair(1, id)).collect();
        let rows = store.rows(&pairs).await.expect("read").value;
        let active = rows.iter().flatten().filter(|row| !row.is_canceled);
        let mut expected: Vec<_> = active.filter_map(|row| Some((row.liked_at?, row.pair.user))).collect();
        expected.sort_by_key(|(liked_at, user)| (std::cmp::Reverse(*liked_at), *user));
        let (mut walked, mut last) = (Vec::new(), None);
        loop {
            let page = store.likers(post(1), last, 50).await.expect("read").value;
            let Some(end) = page.last() else { break };
            last = Some(*end);
            walked.extend(page.iter().map(|liker| (liker.liked_at, liker.user)));
        }
        assert_eq!(walked, expected, "with {} rows", pairs.len());
    }
}

async fn the_digest_is_of_sorted_rows(store: Store) {
    let held = store.acquire(partition(1), &owner(10)).await.expect("acquired");
    let held_too = store.acquire(partition(9), &owner(10)).await.expect("acquired");
    let mut rows = vec![row(pair(17, 9), 1, true), row(pair(1, 3), 2, false), row(pair(1, 2), 7, true)];
    let rows_too = vec![row(pair(9, 9), 1, true), row(pair(25, 1), 2, true)];
    commit(&store, held.fence(), 8, rows.clone(), vec![]).await;
    commit(&store, held_too.fence(), 8, rows_too.clone(), vec![]).await;
    rows.extend(rows_too);
    rows.sort_by_key(|row| row.pair);
    let mut builder = DigestBuilder::default();
    rows.iter().for_each(|row| builder.add(row));
    let snapshot = store.digest().await.expect("read");
    assert_eq!((snapshot.value.rows, snapshot.value.active), (5, 4));
    assert_eq!(snapshot.value, builder.finish());
    let partitions: Vec<_> = snapshot.checkpoints.iter().map(|checkpoint| checkpoint.partition).collect();
    assert_eq!(partitions, [partition(1), partition(9)]);
    // One row asked for from each server, in another order than theirs.
    let pairs = [pair(9, 9), pair(1, 2), pair(9, 8), pair(25, 1)];
    let found = store.rows(&pairs).await.expect("read");
    let found: Vec<_> = found.value.iter().map(|row| row.as_ref().map(|row| row.pair)).collect();
    assert_eq!(found, [Some(pairs[0]), Some(pairs[1]), None, Some(pairs[3])]);
}
