//! The simulated stores keep the contract of real ones, a seed is one run, and the simulation finds planted bugs.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use likewise_simulation::{SimLog, SimRecords, run};
use likewise_storage::{EventLog, RecordStore, conformance, planted::Bug};

#[tokio::test]
async fn the_simulated_log_conforms() {
    let made = AtomicUsize::new(0);
    conformance::event_log(async || {
        let identity = format!("log-{}", made.fetch_add(1, Ordering::Relaxed));
        Arc::new(SimLog::new(&identity)) as Arc<dyn EventLog>
    })
    .await;
}

#[tokio::test]
async fn the_simulated_records_conform() {
    conformance::record_store(async || Arc::new(SimRecords::default()) as Arc<dyn RecordStore>).await;
}

#[test]
fn a_seed_is_one_run() {
    for seed in 0..5 {
        let (first, second) = (run(seed, None), run(seed, None));
        assert_eq!(format!("{first:?}"), format!("{second:?}"));
        let report = first.expect("no violation");
        assert!(
            report.faults > 50 && report.acknowledged > 50 && report.reads > 50,
            "a run that shows something: {report:?}"
        );
    }
}

#[test]
fn every_planted_bug_is_found() {
    for bug in Bug::ALL {
        let found = (0..1000).find(|seed| run(*seed, Some(bug)).is_err());
        assert!(found.is_some(), "{bug:?} is not found in 1000 seeds");
        println!("{bug:?}: found by seed {}", found.unwrap_or_default());
    }
}
