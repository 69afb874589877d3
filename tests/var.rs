//! State dicts of FoundationVision/VAR: what a twin in PyTorch (tools/peers/var_twin.py) computed
//! with its keys and random weights is what the imported models compute, on the CPU and on CUDA.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

#[path = "support/ops/gpu.rs"]
mod gpu;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use genevar::autograd::Pass;
use genevar::config::SampleConfig;
use genevar::device::Device;
use genevar::io::safetensors::{Store, TensorFile, Writer};
use genevar::models::masked_ar::{Cond, Inputs};
use genevar::ops::Precision;
use genevar::sample::{Graphs, Sampler, Subject};
use genevar::tensor::{DType, Purpose, Stream, Tensor};
use genevar::train::system::System;
use genevar::train::var::{Hints, export, import};

/// The twin's seed.
const SEED: u64 = 4242;
/// How far images and logits may be from the twin's.
const NEAR: f64 = 1e-3;

fn twin() -> TensorFile {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    TensorFile::open(root.join("tests/data/var_twin.safetensors")).unwrap()
}

fn hints() -> Hints {
    Hints { patch_nums: Some(vec![1, 2, 3, 4]), cosine: false }
}

/// The twin's weight number `i`.
fn weight(name: &str, shape: &[usize], i: usize) -> Tensor {
    let n = shape.iter().product();
    let fan: usize = shape.iter().skip(1).product();
    let mut draw = Stream::new(SEED, i as u64, 0, Purpose::Test).normals(n);
    let scale = 1.0 / (fan as f64).sqrt();
    let number = |x: f32| match name {
        _ if name.contains("norm") && name.ends_with("weight") => 1.0 + 0.1 * x,
        _ if name.contains("embedding") => x,
        _ if name.ends_with("bias") || name.ends_with("scale_mul_1H11") => 0.1 * x,
        _ => scale as f32 * x,
    };
    draw.iter_mut().for_each(|x| *x = number(*x));
    Tensor::new(draw, shape).unwrap()
}

/// The twin's state dicts as files.
fn files(dir: &Path) -> [PathBuf; 2] {
    let shapes: BTreeMap<String, BTreeMap<String, Vec<usize>>> =
        serde_json::from_str(twin().meta("shapes").unwrap()).unwrap();
    ["vae", "var"].map(|model| {
        let mut writer = Writer::new();
        for (i, (name, shape)) in shapes[model].iter().enumerate() {
            writer.tensor(name, &weight(name, shape, i), Store::Full).unwrap();
        }
        let path = dir.join(format!("{model}.safetensors"));
        writer.save(&path).unwrap();
        path
    })
}

fn assert_near(what: &str, got: &Tensor, wanted: &Tensor) {
    assert_eq!(got.shape(), wanted.shape(), "{what}");
    let far = (0..got.len()).map(|i| (got.at(i) - wanted.at(i)).abs()).fold(0.0, f64::max);
    assert!(far < NEAR, "{what}: {far}");
}

/// Everything that the twin wrote down, by the imported models on a device.
fn as_the_twin(system: &System) {
    let twin = twin();
    let there = |name: &str| system.device.put(&twin.tensor(name).unwrap()).unwrap();
    let quantiser = system.msvq.quantiser();
    let tokens = system.msvq.tokenize(&there("image")).unwrap().here().unwrap();
    let wanted = twin.tensor("tokens").unwrap();
    assert_eq!(tokens.i32s().unwrap(), wanted.i32s().unwrap(), "tokens");
    let pixels = system.msvq.paint(&there("tokens")).unwrap().here().unwrap();
    assert_near("pixels", &pixels, &twin.tensor("pixels").unwrap());

    let p = Pass::eval();
    let pyramid = quantiser.pyramid(&there("tokens")).unwrap();
    let none = there("image");
    let read = system.refiner(0).teacher(&pyramid, &none, &[0, 1]).unwrap();
    let label = there("label");
    let cond = system.ar.condition(&p, &Cond::Class(&label), &[false; 2]).unwrap();
    let inputs = Inputs { features: &read.features, r: &read.r, keep: None };
    let logits = system.ar.forward(&p, &cond, &inputs, None).unwrap().into_value();
    assert_near("logits", &logits.here().unwrap(), &twin.tensor("logits").unwrap());

    let settings = SampleConfig { cfg: 1.5, top_k: 1, ..SampleConfig::default() };
    let (refiner, device) = (system.refiner(7), system.device.clone());
    let graphs = Graphs::default();
    let sampler = Sampler { refiner, ar: &system.ar, settings: &settings, device, graphs };
    let subject = |i: usize| Subject {
        id: i as u64,
        z: Tensor::zeros(DType::F32, [1, system.config.beta_vae.latent]),
        other: Some(twin.tensor("label").unwrap().rows(i, 1).unwrap()),
    };
    let tiles = sampler.batch(&[subject(0), subject(1)]).unwrap();
    let greedy = twin.tensor("greedy").unwrap();
    for (i, tile) in tiles.iter().enumerate() {
        let wanted = greedy.rows(i, 1).unwrap();
        assert_eq!(tile.tokens.i32s().unwrap(), wanted.i32s().unwrap(), "greedy tile {i}");
    }
}

#[test]
fn imported_models_compute_what_their_twin_does() {
    let dir = tempfile::tempdir().unwrap();
    let [vae, var] = files(dir.path());
    let bundle = import(&vae, Some(&var), &hints()).unwrap();
    assert_eq!((bundle.config.msvq.image, bundle.config.ar.classes), (16, 5));
    let mut system = System::of(&bundle).unwrap();
    as_the_twin(&system);
    if gpu::has_kernels() {
        system.place(&Device::Cuda(gpu::queue().unwrap()), Precision::F32).unwrap();
        as_the_twin(&system);
    }
}

#[test]
fn an_export_has_the_keys_and_values_of_the_import() {
    let dir = tempfile::tempdir().unwrap();
    let [vae, var] = files(dir.path());
    let bundle = import(&vae, Some(&var), &hints()).unwrap();
    let back = export(&bundle, &dir.path().join("back")).unwrap();
    for (before, after) in [vae, var].iter().zip(&back) {
        let [before, after] = [before, after].map(|f| TensorFile::open(f).unwrap());
        for name in before.names() {
            let (a, b) = (before.tensor(name).unwrap(), after.tensor(name).unwrap());
            assert_eq!((a.shape(), a.f32s().unwrap()), (b.shape(), b.f32s().unwrap()), "{name}");
        }
    }
    // With the buffers that a strict loader wants, the files are read again as they were.
    let again = import(&back[0], Some(&back[1]), &hints()).unwrap();
    for (name, stage) in &bundle.stages {
        for (tensor, value) in &stage.tensors {
            let twice = &again.stages[name].tensors[tensor];
            assert_eq!(value.f32s().unwrap(), twice.f32s().unwrap(), "{name}/{tensor}");
        }
    }
}

#[test]
fn files_of_other_models_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let [vae, var] = files(dir.path());
    let told = |vae: &Path, var: &Path, hints: &Hints| {
        let e = import(vae, Some(var), hints).unwrap_err();
        assert_eq!(e.exit_code(), 2, "{e}");
        e.to_string()
    };
    let wrong = told(&vae, &vae, &hints());
    assert!(wrong.contains("no tensor pos_1LC") && wrong.contains("vae"), "{wrong}");
    let wrong = told(&var, &var, &hints());
    assert!(wrong.contains("encoder.conv_in.weight"), "{wrong}");
    let unknown = told(&vae, &var, &Hints::default());
    assert!(unknown.contains("30 positions") && unknown.contains("--patch-nums"), "{unknown}");
    let longer = Hints { patch_nums: Some(vec![1, 2, 3, 8]), cosine: false };
    assert!(told(&vae, &var, &longer).contains("pos_1LC"));
    let shared = dir.path().join("shared.safetensors");
    let mut writer = Writer::new();
    for name in ["shared_ada_lin.1.weight", "pos_1LC"] {
        writer.tensor(name, &Tensor::zeros(DType::F32, [1, 30, 4]), Store::Full).unwrap();
    }
    writer.save(&shared).unwrap();
    assert!(told(&vae, &shared, &hints()).contains("one adaLN generator"));
}

fn genevar(dir: &Path, line: &str) -> Output {
    let args: Vec<&str> = line.split(' ').collect();
    Command::new(env!("CARGO_BIN_EXE_genevar")).args(args).current_dir(dir).output().unwrap()
}

#[test]
fn the_command_line_imports_samples_by_class_and_exports() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    files(dir);
    let does = |line: &str| {
        let output = genevar(dir, line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let refused = |line: &str, part: &str| {
        let output = genevar(dir, line);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{line}: {told}");
        assert!(told.contains(part), "{line}: {told}");
    };
    let from = "import var --tokenizer vae.safetensors --patch-nums 1,2,3,4";
    let toml = does(&format!("{from} --transformer var.safetensors --out b.safetensors --run run"));
    assert!(toml.contains("ch_mult = [1, 2, 2]") && toml.contains("vocab = 64"), "{toml}");
    assert!(dir.join("run/msvq/LATEST").is_file());
    does("sample --checkpoint b.safetensors --class 3,4 --n 2 --out tiles");
    assert!(dir.join("tiles/class4_1.png").is_file());
    does("sample --checkpoint b.safetensors --class 4 --n 2 --out again");
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    assert_eq!(read("tiles/class4_1.png"), read("again/class4_1.png"));
    refused("sample --checkpoint b.safetensors --class 5 --out x", "0 to 4");
    std::fs::write(dir.join("rna.tsv"), "sample\tA\ns\t1\n").unwrap();
    refused("sample --checkpoint b.safetensors --rna rna.tsv --out x", "--class");
    does("export --run b.safetensors --var --out back");
    assert!(
        dir.join("back/vae.safetensors").is_file() && dir.join("back/var.safetensors").is_file()
    );
    // Without a transformer there is nothing to draw with.
    does(&format!("{from} --out t.safetensors"));
    refused("sample --checkpoint t.safetensors --class 1 --out x", "no trained ar");
}
