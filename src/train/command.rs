//! `genevar train` and `genevar export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::bundle::Bundle;
use super::interrupt::Interrupt;
use super::pipeline::Work;
use super::{untrained, var};
use crate::config::draw::DrawOptions;
use crate::config::explain::{Key, explain};
use crate::config::{Config, TIERS};
use crate::data::pack::Pack;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::safetensors::Store;

/// Where a configuration comes from.
#[derive(Args)]
pub struct ConfigArgs {
    /// TOML file; it names a tier and overrides keys.
    #[arg(long, conflicts_with = "tier")]
    config: Option<PathBuf>,
    /// Preset: t0, demo, t1, t2 or t3.
    #[arg(long)]
    tier: Option<String>,
}

/// Arguments of `genevar config`.
#[derive(Args)]
pub struct ConfigCommand {
    #[command(flatten)]
    config: ConfigArgs,
    /// Explain keys instead of printing them: type, default, meaning; all, or those whose names
    /// contain this text.
    #[arg(long, value_name = "KEY", num_args = 0..=1, default_missing_value = "")]
    explain: Option<String>,
    /// Prints JSON.
    #[arg(long, requires = "explain")]
    json: bool,
}

impl ConfigCommand {
    /// What the command prints.
    ///
    /// # Errors
    /// A configuration that cannot be read; a text that no key contains.
    pub fn run(&self) -> Result<String> {
        let Some(part) = &self.explain else { return self.config.read()?.to_toml() };
        let config = match self.config.is_given() {
            true => self.config.read()?,
            false => Config::default(),
        };
        let mut keys = explain(&config)?;
        keys.retain(|key| key.key.contains(part));
        if keys.is_empty() {
            let what = format!("no key contains {part:?}");
            return Err(Error::config("--explain", what, "see `genevar config --explain`"));
        }
        if self.json {
            let text = serde_json::to_string_pretty(&keys);
            return text.map(|t| t + "\n").map_err(|e| Error::Internal(e.to_string()));
        }
        let one = |k: &Key| format!("{} = {}\n    {}: {}\n", k.key, k.default, k.kind, k.meaning);
        Ok(keys.iter().map(one).collect())
    }
}

impl ConfigArgs {
    fn is_given(&self) -> bool {
        self.config.is_some() || self.tier.is_some()
    }

    /// The configuration, checked.
    pub fn read(&self) -> Result<Config> {
        match (&self.config, &self.tier) {
            (Some(path), _) => Config::load(path),
            (None, Some(tier)) => Config::tier(tier),
            (None, None) => {
                let fix = format!("give --config FILE or --tier {}", TIERS.join("|"));
                Err(Error::config("--config", "is missing", fix))
            }
        }
    }
}

/// What is trained.
#[derive(Clone, Copy, ValueEnum)]
enum What {
    BetaVae,
    Msvq,
    Meanflow,
    Ar,
    All,
}

/// Trains one stage or all.
#[derive(Args)]
pub struct TrainArgs {
    /// The stage; those before it must be trained already.
    #[arg(value_enum)]
    stage: What,
    #[command(flatten)]
    config: ConfigArgs,
    /// Pack of tiles and RNA, made by `genevar data pack`; the configuration's `data.pack` if left
    /// out.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Folder of the run: logs and checkpoints.
    #[arg(long, default_value = "runs/train")]
    out: PathBuf,
    /// Go on from the newest checkpoints.
    #[arg(long)]
    resume: bool,
    /// Begin from the weights of another run or bundle (all stages but the gene prior).
    #[arg(long)]
    warm: Option<PathBuf>,
    /// Where to train: cpu, cuda, or cuda:1 for the second GPU.
    #[arg(long, default_value = "cpu")]
    device: String,
}

/// Runs `genevar train`.
pub fn run(args: &TrainArgs) -> Result<()> {
    let config = args.config.read()?;
    let pack = Pack::open(pack_path(args, &config)?)?;
    let warm = args.warm.as_deref().map(Bundle::load).transpose()?;
    let work = Work {
        config: &config,
        pack: &pack,
        out: &args.out,
        resume: args.resume,
        warm: warm.as_ref(),
        interrupt: Interrupt::from_keyboard()?,
        device: Device::named(&args.device)?,
    };
    let finished = match args.stage {
        What::All => work.all()?,
        What::BetaVae => vec![("beta_vae", work.stage("beta_vae")?)],
        What::Msvq => vec![("msvq", work.stage("msvq")?)],
        What::Meanflow => vec![("meanflow", work.stage("meanflow")?)],
        What::Ar => vec![("ar", work.stage("ar")?)],
    };
    for (name, summary) in finished {
        let loss = summary.last.map_or(String::new(), |l| format!(", loss {:.4}", l.loss));
        eprintln!("{name}: {} steps in {:.0} s{loss}", summary.taken, summary.seconds);
    }
    Ok(())
}

fn pack_path(args: &TrainArgs, config: &Config) -> Result<PathBuf> {
    match &args.data {
        Some(path) => Ok(path.clone()),
        None if config.data.pack.is_empty() => {
            Err(Error::config("data.pack", "is not set", "name a pack there, or with --data"))
        }
        None => Ok(PathBuf::from(&config.data.pack)),
    }
}

/// Puts what a run trained, or a system of random weights, into one file.
#[derive(Args)]
pub struct ExportArgs {
    /// Folder of the run.
    #[arg(long, required_unless_present = "untrained", conflicts_with = "untrained")]
    run: Option<PathBuf>,
    /// Instead of a run, a system with random weights that this seed names, at --tier or
    /// --config: for timings and comparisons. Its genes are G0, G1, ...
    #[arg(long, value_name = "SEED")]
    untrained: Option<u64>,
    #[command(flatten)]
    config: ConfigArgs,
    /// File to write (.safetensors); with --var a folder.
    #[arg(long)]
    out: PathBuf,
    /// Write state dicts with the keys of FoundationVision/VAR: vae.safetensors and, of a
    /// class-conditional plain VAR, var.safetensors.
    #[arg(long, conflicts_with_all = ["f16", "i8"])]
    var: bool,
    /// Take the best checkpoint of each stage for which one is kept (train.*.best), not the newest.
    #[arg(long, requires = "run")]
    best: bool,
    /// Store weights as 16-bit floats.
    #[arg(long, conflicts_with_all = ["i8", "bf16"])]
    f16: bool,
    /// Store weights as the upper halves of 32-bit floats, which the CPU then reads where they are.
    #[arg(long, conflicts_with = "i8")]
    bf16: bool,
    /// Store large matrices as 8-bit integers with a scale a row, the rest as 16-bit floats.
    #[arg(long)]
    i8: bool,
    /// How tiles are drawn from the file unless the person who draws says otherwise.
    #[command(flatten)]
    draw: DrawOptions,
}

/// Runs `genevar export`.
pub fn export(args: &ExportArgs) -> Result<()> {
    let store = match (args.f16, args.bf16, args.i8) {
        (true, ..) => Store::F16,
        (_, true, _) => Store::Bf16,
        (.., true) => Store::I8,
        _ => Store::Full,
    };
    let mut bundle = match (&args.run, args.untrained) {
        (Some(run), _) if args.best => Bundle::load_best(run)?,
        (Some(run), _) => Bundle::load(run)?,
        (None, seed) => untrained::bundle(&args.config.read()?, seed.unwrap_or(0))?,
    };
    bundle.config.sample = args.draw.over(&bundle.config.sample)?;
    bundle.config.validate()?;
    if args.var {
        for file in var::export(&bundle, &args.out)? {
            eprintln!("{}", file.display());
        }
        return Ok(());
    }
    let bytes = bundle.save(&args.out, store)?;
    eprintln!("{} ({:.2} MB)", args.out.display(), bytes as f64 / 1e6);
    Ok(())
}
