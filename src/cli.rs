//! The command line: arguments in, one clear line and an exit code out.
//!
//! Results go to standard output, progress and errors to standard error. Exit codes: 0 done, 2
//! input that a person can mend, 130 after Ctrl-C, 1 for the rest.

mod doctor;
mod kernels;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::data::pack;
use crate::demo;
use crate::device::cpu::join_pool;
use crate::error::{Error, Result};
use crate::eval;
use crate::ops;
use crate::sample;
use crate::train::command;
use crate::train::show::{self, CheckpointCommand};
use crate::train::var::{self, command::ImportCommand};

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
    Config(command::ConfigArgs),
    /// Prepares data.
    #[command(subcommand)]
    Data(DataCommand),
    /// Trains one stage or all.
    Train(command::TrainArgs),
    /// Puts what a run trained into one file, or into state dicts of another program.
    Export(command::ExportArgs),
    /// Says what a checkpoint is, or whether it is whole.
    #[command(subcommand)]
    Checkpoint(CheckpointCommand),
    /// Reads what other programs trained.
    #[command(subcommand)]
    Import(ImportCommand),
    /// Draws tiles for rows of an RNA table.
    Sample(Box<sample::command::SampleArgs>),
    /// Judges tiles.
    #[command(subcommand)]
    Eval(EvalCommand),
    /// Everything once, on the tissue and the trained system of the repository, with a report.
    Demo(demo::DemoArgs),
    /// Prints the table of operations: shapes, faces, derivatives, test cases.
    Ops,
    /// Prints the table of CUDA kernels, a kernel's card, its PTX or its machine code.
    Kernels(kernels::KernelArgs),
    /// Says what this machine has for genevar, and what to do about what it lacks.
    Doctor,
}

#[derive(Subcommand)]
enum DataCommand {
    /// Puts tiles and RNA into one memory-mapped file.
    Pack(Box<pack::PackArgs>),
}

#[derive(Subcommand)]
enum EvalCommand {
    /// Distance (FD-EffNet) between two sets of tiles, or a trained system on trial.
    Fd(Box<eval::fd::FdArgs>),
}

/// Runs the command of this process's arguments.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => e.exit(),
    };
    join_pool();
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
        Command::Eval(EvalCommand::Fd(args)) => print(&eval::fd::run(&args)?),
        Command::Train(args) => command::run(&args),
        Command::Export(args) => command::export(&args),
        Command::Checkpoint(command) => print(&show::run(&command)?),
        Command::Import(command) => print(&var::command::run(&command)?),
        Command::Sample(args) => sample::command::run(&args),
        Command::Demo(args) => print(&demo::run(&args)?),
        Command::Ops => print(&ops::table_markdown()),
        Command::Kernels(args) => print(&kernels::run(&args)?),
        Command::Doctor => print(&doctor::examine()),
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
