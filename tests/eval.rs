//! Evaluation from outside: the distance command on folders, and the whole suite on made-up tissue.
//!
//! Made-up tissue is coloured noise whose grain differs by class, so that every answer is known:
//! which set is nearer, whether the probe must find the class, whether the RNA must be seen to
//! matter.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

use std::collections::BTreeMap;
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
use genevar::io::npz::NpzWriter;
use genevar::io::safetensors::{Store, TensorFile, Writer};
use genevar::tensor::{Purpose, Stream, Tensor};
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
    for (i, tile) in tiles.all().unwrap().iter().enumerate() {
        write_png(at.join(format!("{i:03}.png")), tile).unwrap();
    }
    at.to_str().unwrap().to_string()
}

#[test]
fn the_command_prints_a_table_and_writes_json() {
    let dir = tempfile::tempdir().unwrap();
    let real = folder(&dir.path().join("real"), &split("r", 0, 24).tiles);
    let tiles = folder(&dir.path().join("made"), &split("m", 500, 20).tiles);
    // An overview of tiles that were drawn is no tile.
    fs::write(Path::new(&tiles).join("samples.json"), "{}").unwrap();
    write_png(Path::new(&tiles).join("grid.png"), &Rgb::filled(90, 50, [1; 3])).unwrap();
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

/// The seed of tools/peers/inception_twin.py.
const TWIN: u64 = 2015;

/// The twin's weight number `i`.
fn weight(name: &str, shape: &[usize], i: usize) -> Tensor {
    let mut draw = Stream::new(TWIN, i as u64, 0, Purpose::Test).normals(shape.iter().product());
    let fan: usize = shape.iter().skip(1).product();
    let scale = (2.0 / fan as f64).sqrt() as f32;
    let number = |x: f32| match name {
        _ if name.ends_with("running_var") => 1.0 + 0.2 * x.abs(),
        _ if name.ends_with("bn.weight") => 1.0 + 0.1 * x,
        _ if name.ends_with("bias") || name.ends_with("running_mean") => 0.1 * x,
        _ => scale * x,
    };
    draw.iter_mut().for_each(|x| *x = number(*x));
    Tensor::new(draw, shape).unwrap()
}

/// The twin's tile number `i`: blocks of noise.
fn noise(i: usize, side: usize) -> Rgb {
    let stream = Stream::new(TWIN, i as u64, 1, Purpose::Test);
    let grain = side / 16;
    let byte = |at: usize| {
        let (y, x, c) = (at / 3 / side, at / 3 % side, at % 3);
        (256.0 * stream.uniform((y / grain * 17 + x / grain) * 3 + c)) as u8
    };
    Rgb::new(side, side, (0..3 * side * side).map(byte).collect()).unwrap()
}

/// What pytorch-fid's own network computed with the same weights is what ours does, whether tiles
/// grow to 299 pixels or shrink, and the command reads them from folders and archives alike.
#[test]
fn inception_features_are_those_of_pytorch_fid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let twin = TensorFile::open(root.join("tests/data/inception_twin.safetensors")).unwrap();
    let shapes: BTreeMap<String, Vec<usize>> =
        serde_json::from_str(twin.meta("shapes").unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    let mut writer = Writer::new();
    for (i, (name, shape)) in shapes.iter().enumerate() {
        // The classifier is not needed.
        if !name.starts_with("fc.") {
            writer.tensor(name, &weight(name, shape, i), Store::Full).unwrap();
        }
    }
    writer.save(&path).unwrap();
    drop(writer);
    let extractor = Extractor::inception(&path).unwrap();
    for side in [48, 310] {
        let tiles = Tiles::new("noise", vec![noise(side, side), noise(side + 1, side)]).unwrap();
        let got = extractor.extract(&tiles).unwrap();
        let want = twin.tensor(&format!("features{side}")).unwrap();
        assert_eq!([got.n(), got.d()], want.shape().dims());
        let far = got.data().iter().enumerate().map(|(i, g)| (g - want.at(i)).abs());
        let far = far.fold(0.0, f64::max);
        assert!(far < 2e-5, "{side}: {far}");
    }
    assert!(extractor.at(224).is_err(), "Inception has one side");

    let weights = path.to_str().unwrap();
    let made = Tiles::new("n", (0..3).map(|i| noise(i, 32)).collect()).unwrap();
    let real = folder(&dir.path().join("real"), &made);
    let archive = dir.path().join("a.npz");
    let npz = NpzWriter::create(&archive, 3, (32, 32)).unwrap();
    (0..3).for_each(|i| npz.put(i, &noise(i, 32)).unwrap());
    npz.finish().unwrap();
    let tiles = archive.to_str().unwrap();
    let asked = ["--real", &real, "--tiles", tiles, "--features", weights, "--whole"];
    let out = fd(&[&asked[..], &["--reps", "1"]].concat());
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(
        text.contains("FD-Inception (Inception-v3 of w.safetensors, pool3 at 299 px)"),
        "{text}"
    );
    assert!(text.contains("n = 3 against 3") && text.contains("a.npz      0.00"), "{text}");
}

#[test]
fn inception_weights_that_do_not_fit_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    let refused = |tensors: &[(&str, &[usize])]| {
        let mut writer = Writer::new();
        for (i, (name, shape)) in tensors.iter().enumerate() {
            writer.tensor(name, &weight(name, shape, i), Store::Full).unwrap();
        }
        writer.save(&path).unwrap();
        Extractor::inception(&path).err().unwrap().to_string()
    };
    let e = refused(&[("Conv2d_1a_3x3.conv.weight", &[32, 3, 3, 3])]);
    assert!(e.contains("w.safetensors") && e.contains("Conv2d_1a_3x3.bn.weight"), "{e}");
    let e = refused(&[("Conv2d_1a_3x3.conv.weight", &[32, 3, 5, 5])]);
    assert!(e.contains("Conv2d_1a_3x3.conv.weight") && e.contains("[32, 3, 3, 3]"), "{e}");
    let e = refused(&[("blocks.0.0.conv.weight", &[32, 3, 3, 3])]);
    assert!(e.contains("blocks.0.0.bn.weight"), "{e}");
}
