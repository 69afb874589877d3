//! A small system that trains in seconds: its data set as a lab would ship it, its configuration,
//! and the command line on it.

use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Output};

use genevar::io::images::{Rgb, write_png};
use genevar::tensor::{Purpose, Stream};

/// Side of a tile in pixels.
const SIDE: usize = 24;
const GENES: usize = 12;
/// The stages in order.
pub const STAGES: [&str; 4] = ["beta_vae", "msvq", "meanflow", "ar"];

/// The configuration.
pub const CONFIG: &str = r#"
tier = "t0"
seed = 5

[data]
pack = "pack.safetensors"
counts_per = 10000.0

[beta_vae]
genes = 12
hidden = [16, 8]
latent = 4

[msvq]
image = 16
ch = 8
ch_mult = [1, 2, 2]
res_blocks_enc = 1
res_blocks_dec = 1
d = 8
vocab = 32
patch_nums = [1, 2, 4]
scale_dropout_start = 2
kmeans_vectors = 64
warmup_steps = 3
restart_every = 4

[msvq.loss]
ms_ssim_scales = 1
gan = 0.4
gan_start = 0.5
gan_layers = 1
gan_ch = 8

[meanflow]
width = 32
blocks = 1
head_width = 16
time_dims = 16

[mask]
k_m = 3

[ar]
depth = 2
width = 32
heads = 2
add_rk = true
posterior_z = true

[train.beta_vae]
steps = 12
checkpoint_every = 3
[train.msvq]
steps = 14
batch = 4
checkpoint_every = 3
[train.meanflow]
steps = 10
batch = 4
checkpoint_every = 3
[train.ar]
steps = 10
batch = 4
checkpoint_every = 3
ema = 0.9
"#;

/// Twenty tiles of two kinds of tissue, with counts that tell the kinds apart.
fn write_data(dir: &Path) {
    std::fs::create_dir(dir.join("tiles")).unwrap();
    let mut table = String::from("tile\tsplit\tsection\tpatient\tclass\n");
    let mut rna = String::from("sample");
    (0..GENES).for_each(|g| write!(rna, "\tG{g}").unwrap());
    rna.push('\n');
    for i in 0..20 {
        let kind = i % 2;
        let draws = Stream::new(1, i as u64, 0, Purpose::Test);
        let pixel = |p: usize| {
            let stripe = if (p / 3 % SIDE / (2 + 3 * kind)).is_multiple_of(2) { 60 } else { 0 };
            70 + stripe + 40 * (p % 3) as u8 + draws.below(p, 20) as u8
        };
        let image = Rgb::new(SIDE, SIDE, (0..3 * SIDE * SIDE).map(pixel).collect()).unwrap();
        write_png(dir.join(format!("tiles/t{i}.png")), &image).unwrap();
        let split = ["train", "train", "train", "val"][i / 5];
        let class = ["cancer", "immune"][kind];
        writeln!(table, "t{i}.png\t{split}\tS{}\tP{split}\t{class}", i / 5).unwrap();
        write!(rna, "t{i}").unwrap();
        for g in 0..GENES {
            write!(rna, "\t{}", draws.below(4000 + g, 9) + 20 * usize::from(g % 2 == kind))
                .unwrap();
        }
        rna.push('\n');
    }
    std::fs::write(dir.join("tiles.tsv"), table).unwrap();
    std::fs::write(dir.join("rna.tsv"), rna).unwrap();
    std::fs::write(dir.join("c.toml"), CONFIG).unwrap();
}

/// The command, to be run in `dir`.
pub fn command(dir: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_genevar"));
    command.args(line.split(' ')).current_dir(dir);
    command
}

/// Runs it.
pub fn genevar(dir: &Path, line: &str) -> Output {
    command(dir, line).output().unwrap()
}

/// Runs it; it has to succeed.
pub fn succeeds(dir: &Path, line: &str) {
    let output = genevar(dir, line);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {told}");
}

/// Runs it; it has to fail with this code and say all of `parts`.
pub fn fails(dir: &Path, line: &str, code: i32, parts: &[&str]) {
    let output = genevar(dir, line);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{line}: {told}");
    for part in parts {
        assert!(told.contains(part), "{line}: {part:?} is not in {told}");
    }
}

/// A folder with the configuration `c.toml` and the data, packed.
pub fn prepared() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_data(dir.path());
    let pack = "data pack --tiles tiles --table tiles.tsv --rna rna.tsv --out pack.safetensors";
    let how = format!("--tile-px {SIDE} --quality 0 --class-column class --unit section");
    succeeds(dir.path(), &format!("{pack} {how}"));
    dir
}
