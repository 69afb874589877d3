//! Runs that are killed, interrupted, refused room, started twice or damaged: nothing that was
//! finished is lost, and what goes on ends with the bits of a run that was left alone.
//!
//! `GENEVAR_KILLS=300 cargo test --test survive -- killed` kills more often.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

#[path = "support/small_run.rs"]
mod small_run;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use genevar::tensor::{Purpose, Stream};
use small_run::{CONFIG, STAGES, command, fails, genevar, prepared, succeeds};

/// The stage that is trained here, the fastest.
const STAGE: &str = STAGES[0];

fn train(out: &str) -> String {
    format!("train beta-vae --config c.toml --out {out} --resume")
}

fn state(run: &Path) -> PathBuf {
    let dir = run.join(STAGE);
    let latest = std::fs::read_to_string(dir.join("LATEST")).unwrap();
    dir.join(latest.trim()).join("state.safetensors")
}

/// That both runs ended with the same weights and logs.
fn same(a: &Path, b: &Path) {
    let read = |path: PathBuf| std::fs::read(path).unwrap();
    assert!(read(state(a)) == read(state(b)), "the weights differ");
    let log = |run: &Path| read(run.join(STAGE).join("log.jsonl"));
    assert!(log(a) == log(b), "the logs differ");
}

fn quietly(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits until something is so, and fails after a time that no machine needs.
fn until(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < Duration::from_secs(120), "{what} did not happen");
        std::thread::yield_now();
    }
}

/// Runs to the end unless it takes longer than `limit`: then it is killed. Whether it was.
fn killed_after(command: Command, limit: Duration) -> bool {
    let mut child = quietly(command);
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            return false;
        }
        if start.elapsed() >= limit {
            child.kill().unwrap();
            child.wait().unwrap();
            return true;
        }
        std::thread::yield_now();
    }
}

#[test]
fn runs_killed_at_random_moments_end_as_if_they_had_not_been() {
    let wanted = std::env::var("GENEVAR_KILLS").map_or(20, |n| n.parse().unwrap());
    let dir = prepared();
    let whole = dir.path().join("whole");
    let start = Instant::now();
    succeeds(dir.path(), &train("whole"));
    let takes = start.elapsed();
    let draw = Stream::new(3, 0, 0, Purpose::Test);
    let (mut kills, mut runs, mut draws) = (0, 0, 0);
    while kills < wanted {
        let name = format!("broken{runs}");
        runs += 1;
        // Each attempt gets a little longer, so that every run ends.
        let mut attempts = 0;
        loop {
            // A moment of its own for each attempt, also after a run that ended before its kill.
            let share = draw.uniform(draws) * (1.0 + 0.2 * attempts as f32);
            draws += 1;
            if !killed_after(command(dir.path(), &train(&name)), takes.mul_f32(share)) {
                break;
            }
            (kills, attempts) = (kills + 1, attempts + 1);
        }
        same(&whole, &dir.path().join(&name));
    }
    eprintln!("{kills} kills in {runs} runs");
}

/// Sends a signal to a process.
fn signal(child: &Child, name: &str) {
    let sent = Command::new("sh").arg("-c").arg(format!("kill -{name} {}", child.id())).status();
    assert!(sent.unwrap().success());
}

#[test]
fn interrupt_and_terminate_finish_the_step_save_and_exit_with_130() {
    let dir = prepared();
    succeeds(dir.path(), &train("whole"));
    for name in ["INT", "TERM"] {
        let mut child = quietly(command(dir.path(), &train(name)));
        let log = dir.path().join(name).join(STAGE).join("log.jsonl");
        until("the first step", || std::fs::metadata(&log).is_ok_and(|m| m.len() > 0));
        signal(&child, name);
        let status = child.wait().unwrap();
        // It may have been over already.
        assert!(matches!(status.code(), Some(130 | 0)), "{name}: {status}");
        succeeds(dir.path(), &train(name));
        same(&dir.path().join("whole"), &dir.path().join(name));
    }
}

#[test]
fn a_folder_takes_one_run_at_a_time() {
    let dir = prepared();
    let long = CONFIG.replace("steps = 12", "steps = 1000000");
    std::fs::write(dir.path().join("long.toml"), long).unwrap();
    let line = "train beta-vae --config long.toml --out run --resume";
    let mut first = quietly(command(dir.path(), line));
    let log = dir.path().join("run").join(STAGE).join("log.jsonl");
    until("the first step", || std::fs::metadata(&log).is_ok_and(|m| m.len() > 0));
    fails(dir.path(), line, 2, &["another process trains", "--out"]);
    first.kill().unwrap();
    first.wait().unwrap();
    // Nothing has to be cleared away after a kill.
    let mut again = quietly(command(dir.path(), line));
    let before = std::fs::metadata(&log).unwrap().len();
    until("a further step", || std::fs::metadata(&log).unwrap().len() > before + 200);
    again.kill().unwrap();
    again.wait().unwrap();
}

#[test]
fn without_room_or_leave_to_write_nothing_finished_is_lost() {
    let dir = prepared();
    succeeds(dir.path(), &train("whole"));
    // A run with a checkpoint that is not the last one.
    let broken = dir.path().join("broken");
    let latest = broken.join(STAGE).join("LATEST");
    let stopped = || {
        let _ = std::fs::remove_dir_all(&broken);
        let mut child = quietly(command(dir.path(), &train("broken")));
        until("a checkpoint", || latest.is_file());
        let _ = child.kill();
        !child.wait().unwrap().success()
    };
    assert!((0..50).any(|_| stopped()), "every run was over before it was killed");
    // Files may have no more than a few blocks now: what a full disk answers.
    let program = env!("CARGO_BIN_EXE_genevar");
    let script = format!("trap '' XFSZ; ulimit -f 4; exec {program} {}", train("broken"));
    let output = Command::new("sh").arg("-c").arg(&script).current_dir(dir.path()).output();
    let output = output.unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("no room to write"), "{told}");
    succeeds(dir.path(), "checkpoint verify broken");
    succeeds(dir.path(), &train("broken"));
    same(&dir.path().join("whole"), &broken);
    // Where no folder can be made.
    std::fs::write(dir.path().join("file"), "").unwrap();
    let output = genevar(dir.path(), &train("file/run"));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("file/run"), "{told}");
}

#[test]
fn a_changed_byte_is_found_and_named() {
    let dir = prepared();
    succeeds(dir.path(), &train("run"));
    let shown = genevar(dir.path(), "checkpoint show run --json").stdout;
    let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
    let newest = shown.as_array().unwrap().iter().find(|s| s["newest"] == true).unwrap();
    assert_eq!((newest["stage"].as_str(), newest["step"].as_u64()), (Some(STAGE), Some(12)));
    assert!(newest["resumable"] == true && newest["numbers"]["loss"].is_f64(), "{newest}");
    let told = String::from_utf8(genevar(dir.path(), "checkpoint show run").stdout).unwrap();
    assert!(told.contains("beta_vae after 12 steps") && told.contains("preset t0"), "{told}");
    let path = state(&dir.path().join("run"));
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() - 9;
    bytes[at] ^= 4;
    std::fs::write(&path, bytes).unwrap();
    for line in ["checkpoint verify run", "export --run run --out x.safetensors"] {
        fails(dir.path(), line, 2, &["state.safetensors", "corrupt: tensor"]);
    }
}

/// A run does not ask what time it is: not of the files it left, whose times a clock that jumped
/// may have set to anything.
#[test]
fn a_clock_that_jumps_changes_nothing() {
    let dir = prepared();
    succeeds(dir.path(), &train("whole"));
    let broken = dir.path().join("broken");
    let latest = broken.join(STAGE).join("LATEST");
    let stopped = || {
        let _ = std::fs::remove_dir_all(&broken);
        let mut child = quietly(command(dir.path(), &train("broken")));
        until("a checkpoint", || latest.is_file());
        let _ = child.kill();
        !child.wait().unwrap().success()
    };
    assert!((0..50).any(|_| stopped()), "every run was over before it was killed");
    // The newest from before the first computers, what is older from the far future.
    let newest = std::fs::read_to_string(&latest).unwrap();
    let far = std::time::UNIX_EPOCH + Duration::from_secs(1 << 33);
    let mut folders = vec![broken.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let is_newest = path.components().any(|part| part.as_os_str() == newest.trim());
            let time = if is_newest { std::time::UNIX_EPOCH } else { far };
            std::fs::File::open(&path).unwrap().set_modified(time).unwrap();
            folders.extend(path.is_dir().then_some(path));
        }
    }
    succeeds(dir.path(), &train("broken"));
    same(&dir.path().join("whole"), &broken);
}
