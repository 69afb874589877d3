//! `genevar import`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Hints, import};
use crate::error::Result;
use crate::io::safetensors::Store;
use crate::train::bundle::Trained;
use crate::train::checkpoint::{self, Keep, Meta};

/// Whose files are read.
#[derive(Subcommand)]
pub enum ImportCommand {
    /// State dicts of FoundationVision/VAR, saved as safetensors: a tokenizer and, with
    /// --transformer, a class-conditional transformer.
    Var(Box<VarArgs>),
}

/// Arguments of `genevar import var`.
#[derive(Args)]
pub struct VarArgs {
    /// The tokenizer (vae_ch160v4096z32 as safetensors).
    #[arg(long)]
    tokenizer: PathBuf,
    /// The transformer (var_d16 as safetensors).
    #[arg(long)]
    transformer: Option<PathBuf>,
    /// Sides of the scales, as 1,2,3,4. Default: those of the released models.
    #[arg(long, value_delimiter = ',')]
    patch_nums: Option<Vec<usize>>,
    /// The tokenizer finds codes by angle (using_znorm).
    #[arg(long)]
    cosine: bool,
    /// File to write (.safetensors), for `genevar sample --class`.
    #[arg(long, required_unless_present = "run")]
    out: Option<PathBuf>,
    /// Folder of a run in which the tokenizer is to serve, frozen: the later stages train on it.
    #[arg(long)]
    run: Option<PathBuf>,
}

/// Runs the command; what to say on standard output.
///
/// # Errors
/// Those of the files.
pub fn run(command: &ImportCommand) -> Result<String> {
    let ImportCommand::Var(args) = command;
    let hints = Hints { patch_nums: args.patch_nums.clone(), cosine: args.cosine };
    let bundle = import(&args.tokenizer, args.transformer.as_deref(), &hints)?;
    if let Some(out) = &args.out {
        let bytes = bundle.save(out, Store::Full)?;
        eprintln!("{} ({:.2} MB)", out.display(), bytes as f64 / 1e6);
    }
    let c = &bundle.config.msvq;
    if let Some(run) = &args.run {
        let Trained { step, tensors, notes } = bundle.stage("msvq")?;
        let mut meta = Meta::new("msvq", *step, bundle.config.to_toml()?);
        meta.notes = notes.clone();
        let keep = Keep { newest: 1, best: "" };
        let at = checkpoint::save(&run.join("msvq"), keep, &meta, tensors)?;
        eprintln!("{}", at.display());
    }
    // What a configuration that trains on this tokenizer has to say.
    Ok(format!(
        "[msvq]\nimage = {}\nch = {}\nch_mult = {:?}\nres_blocks_enc = {}\nres_blocks_dec = {}\n\
         attention = {}\nnorm_groups = {}\nd = {}\nvocab = {}\npatch_nums = {:?}\nphi = {}\n",
        c.image,
        c.ch,
        c.ch_mult,
        c.res_blocks_enc,
        c.res_blocks_dec,
        c.attention,
        c.norm_groups,
        c.d,
        c.vocab,
        c.patch_nums,
        c.phi,
    ))
}
