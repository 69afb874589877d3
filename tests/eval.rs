//! Evaluation from outside: the distance command on folders, and the whole suite on made-up tissue.
//!
//! Made-up tissue is coloured noise whose grain differs by class, so that every answer is known:
//! which set is nearer, whether the probe must find the class, whether the RNA must be seen to
//! matter.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;

use genevar::eval::bootstrap::Draws;
use genevar::eval::features::{Extractor, default_weights};
use genevar::eval::metrics::{Costs, Metrics, Verdict};
use genevar::eval::protocol::Windows;
use genevar::eval::suite::{HeldOut, Judge, Settings};
use genevar::eval::tiles::Tiles;
use genevar::io::images::{Rgb, write_png};
use genevar::tensor::{Purpose, Stream};
use serde_json::Value;

const SIDE: usize = 32;

/// A tile of blocks `grain` pixels wide.
fn tissue(number: usize, grain: usize) -> Rgb {
    let noise = Stream::new(1, number as u64, grain as u16, Purpose::Test);
    let colour = [190.0, 120.0, 170.0];
    let at = |i: usize| {
        let (y, x) = (i / SIDE / grain, i % SIDE / grain);
        let dark = 90.0 * noise.uniform(y * SIDE + x);
        colour.map(|c| (c - dark) as u8)
    };
    Rgb::new(SIDE, SIDE, (0..SIDE * SIDE).flat_map(at).collect()).unwrap()
}

/// Tiles `first..first + n`, alternating cancer (coarse) and immune (fine), each of its own
/// profile.
fn split(name: &str, first: usize, n: usize) -> Windows {
    let class = |i: usize| if i.is_multiple_of(2) { "cancer" } else { "immune" };
    let grain = |i: usize| if i.is_multiple_of(2) { 8 } else { 2 };
    let all = first..first + n;
    Windows {
        tiles: Tiles::new(name, all.clone().map(|i| tissue(i, grain(i))).collect()).unwrap(),
        images: all.clone().collect(),
        ids: all.clone().map(|i| format!("tile{i}")).collect(),
        classes: all.map(|i| class(i).to_string()).collect(),
    }
}

fn extractor() -> Extractor {
    // A small side: what is tested here is not the network.
    Extractor::load(&default_weights()).unwrap().at(64).unwrap()
}

/// Everything judged on made-up tissue; painted tiles follow the RNA if `faithful`.
fn judge(faithful: bool, train_first: usize) -> genevar::Result<Verdict> {
    let (train, real) = (split("train", train_first, 40), split("val", 100, 32));
    let (floor, followed) = (split("other", 200, 32).tiles, split("own", 300, 32).tiles);
    let scrambled = |seed| Stream::new(seed, 0, 0, Purpose::Test).permutation(32);
    // A model deaf to its RNA paints the same mixture whatever the profile.
    let own = if faithful { followed.clone() } else { followed.select(&scrambled(5)) };
    let shuffled = followed.select(&scrambled(4)).named("shuffled");
    let settings = Settings {
        draws: Draws { reps: 200, ..Draws::default() },
        fd_reps: 10,
        ..Settings::default()
    };
    let extractor = extractor();
    let look = |tiles: &Tiles| extractor.extract(tiles);
    let judge = Judge::new(&look, extractor.name(), &train, settings)?;
    judge.verdict(&HeldOut {
        name: "validation",
        real: &real,
        floor: &floor,
        own: &own,
        shuffled: &shuffled,
        recon: &floor,
        recon_fhat: None,
    })
}

/// A model that follows its RNA, judged once for all tests.
fn faithful() -> &'static Verdict {
    static JUDGED: OnceLock<Verdict> = OnceLock::new();
    JUDGED.get_or_init(|| judge(true, 0).unwrap())
}

#[test]
fn the_judge_sees_what_was_put_in() {
    let v = faithful();
    let fd = |key: &str| v.table.row(key).unwrap().fd;
    assert_eq!(v.table.n, 32);
    assert_eq!(fd("fd_recon"), fd("fd_real_floor"), "the same tiles lie equally far");
    assert!(fd("fd_real_floor") < fd("fd_blur1") && fd("fd_blur1") < fd("fd_blur2"), "{v:?}");
    assert!(fd("fd_real_floor") < fd("fd_mean_colour"), "{v:?}");
    assert!((fd("fd_generated") - fd("fd_shuffled")).abs() < 1e-6, "the order cannot be seen");
    let blur = v.table.row("fd_blur2").unwrap();
    assert!(blur.interval.low <= blur.fd && blur.fd <= blur.interval.high);
    let p = v.probe.as_ref().unwrap();
    assert!(p.auc_real.auc > 0.95 && p.auc_own_rna.auc > 0.95, "{p:?}");
    assert!(p.auc_shuffled_rna.auc < 0.8, "{p:?}");
    assert!(p.difference_interval.low > 0.0 && p.rna_matters, "{p:?}");
    assert_eq!((p.profiles, p.positives, p.negatives, p.trained_on), (32, 16, 16, 40));
    assert_eq!(*v, judge(true, 0).unwrap(), "the same tiles give the same numbers");
}

#[test]
fn tiles_that_ignore_the_rna_are_not_credited() {
    let p = judge(false, 0).unwrap().probe.unwrap();
    assert!(!p.rna_matters, "{p:?}");
    assert!(p.sentence().contains("do not show"));
}

#[test]
fn a_tile_on_both_sides_of_the_probe_is_refused() {
    let e = judge(true, 90).unwrap_err();
    assert!(e.to_string().contains("validation: tile tile100 is also one of the training"), "{e}");
    assert_eq!(e.exit_code(), 2);
}

#[test]
fn metrics_json_has_the_promised_keys() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.json");
    let unseen = Verdict { name: "unseen patient".into(), ..faithful().clone() };
    let costs = Costs {
        train_seconds: 3.5,
        sample_seconds_per_tile: 0.1,
        peak_rss_bytes: Some(7),
        seconds: 9.0,
    };
    let metrics = Metrics::new(&[faithful().clone(), unseen], Some(costs)).unwrap();
    metrics.write(&path).unwrap();
    let value: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    for key in [
        "fd_generated",
        "fd_generated_unseen",
        "fd_recon",
        "fd_real_floor",
        "fd_blur2",
        "fd_mean_colour",
        "probe_auc_real",
        "probe_auc_own_rna",
        "probe_auc_own_rna_unseen",
        "probe_auc_shuffled_rna",
        "n",
        "train_seconds",
        "sample_seconds_per_tile",
        "peak_rss_bytes",
    ] {
        assert!(value[key].is_number(), "{key}: {}", value[key]);
    }
    assert_eq!(value["probe_auc_interval"].as_array().unwrap().len(), 2);
    assert_eq!(value["fd_intervals"]["fd_blur2"].as_array().unwrap().len(), 2);
    assert!(Metrics::new(&[], None).is_err());
}

fn fd(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_genevar")).args(["eval", "fd"]).args(args).output().unwrap()
}

fn folder(at: &Path, tiles: &Tiles) -> String {
    fs::create_dir_all(at).unwrap();
    for (i, tile) in tiles.images().iter().enumerate() {
        write_png(at.join(format!("{i:03}.png")), tile).unwrap();
    }
    at.to_str().unwrap().to_string()
}

#[test]
fn the_command_prints_a_table_and_writes_json() {
    let dir = tempfile::tempdir().unwrap();
    let real = folder(&dir.path().join("real"), &split("r", 0, 24).tiles);
    let tiles = folder(&dir.path().join("made"), &split("m", 500, 20).tiles);
    let json = dir.path().join("fd.json");
    let path = json.to_str().unwrap();
    let out =
        fd(&["--real", &real, "--tiles", &tiles, "--input", "32", "--reps", "5", "--json", path]);
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    for word in
        ["FD-EffNet", "n = 12 against 12", &real, &tiles, "other half", "blurred by 2", "mean"]
    {
        assert!(text.contains(word), "{word} is not in\n{text}");
    }
    let value: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!((value["n"].as_u64(), value["rows"].as_array().unwrap().len()), (Some(12), 6));
    assert_eq!(value["rows"][0]["key"], "fd");
}

#[test]
fn bad_sets_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let real = folder(&dir.path().join("real"), &split("r", 0, 6).tiles);
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let odd = dir.path().join("odd");
    folder(&odd, &split("o", 0, 3).tiles);
    write_png(odd.join("zzz.png"), &Rgb::filled(8, 8, [1; 3])).unwrap();
    let small = folder(
        &dir.path().join("small"),
        &Tiles::new("s", vec![Rgb::filled(8, 8, [1; 3]); 4]).unwrap(),
    );
    let text = |p: &Path| p.to_str().unwrap().to_string();
    let refused = [
        (text(&dir.path().join("none")), "none"),
        (text(&empty), "holds no PNG"),
        (text(&odd), "zzz.png"),
        (small, "8x8"),
        (format!("{real}#val"), "real"),
    ];
    for (tiles, word) in refused {
        let out = fd(&["--real", &real, "--tiles", &tiles]);
        let message = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(2), "{tiles}: {message}");
        assert!(message.contains(word), "{tiles}: {message}");
        assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    }
    let out = fd(&["--real", &real, "--tiles", &real, "--n", "4"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("give 2 to 3"));
}
