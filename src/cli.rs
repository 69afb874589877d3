//! The command line: arguments in, one clear line and an exit code out.
//!
//! Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 2 input
//! that a person can mend, 130 after Ctrl-C, 1 for the rest.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, TIERS};
use crate::data::pack;
use crate::error::{Error, Result};
use crate::eval;
use crate::ops;

/// RNA-Seq profiles to H&E tiles.
#[derive(Parser)]
#[command(name = "genevar", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prints every configuration key with its value.
    Config(ConfigArgs),
    /// Prepares data.
    #[command(subcommand)]
    Data(DataCommand),
    /// Judges tiles.
    #[command(subcommand)]
    Eval(EvalCommand),
    /// Prints the table of operations: shapes, faces, derivatives, test cases.
    Ops,
}

#[derive(Subcommand)]
enum DataCommand {
    /// Puts tiles and RNA into one memory-mapped file.
    Pack(Box<pack::PackArgs>),
}

#[derive(Subcommand)]
enum EvalCommand {
    /// Distance (FD-EffNet) between two sets of tiles, beside its floor and anchors.
    Fd(eval::fd::FdArgs),
}

/// Where a configuration comes from.
#[derive(Args)]
struct ConfigArgs {
    /// TOML file; it names a tier and overrides keys.
    #[arg(long, conflicts_with = "tier")]
    config: Option<PathBuf>,
    /// Preset: t0, demo, t1, t2 or t3.
    #[arg(long)]
    tier: Option<String>,
}

impl ConfigArgs {
    fn read(&self) -> Result<Config> {
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

/// Runs the command of this process's arguments.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => e.exit(),
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("genevar: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Config(args) => print(&args.read()?.to_toml()?),
        Command::Data(DataCommand::Pack(args)) => pack::run(&args),
        Command::Eval(EvalCommand::Fd(args)) => print(&eval::fd::run(&args)?.to_string()),
        Command::Ops => print(&ops::table_markdown()),
    }
}

/// Prints to standard output; a reader that has gone away, as `head` does, is no error.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("write", "standard output", e))
        }
        _ => Ok(()),
    }
}
