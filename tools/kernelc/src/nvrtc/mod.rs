//! NVRTC: compiles one file for one architecture.

mod ffi;
mod find;

use std::ffi::CString;
use std::path::{Path, PathBuf};

pub use find::{VARIABLE, find};

use crate::error::{Error, Result};

/// A loaded NVRTC.
pub struct Nvrtc {
    api: ffi::Api,
    version: (i32, i32),
    dir: PathBuf,
}

/// What to compile.
pub(crate) struct Job<'a> {
    /// The name that messages and line tables give the file.
    pub(crate) name: &'a str,
    pub(crate) source: &'a str,
    /// Name and text of every header.
    pub(crate) headers: &'a [(String, String)],
    /// Template instances, as `f<float>`.
    pub(crate) expressions: &'a [String],
    pub(crate) options: &'a [String],
    /// Whether machine code is wanted beside the PTX.
    pub(crate) cubin: bool,
}

/// What came of it.
pub(crate) struct Output {
    pub(crate) ptx: Vec<u8>,
    /// Empty where none was wanted.
    pub(crate) cubin: Vec<u8>,
    /// One symbol an expression.
    pub(crate) symbols: Vec<String>,
    pub(crate) log: String,
}

/// Why a job failed: NVRTC's code and its log.
pub(crate) struct Failure {
    pub(crate) what: String,
    pub(crate) log: String,
}

impl Nvrtc {
    /// Loads the libraries of `dir`.
    pub fn open(dir: &Path) -> Result<Self> {
        let fault = |what: String| Error::Nvrtc {
            what: format!("NVRTC in {} cannot be used: {what}", dir.display()),
            fix: format!("run tools/setup, or name a folder with {VARIABLE}"),
        };
        let dir = dir.canonicalize().map_err(|e| fault(e.to_string()))?;
        let library = |stem: &str| {
            find::library(&dir, stem).ok_or_else(|| fault(format!("it has no {stem}")))
        };
        let (builtins, nvrtc) = (library("libnvrtc-builtins.so")?, library("libnvrtc.so")?);
        let api = ffi::Api::load(&builtins, &nvrtc).map_err(fault)?;
        let version = api.version().map_err(fault)?;
        Ok(Self { api, version, dir })
    }

    /// Major and minor version, as `13.0`.
    pub fn version(&self) -> String {
        format!("{}.{}", self.version.0, self.version.1)
    }

    /// The folder it was loaded from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn compile(&self, job: &Job<'_>) -> Result<Output, Failure> {
        let text =
            |s: &str| CString::new(s).map_err(|_| "a source or name holds a zero byte".to_string());
        let plain = |what: String| Failure { what, log: String::new() };
        let headers: Result<Vec<_>, String> =
            job.headers.iter().map(|(name, body)| Ok((text(name)?, text(body)?))).collect();
        let expressions: Result<Vec<_>, String> = job.expressions.iter().map(|e| text(e)).collect();
        let options: Result<Vec<_>, String> = job.options.iter().map(|o| text(o)).collect();
        let headers = headers.map_err(plain)?;
        let expressions = expressions.map_err(plain)?;
        let options = options.map_err(plain)?;
        let (name, source) = (text(job.name).map_err(plain)?, text(job.source).map_err(plain)?);
        let program = self.api.program(&name, &source, &headers).map_err(plain)?;
        for e in &expressions {
            program.expect(e).map_err(plain)?;
        }
        let told = program.compile(&options);
        let log = program.part(ffi::Part::Log).map_err(plain)?;
        let log = String::from_utf8_lossy(&log).into_owned();
        let failed = |what: String| Failure { what, log: log.clone() };
        told.map_err(failed)?;
        let ptx = program.part(ffi::Part::Ptx).map_err(failed)?;
        let cubin = job.cubin.then(|| program.part(ffi::Part::Cubin)).transpose();
        let cubin = cubin.map_err(failed)?.unwrap_or_default();
        let symbols: Result<Vec<String>, String> =
            expressions.iter().map(|e| program.lowered(e)).collect();
        let symbols = symbols.map_err(failed)?;
        Ok(Output { ptx, cubin, symbols, log })
    }
}
