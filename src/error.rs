//! One error type for the whole crate.
//!
//! Each variant carries what a person needs to act: what was wrong, where, and what to do. Code
//! that knows more about the place adds it with [`Within::within`], so a message reads from the
//! outside in: `scale 3: linear: x has 32 columns, w wants 64`.

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, for a person to read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes or types of an op's inputs do not fit together.
    #[error("{op}: {what}")]
    Shape {
        /// The op that refused.
        op: &'static str,
        /// Which input has which shape, and which was expected.
        what: String,
    },
    /// A derivative was asked of an op that declares it has none.
    #[error("{op} is not differentiable: {reason}")]
    NotDifferentiable {
        /// The op.
        op: &'static str,
        /// The declared reason.
        reason: &'static str,
    },
    /// A value that must be finite is not.
    #[error("{place}: {count} of {len} values are NaN or infinite, the first at index {first}")]
    NotFinite {
        /// The op, loss or tensor the value came from.
        place: String,
        /// How many values are not finite.
        count: usize,
        /// How many values there are.
        len: usize,
        /// Index of the first offender.
        first: usize,
    },
    /// A kernel's result is further from the exact one than rounding explains.
    #[error(
        "{op}: its kernels give {got:e} for element {at} of output {output}, exactly it is \
         {exact:e}, and rounding explains {bound:e}"
    )]
    Rounding {
        /// The op.
        op: &'static str,
        /// Which of its outputs.
        output: usize,
        /// Index of the first such element.
        at: usize,
        /// What came.
        got: f64,
        /// What the reference says in f64.
        exact: f64,
        /// How far an f32 evaluation may be from it.
        bound: f64,
    },
    /// A file that cannot be used as it is.
    #[error("{}: {what}; {fix}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do about it.
        fix: String,
    },
    /// A line of a table that cannot be used.
    #[error("{}:{line}: {what}; {fix}", path.display())]
    Line {
        /// The table.
        path: PathBuf,
        /// 1-based line number, the header being line 1.
        line: usize,
        /// What is wrong with it, naming the column or gene.
        what: String,
        /// What to do about it.
        fix: String,
    },
    /// The operating system refused a file operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: "read", "write", "create", "rename".
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's own reason.
        source: std::io::Error,
    },
    /// A configuration key or command-line value that cannot be used.
    #[error("{key}: {what}; {fix}")]
    Config {
        /// The key, dotted as in the file (`train.ar.lr`), or the command-line flag.
        key: String,
        /// What is wrong with it.
        what: String,
        /// What to do about it.
        fix: String,
    },
    /// Data that do not fit together: joins, splits, genes.
    #[error("{what}; {fix}")]
    Data {
        /// What does not fit, naming tiles, patients, genes.
        what: String,
        /// What to do about it.
        fix: String,
    },
    /// The CUDA driver refused a call, or reports what went wrong before it.
    #[error("{what}: {name} ({says}); {fix}")]
    Driver {
        /// What was tried: the kernel with its grid and buffers, or the call.
        what: String,
        /// The driver's name of the error.
        name: String,
        /// The driver's own sentence.
        says: String,
        /// What to do about it.
        fix: String,
    },
    /// The person pressed Ctrl-C; what was finished is on disk.
    #[error("interrupted; {resume}")]
    Interrupted {
        /// How to go on from here.
        resume: String,
    },
    /// A broken promise inside the program. Please report it.
    #[error("internal error: {0}")]
    Internal(String),
    /// An error with the place it happened in.
    #[error("{place}: {source}")]
    Within {
        /// The place, from the outside in.
        place: String,
        /// What happened there.
        source: Box<Error>,
    },
}

impl Error {
    /// A shape error of `op`.
    pub fn shape(op: &'static str, what: impl Into<String>) -> Self {
        Self::Shape { op, what: what.into() }
    }

    /// A file that cannot be used.
    pub fn file(path: impl AsRef<Path>, what: impl Display, fix: impl Display) -> Self {
        let path = path.as_ref().to_path_buf();
        Self::File { path, what: what.to_string(), fix: fix.to_string() }
    }

    /// A failed file operation.
    pub fn io(action: &'static str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { action, path: path.as_ref().to_path_buf(), source }
    }

    /// A bad configuration value.
    pub fn config(key: impl Into<String>, what: impl Display, fix: impl Display) -> Self {
        Self::Config { key: key.into(), what: what.to_string(), fix: fix.to_string() }
    }

    /// Data that do not fit together.
    pub fn data(what: impl Display, fix: impl Display) -> Self {
        Self::Data { what: what.to_string(), fix: fix.to_string() }
    }

    /// The error without the places around it.
    pub fn root(&self) -> &Self {
        match self {
            Self::Within { source, .. } => source.root(),
            other => other,
        }
    }

    /// The process exit code: 2 for input a person can mend, 130 after Ctrl-C, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self.root() {
            Self::File { .. }
            | Self::Line { .. }
            | Self::Io { .. }
            | Self::Config { .. }
            | Self::Data { .. } => 2,
            Self::Interrupted { .. } => 130,
            _ => 1,
        }
    }
}

/// Adds the place to an error.
pub trait Within<T> {
    /// Prefixes the error with `place`.
    fn within(self, place: impl Display) -> Result<T>;
}

impl<T> Within<T> for Result<T> {
    fn within(self, place: impl Display) -> Result<T> {
        self.map_err(|source| Error::Within { place: place.to_string(), source: Box::new(source) })
    }
}

impl From<genevar_linalg::NotConverged> for Error {
    fn from(e: genevar_linalg::NotConverged) -> Self {
        Self::Internal(e.to_string())
    }
}
