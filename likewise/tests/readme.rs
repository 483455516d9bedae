//! The README's five minutes with curl, run as they are written.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, process::Command};

use likewise_testkit::Settings;

const README: &str = include_str!("../../README.md");

/// The `sh` blocks between the heading and the next one, with the output that the text shows under each.
fn blocks() -> Vec<(String, Vec<String>)> {
    let section = README.split_once("## Five minutes with curl").unwrap().1;
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let mut blocks: Vec<(String, Vec<String>)> = Vec::new();
    for block in section.split("```").skip(1).step_by(2) {
        let (kind, text) = block.split_once('\n').unwrap();
        match kind {
            "sh" => blocks.push((text.to_owned(), Vec::new())),
            "json" => blocks.last_mut().unwrap().1.extend(text.lines().map(str::to_owned)),
            other => panic!("a block of {other}"),
        }
    }
    blocks
}

/// Positions, ids made by the server and times differ from run to run.
fn without_chance(text: &str) -> String {
    let mut kept = text.to_owned();
    for name in ["requestId", "position", "likedAt", "nextCursor"] {
        let marker = format!("\"{name}\":\"");
        let mut from = 0;
        while let Some(start) = kept[from..].find(&marker).map(|at| from + at + marker.len()) {
            let end = start + kept[start..].find('"').unwrap();
            kept.replace_range(start..end, "…");
            from = start;
        }
    }
    kept
}

#[test]
fn five_minutes_with_curl() {
    let dir = tempfile::tempdir().unwrap();
    let service = Settings::new(env!("CARGO_BIN_EXE_likewise"), dir.path()).start();
    service.wait_ready();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_likewise"), dir.path().join("likewise")).unwrap();
    let blocks = blocks();
    assert!(blocks.len() >= 6, "the README has its examples");
    for (commands, expected) in blocks {
        let script =
            commands.replace("127.0.0.1:8080", &service.address).replace("likewise-data", dir.path().to_str().unwrap());
        let script = script.replace("cargo run --release -- ", "likewise --data-dir . ");
        let output =
            Command::new("bash").args(["-euc", &script]).env("PATH", &path).current_dir(dir.path()).output().unwrap();
        let shown = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}\n{shown}{errors}");
        for line in expected {
            assert!(
                without_chance(&shown).contains(&without_chance(&line)),
                "{script}\nshould show\n{line}\nshows\n{shown}"
            );
        }
    }
    assert!(!fs::read_to_string(dir.path().join("likes.jsonl")).unwrap().is_empty());
}
