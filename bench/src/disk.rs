//! What the disk does.

use std::{
    fs,
    io::{Result, Write},
    path::Path,
    time::{Duration, Instant},
};

/// fdatasync calls a second, each after 4 KiB, measured for about two seconds.
pub(crate) fn fdatasync_rate(dir: &Path) -> Result<f64> {
    let mut file = fs::File::create(dir.join("fdatasync"))?;
    let (started, mut calls) = (Instant::now(), 0_u32);
    while started.elapsed() < Duration::from_secs(2) {
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        calls += 1;
    }
    Ok(f64::from(calls) / started.elapsed().as_secs_f64())
}

/// Bytes of the files in a directory: of the data, and of the write-ahead logs, which are used again and again.
pub(crate) fn bytes(dir: &Path) -> Result<(u64, u64)> {
    let (mut data, mut logs) = (0, 0);
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let is_log = entry.file_name().to_string_lossy().ends_with("-wal");
        *(if is_log { &mut logs } else { &mut data }) += entry.metadata()?.len();
    }
    Ok((data, logs))
}
