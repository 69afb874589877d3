//! What can go wrong when kernels are built, each with the place and what to do about it.

use std::path::{Path, PathBuf};

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, for a person to read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A signature, card or include that cannot be read.
    #[error("{file}:{line}: {what}; {fix}")]
    Source {
        /// The file, as `kernels/x.cu`.
        file: String,
        /// 1-based line.
        line: usize,
        /// What is wrong.
        what: String,
        /// What is expected instead.
        fix: String,
    },
    /// The operating system refused a file operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's own reason.
        source: std::io::Error,
    },
    /// NVRTC is missing or unusable.
    #[error("{what}; {fix}")]
    Nvrtc {
        /// What was found.
        what: String,
        /// What to do about it.
        fix: String,
    },
    /// NVRTC refused a file.
    #[error("{file} does not compile for {arch}:\n{log}")]
    Compile {
        /// The file, as `kernels/x.cu`.
        file: String,
        /// The architecture it was compiled for.
        arch: String,
        /// The compiler's messages, each with file and line.
        log: String,
    },
    /// A setting that cannot be used.
    #[error("{key}: {what}; {fix}")]
    Config {
        /// The setting or environment variable.
        key: &'static str,
        /// What is wrong with it.
        what: String,
        /// What is expected instead.
        fix: String,
    },
}

impl Error {
    /// An error of `action` on `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

/// What is wrong with a piece of source and what is expected, before the place is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) what: String,
    pub(crate) fix: String,
}

impl Fault {
    pub(crate) fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what: what.into(), fix: fix.into() }
    }

    /// The fault with its place.
    pub(crate) fn at(self, file: &str, line: usize) -> Error {
        Error::Source { file: file.to_string(), line, what: self.what, fix: self.fix }
    }
}
