//! The command line: arguments in, one clear line and an exit code out.
//!
//! Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 2
//! input that a person can mend, 3 slower than before (`profile --compare`), 130 after Ctrl-C, 1
//! for the rest.

mod doctor;
mod examples;
mod kernels;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use serde::Serialize;

use crate::data::{inspect, pack, slide};
use crate::demo;
use crate::device::cpu::{join_pool, keep_memory};
use crate::error::{Error, Result};
use crate::eval;
use crate::io::atomic;
use crate::ops;
use crate::profile;
use crate::runs;
use crate::sample;
use crate::train::command;
use crate::train::show::{self, CheckpointCommand};
use crate::train::var::{self, command::ImportCommand};

/// The exit code of `profile --compare` where the second profile is slower.
const SLOWER: u8 = 3;

/// RNA-Seq profiles to H&E tiles.
#[derive(Parser)]
#[command(name = "genevar", version, arg_required_else_help = true, after_help = examples::EXIT)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prints every configuration key with its value, or explains it.
    #[command(after_help = examples::CONFIG)]
    Config(command::ConfigCommand),
    /// Prepares data.
    #[command(subcommand, after_help = examples::DATA)]
    Data(DataCommand),
    /// Trains one stage or all.
    #[command(after_help = examples::TRAIN)]
    Train(command::TrainArgs),
    /// Puts what a run trained into one file, or into state dicts of another program.
    #[command(after_help = examples::EXPORT)]
    Export(command::ExportArgs),
    /// Says what a checkpoint is, or whether it is whole.
    #[command(subcommand, after_help = examples::CHECKPOINT)]
    Checkpoint(CheckpointCommand),
    /// Reads what other programs trained.
    #[command(subcommand, after_help = examples::IMPORT)]
    Import(ImportCommand),
    /// Draws tiles for rows of an RNA table.
    #[command(after_help = examples::SAMPLE)]
    Sample(Box<sample::command::SampleArgs>),
    /// Judges tiles.
    #[command(subcommand, after_help = examples::EVAL)]
    Eval(EvalCommand),
    /// Writes a page about runs: curves, scales, tiles, distances, time, settings.
    #[command(after_help = examples::REPORT)]
    Report(Box<runs::command::ReportArgs>),
    /// Writes logs of training for other programs.
    #[command(subcommand, after_help = examples::LOG)]
    Log(runs::tensorboard::LogCommand),
    /// Everything once, on the tissue and the trained system of the repository, with a report.
    #[command(after_help = examples::DEMO)]
    Demo(demo::DemoArgs),
    /// Says where the time of a tile or a training step goes, by scale, part and kernel.
    #[command(after_help = examples::PROFILE)]
    Profile(Box<profile::ProfileArgs>),
    /// Prints the table of operations: shapes, faces, derivatives, test cases.
    #[command(after_help = examples::OPS)]
    Ops {
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Prints the table of CUDA kernels, a kernel's card, its PTX or its machine code.
    #[command(after_help = examples::KERNELS)]
    Kernels(kernels::KernelArgs),
    /// Says what this machine has for genevar, and what to do about what it lacks.
    #[command(after_help = examples::DOCTOR)]
    Doctor(doctor::DoctorArgs),
    /// Prints a completion script for a shell.
    #[command(after_help = examples::COMPLETIONS)]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Writes manual pages, one a command, into a folder.
    #[command(after_help = examples::MAN)]
    Man {
        /// The folder; made if it is not there.
        #[arg(long, default_value = "man")]
        out: PathBuf,
    },
}

#[derive(Subcommand)]
enum DataCommand {
    /// Puts tiles and RNA into one memory-mapped file.
    Pack(Box<pack::PackArgs>),
    /// Cuts whole slides into tiles of tissue.
    Cut(Box<slide::SlideArgs>),
    /// Says what is in a file or folder: shapes, ranges, missing values, units, genes, images.
    Inspect(Box<inspect::InspectArgs>),
}

#[derive(Subcommand)]
enum EvalCommand {
    /// Distance (FD-EffNet, or FD-Inception) between two sets of tiles, or a trained system on
    /// trial.
    Fd(Box<eval::fd::FdArgs>),
}

/// Runs the command of this process's arguments.
pub fn main() -> ExitCode {
    let parsed = whole().try_get_matches().and_then(|m| Cli::from_arg_matches(&m));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(e) => e.exit(),
    };
    keep_memory();
    join_pool();
    match run(cli.command) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("genevar: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Profile(args) => {
            let told = profile::run(&args)?;
            print(&told.page)?;
            return Ok(if told.is_slower { ExitCode::from(SLOWER) } else { ExitCode::SUCCESS });
        }
        Command::Config(args) => print(&args.run()?),
        Command::Data(DataCommand::Pack(args)) => print(&pack::run(&args)?),
        Command::Data(DataCommand::Cut(args)) => print(&slide::run(&args)?),
        Command::Data(DataCommand::Inspect(args)) => print(&inspect::run(&args)?),
        Command::Eval(EvalCommand::Fd(args)) => print(&eval::fd::run(&args)?),
        Command::Train(args) => command::run(&args),
        Command::Export(args) => command::export(&args),
        Command::Checkpoint(command) => print(&show::run(&command)?),
        Command::Import(command) => print(&var::command::run(&command)?),
        Command::Sample(args) => sample::command::run(&args),
        Command::Report(args) => print(&runs::command::run(&args)?),
        Command::Log(command) => print(&runs::tensorboard::run(&command)?),
        Command::Demo(args) => print(&demo::run(&args)?),
        Command::Ops { json: true } => print(&to_json(&ops::table())?),
        Command::Ops { json: false } => print(&ops::table_markdown()),
        Command::Kernels(args) => print(&kernels::run(&args)?),
        Command::Doctor(args) => {
            let found = doctor::examine();
            print(&if args.json { to_json(&found)? } else { found.to_string() })
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut whole(), "genevar", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Command::Man { out } => {
            atomic::create_folder(&out)?;
            clap_mangen::generate_to(whole(), &out).map_err(|e| Error::io("write", &out, e))
        }
    }
    .map(|()| ExitCode::SUCCESS)
}

/// The command line, every command below another with its part of that one's examples.
fn whole() -> clap::Command {
    let mut all = Cli::command();
    let groups: Vec<String> = all.get_subcommands().map(|c| c.get_name().into()).collect();
    for group in groups {
        all = all.mut_subcommand(&group, |mut parent| {
            let text = parent.get_after_help().map(ToString::to_string).unwrap_or_default();
            let below: Vec<String> =
                parent.get_subcommands().map(|c| c.get_name().into()).collect();
            for name in below {
                let own = examples::of(&text, &format!("genevar {group} {name}"));
                parent = parent.mut_subcommand(&name, |c| c.after_help(own));
            }
            parent
        });
    }
    all
}

/// JSON with an end of line.
fn to_json(what: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string_pretty(what);
    text.map(|text| text + "\n").map_err(|e| Error::Internal(e.to_string()))
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
