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
use genevar::eval::metrics::{Costs, Metrics};
use genevar::eval::suite::{DistanceSets, Inputs, Labelled, Painted, ProbeSplit, Settings, suite};
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

/// Tiles `first..first + n`, alternating cancer (coarse) and immune (fine), with classes and ids.
fn split(name: &str, first: usize, n: usize) -> (Tiles, Vec<String>, Vec<String>) {
    let class = |i: usize| if i.is_multiple_of(2) { "cancer" } else { "immune" };
    let grain = |i: usize| if i.is_multiple_of(2) { 8 } else { 2 };
    let all = first..first + n;
    (
        Tiles::new(name, all.clone().map(|i| tissue(i, grain(i))).collect()).unwrap(),
        all.clone().map(|i| class(i).to_string()).collect(),
        all.map(|i| format!("tile{i}")).collect(),
    )
}

fn extractor() -> Extractor {
    // A small side: what is tested here is not the network.
    Extractor::load(&default_weights()).unwrap().at(32).unwrap()
}

/// Everything judged on made-up tissue; painted tiles follow the RNA if `faithful`.
fn judge(faithful: bool, train_first: usize) -> genevar::Result<Metrics> {
    let (train, train_classes, train_ids) = split("train", train_first, 40);
    let (real, classes, ids) = split("val", 100, 32);
    let (other, ..) = split("other", 200, 30);
    let (followed, ..) = split("own", 300, 32);
    let scrambled = |seed| Stream::new(seed, 0, 0, Purpose::Test).permutation(32);
    // A model deaf to its RNA paints the same mixture whatever the profile.
    let own = if faithful { followed.clone() } else { followed.select(&scrambled(5)) };
    let shuffled = followed.select(&scrambled(4)).named("shuffled");
    let validation = ProbeSplit {
        name: "validation",
        real: Labelled { tiles: &real, classes: &classes, ids: &ids },
        painted: Painted {
            own: &own,
            shuffled: &shuffled,
            classes: &classes,
            profiles: &(0..32).collect::<Vec<_>>(),
        },
    };
    let inputs = Inputs {
        distances: DistanceSets {
            real: &real,
            other: &other,
            generated: &own,
            recon: &other,
            recon_fhat: None,
        },
        train: Labelled { tiles: &train, classes: &train_classes, ids: &train_ids },
        validation,
        unseen: Some(ProbeSplit { name: "unseen patient", ..validation }),
    };
    let settings = Settings {
        draws: Draws { reps: 200, ..Draws::default() },
        fd_reps: 10,
        ..Settings::default()
    };
    let costs = Costs { train_seconds: 3.5, sample_seconds_per_tile: 0.1, peak_rss_bytes: 7 };
    suite(&extractor(), &inputs, costs, &settings, &mut |_| ())
}

/// A model that follows its RNA, judged once for all tests.
fn faithful() -> &'static Metrics {
    static JUDGED: OnceLock<Metrics> = OnceLock::new();
    JUDGED.get_or_init(|| judge(true, 0).unwrap())
}

#[test]
fn the_suite_sees_what_was_put_in() {
    let m = faithful();
    assert_eq!(m.n, 30, "all sets are drawn down to the smallest");
    assert_eq!(m.fd_recon, m.fd_real_floor, "the same tiles lie equally far");
    assert!(m.fd_real_floor < m.fd_blur1 && m.fd_blur1 < m.fd_blur2, "{m:?}");
    assert!(m.fd_real_floor < m.fd_mean_colour, "{m:?}");
    assert!(m.probe_auc_real > 0.95 && m.probe_auc_own_rna > 0.95, "{m:?}");
    assert!(m.probe_auc_shuffled_rna < 0.8, "{m:?}");
    assert!(m.probe_auc_interval.low > 0.0 && m.probe_validation.rna_matters, "{m:?}");
    assert_eq!(m.probe_validation.profiles, 32);
    assert_eq!(m.probe_unseen_patient.as_ref().unwrap().split, "unseen patient");
    let blur = m.fd_intervals["fd_blur2"];
    assert!(blur.low <= m.fd_blur2 && m.fd_blur2 <= blur.high);
    assert_eq!(*m, judge(true, 0).unwrap(), "the same tiles give the same numbers");
}

#[test]
fn tiles_that_ignore_the_rna_are_not_credited() {
    let m = judge(false, 0).unwrap();
    assert!(!m.probe_validation.rna_matters, "{:?}", m.probe_validation);
    assert!(m.probe_validation.sentence().contains("do not show"));
}

#[test]
fn a_tile_on_both_sides_of_the_probe_is_refused() {
    let e = judge(true, 90).unwrap_err();
    assert!(e.to_string().contains("tile100 is in the training tiles and in validation"), "{e}");
    assert_eq!(e.exit_code(), 2);
}

#[test]
fn metrics_json_has_the_promised_keys_and_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.json");
    let m = faithful();
    m.write(&path).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    for key in [
        "fd_generated",
        "fd_recon",
        "fd_real_floor",
        "fd_blur2",
        "fd_mean_colour",
        "probe_auc_real",
        "probe_auc_own_rna",
        "probe_auc_shuffled_rna",
        "n",
        "train_seconds",
        "sample_seconds_per_tile",
        "peak_rss_bytes",
    ] {
        assert!(value[key].is_number(), "{key}: {}", value[key]);
    }
    assert_eq!(value["probe_auc_interval"].as_array().unwrap().len(), 2);
    assert_eq!(serde_json::from_str::<Metrics>(&text).unwrap().n, m.n);
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
    let real = folder(&dir.path().join("real"), &split("r", 0, 24).0);
    let tiles = folder(&dir.path().join("made"), &split("m", 500, 20).0);
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
    let real = folder(&dir.path().join("real"), &split("r", 0, 6).0);
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let odd = dir.path().join("odd");
    folder(&odd, &split("o", 0, 3).0);
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
