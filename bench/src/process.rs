//! Servers as processes of their own.

use std::{
    io::{BufRead, BufReader, Error, Result},
    process::{Child, Command, Stdio},
    thread,
};

/// A server that printed where it listens. Killed when dropped.
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) admin: Option<String>,
    child: Child,
}

impl Server {
    /// Starts a command whose first line holds `http://<address>`; a later line may name the metrics.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().ok_or_else(|| Error::other("no output"))?;
        let mut lines = BufReader::new(stdout).lines();
        let mut urls = std::iter::from_fn(|| lines.next()?.ok())
            .filter_map(|line| Some(line.split_once("http://")?.1.split('/').next()?.to_owned()));
        let address = urls.next().ok_or_else(|| Error::other("the server did not start"))?;
        // Of the service: demo page, API, metrics.
        let admin = if command.get_program().to_string_lossy().ends_with("likewise") { urls.nth(2) } else { None };
        drop(urls);
        thread::spawn(move || lines.for_each(drop));
        Ok(Self { address, admin, child })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in KiB, from /proc.
    pub(crate) fn rss_kib(&self) -> u64 {
        rss_kib(self.child.id())
    }
}

/// A process's resident memory in KiB, from /proc.
pub(crate) fn rss_kib(process: u32) -> u64 {
    status_kib(process, "VmRSS:")
}

/// The most resident memory that a process had so far, in KiB, from /proc.
pub(crate) fn peak_kib(process: u32) -> u64 {
    status_kib(process, "VmHWM:")
}

fn status_kib(process: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|text| text.trim().split(' ').next()?.parse().ok()).unwrap_or(0)
}

/// User and system time of a process, from /proc; its clock ticks a hundred times a second.
pub(crate) fn cpu_seconds(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(2).filter_map(|text| text.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped_already = self.child.wait();
    }
}
