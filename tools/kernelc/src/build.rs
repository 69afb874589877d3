//! The whole way from a folder of kernels to a Rust file, as a build script calls it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use crate::cache::write_whole;
use crate::compile::{self, File, Image};
use crate::error::{Error, Fault, Result};
use crate::generate;
use crate::headers;
use crate::kernel::Kernel;
use crate::lock::{self, Usage};
use crate::nvrtc::{self, Nvrtc};
use crate::parse;

/// What is compiled where nobody says otherwise: machine code for A100 and H100, and the PTX that
/// it is made from. Every GPU from Ampere on can take that of the former.
pub const ARCHS: [&str; 4] = ["compute_80", "compute_90a", "sm_80", "sm_90a"];

/// The environment variables that a build heeds.
const VARIABLES: [&str; 6] = [
    nvrtc::VARIABLE,
    "GENEVAR_ARCHS",
    "GENEVAR_REQUIRE_KERNELS",
    "GENEVAR_BLESS_RESOURCES",
    "CUDA_HOME",
    "CUDA_PATH",
];

/// What to build and where.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder of `.cu` files, with `lib/` and `RESOURCES.lock`.
    pub kernels: PathBuf,
    /// Where the Rust file and the images go.
    pub out: PathBuf,
    /// Where compiled images are kept between builds.
    pub cache: PathBuf,
    /// Where `tools/setup` puts NVRTC.
    pub fetched: PathBuf,
    /// Architectures, `compute_NN` for PTX and `sm_NN` for machine code.
    pub archs: Vec<String>,
    /// The module that the generated code launches through, as `crate::device::kernel`.
    pub runtime: String,
    /// Whether a missing NVRTC is an error.
    pub require: bool,
    /// Whether `RESOURCES.lock` is rewritten.
    pub bless: bool,
}

/// What was done.
#[derive(Clone, Debug)]
pub struct Report {
    /// Version and folder of the NVRTC that was used.
    pub nvrtc: Option<(String, PathBuf)>,
    /// The kernels, file by file.
    pub kernels: Vec<Kernel>,
    /// What was compiled, as `kernels/norm.cu for sm_80`.
    pub compiled: Vec<String>,
    /// How many images came from the cache.
    pub reused: usize,
    /// What the compiler warned of, and a missing NVRTC.
    pub warnings: Vec<String>,
    /// What every entry uses.
    pub usage: Vec<Usage>,
    /// What differs from the resource lock.
    pub changes: Vec<String>,
    /// Every file that was read.
    pub read: Vec<PathBuf>,
    /// The Rust file.
    pub written: PathBuf,
}

impl Config {
    /// The settings of a build script whose package lies in `root`, from cargo's and genevar's
    /// environment variables.
    pub fn from_env(root: &Path, runtime: &str) -> Result<Self> {
        let out = env::var_os("OUT_DIR").map(PathBuf::from).ok_or_else(|| Error::Config {
            key: "OUT_DIR",
            what: "is not set".to_string(),
            fix: "call this from a build script, or fill in the settings yourself".to_string(),
        })?;
        // OUT_DIR is TARGET/PROFILE/build/NAME/out; the cache serves all profiles.
        let target = out.ancestors().nth(4).unwrap_or(&out).to_path_buf();
        let set = |name: &str| env::var(name).is_ok_and(|v| !v.is_empty() && v != "0");
        Ok(Self {
            kernels: root.join("kernels"),
            cache: target.join("kernel-cache"),
            fetched: root.join("target").join("nvrtc"),
            archs: archs(env::var("GENEVAR_ARCHS").ok().as_deref())?,
            runtime: runtime.to_string(),
            require: set("GENEVAR_REQUIRE_KERNELS"),
            bless: set("GENEVAR_BLESS_RESOURCES"),
            out,
        })
    }
}

/// The architectures of a list with commas, or the usual ones.
pub fn archs(list: Option<&str>) -> Result<Vec<String>> {
    let Some(list) = list.filter(|l| !l.trim().is_empty()) else {
        return Ok(ARCHS.map(str::to_string).to_vec());
    };
    let good = |a: &str| {
        let digits = a.strip_prefix("sm_").or_else(|| a.strip_prefix("compute_"))?;
        let plain = digits.strip_suffix(['a', 'f']).unwrap_or(digits);
        (plain.len() >= 2 && plain.bytes().all(|b| b.is_ascii_digit())).then(|| a.to_string())
    };
    let each = list.split(',').map(str::trim).map(|a| {
        good(a).ok_or_else(|| Error::Config {
            key: "GENEVAR_ARCHS",
            what: format!("`{a}` is no architecture"),
            fix: format!("a list reads {}", ARCHS.join(",")),
        })
    });
    each.collect()
}

/// Builds everything and prints what cargo wants to know: files and variables to watch, warnings.
pub fn build(config: &Config) -> Result<Report> {
    for name in VARIABLES {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rerun-if-changed={}", config.kernels.display());
    // Cargo takes a missing path as changed at every build, so the folder is made: empty until
    // tools/setup fills it.
    if fs::create_dir_all(&config.fetched).is_ok() {
        println!("cargo:rerun-if-changed={}", config.fetched.display());
    }
    let report = run(config)?;
    for path in &report.read {
        println!("cargo:rerun-if-changed={}", path.display());
    }
    let changes = report.changes.iter().map(|c| format!("kernels/RESOURCES.lock: {c}"));
    for warning in report.warnings.iter().cloned().chain(changes) {
        println!("cargo:warning={warning}");
    }
    Ok(report)
}

/// Builds everything without a word.
pub fn run(config: &Config) -> Result<Report> {
    let files = read(&config.kernels)?;
    let (nvrtc, notes) = nvrtc::find(&config.fetched)?;
    let mut warnings = Vec::new();
    let images = match &nvrtc {
        Some(nvrtc) => compile::all(nvrtc, &files, &config.archs, &config.cache)?,
        None if config.require => {
            let (what, fix) = missing(&notes);
            return Err(Error::Nvrtc { what, fix });
        }
        None => {
            let (what, fix) = missing(&notes);
            warnings.push(format!("{what}: built for the CPU only; {fix}"));
            Vec::new()
        }
    };
    for warning in images.iter().flat_map(|i| &i.warnings) {
        if !warnings.contains(warning) {
            warnings.push(warning.clone());
        }
    }
    claims(&files, &images)?;
    let usage = usage(&images);
    let changes = match &nvrtc {
        Some(nvrtc) => check_lock(config, nvrtc, &usage)?,
        None => Vec::new(),
    };
    for image in &images {
        write_changed(&config.out.join(image.file_name()), &image.bytes)?;
    }
    let version = nvrtc.as_ref().map(Nvrtc::version);
    let rust = generate::rust(&files, &images, version.as_deref(), &config.runtime);
    let written = config.out.join("kernels.rs");
    write_changed(&written, rust.as_bytes())?;
    let compiled = images.iter().filter(|i| !i.reused);
    Ok(Report {
        compiled: compiled.map(|i| format!("{} for {}", i.file, i.arch)).collect(),
        reused: images.iter().filter(|i| i.reused).count(),
        nvrtc: nvrtc.map(|n| (n.version(), n.dir().to_path_buf())),
        read: read_paths(&config.kernels, &files),
        kernels: files.into_iter().flat_map(|f| f.kernels).collect(),
        warnings,
        usage,
        changes,
        written,
    })
}

/// What is said where NVRTC is missing, and the way out.
fn missing(notes: &[String]) -> (String, String) {
    let notes = if notes.is_empty() { String::new() } else { format!(" ({})", notes.join("; ")) };
    let fix = format!("run tools/setup, or set {} to the folder of libnvrtc.so", nvrtc::VARIABLE);
    (format!("the CUDA kernels are not compiled, for NVRTC was not found{notes}"), fix)
}

/// All kernel files with their headers.
fn read(kernels: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    for file in headers::files(kernels)? {
        let path = kernels.join(&file);
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let name = format!("kernels/{file}");
        let stem = file.trim_end_matches(".cu").to_string();
        let fits = stem.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if !fits || stem.starts_with(|c: char| !c.is_ascii_lowercase()) {
            let fix = "name it in lower-case letters, digits and `_`: it becomes a Rust module";
            return Err(Fault::new(format!("`{stem}` is no module name"), fix).at(&name, 1));
        }
        let headers = headers::headers(kernels, &name, &text)?;
        let found = parse::kernels(&name, &text)?;
        for k in &found {
            if let Some(twin) = names.insert(k.name.clone(), name.clone()) {
                let what = format!("`{}` stands in {twin} already", k.name);
                let fix = "entries are told apart by name; give each its own";
                return Err(Fault::new(what, fix).at(&name, k.line));
            }
        }
        if let Some(other) = found.iter().find(|k| k.card.arch != found[0].card.arch) {
            let what = format!("`{}` and `{}` are for other GPUs", found[0].name, other.name);
            let fix = "a file is compiled as a whole: give each `arch` a file of its own";
            return Err(Fault::new(what, fix).at(&name, other.line));
        }
        if found.is_empty() {
            let fix = "a file here holds at least one `__global__` entry; headers go to lib/";
            return Err(Fault::new("it has no kernel", fix).at(&name, 1));
        }
        files.push(File { stem, name, text, headers, kernels: found });
    }
    Ok(files)
}

fn read_paths(kernels: &Path, files: &[File]) -> Vec<PathBuf> {
    let own = files.iter().map(|f| kernels.join(format!("{}.cu", f.stem)));
    let headers = files.iter().flat_map(|f| f.headers.keys()).map(|name| kernels.join(name));
    let mut paths: Vec<PathBuf> = own.chain(headers).collect();
    paths.sort();
    paths.dedup();
    paths
}

fn usage(images: &[Image]) -> Vec<Usage> {
    let of = |image: &Image| {
        let row = |s: &compile::Symbol| {
            Some(Usage {
                module: image.stem.clone(),
                entry: s.expression.clone(),
                arch: image.arch.clone(),
                resources: s.resources?,
            })
        };
        image.symbols.iter().filter_map(row).collect::<Vec<_>>()
    };
    images.iter().flat_map(of).collect()
}

/// Refuses a card that claims of its entry's machine code what is not there, and an entry that
/// touches memory before it has waited for the launches before it.
fn claims(files: &[File], images: &[Image]) -> Result<()> {
    let kernels = || files.iter().flat_map(|f| &f.kernels);
    for (image, symbol) in images.iter().flat_map(|i| i.symbols.iter().map(move |s| (i, s))) {
        let own = |k: &&Kernel| k.instances.iter().any(|i| i.expression == symbol.expression);
        let (Some(kernel), Some(resources)) = (kernels().find(own), symbol.resources) else {
            continue;
        };
        if let Some(claim) = kernel.card.claims.iter().find(|c| !c.holds(resources.code)) {
            let of = &symbol.expression;
            let what = format!("its card claims {claim}, but `{of}` has none on {}", image.arch);
            let fix = "mend the kernel, or take the claim from the card's `code`";
            return Err(Fault::new(what, fix).at(&kernel.file, kernel.line));
        }
        if kernel.awaits && compile::overlaps(&image.arch) && symbol.waits == Some(false) {
            let of = &symbol.expression;
            let what = format!("`{of}` touches memory before await_previous() on {}", image.arch);
            let fix = "what an earlier launch may have written is read behind it";
            return Err(Fault::new(what, fix).at(&kernel.file, kernel.line));
        }
    }
    Ok(())
}

/// Compares with the lock beside the kernels, or rewrites it where that is asked for.
fn check_lock(config: &Config, nvrtc: &Nvrtc, usage: &[Usage]) -> Result<Vec<String>> {
    let path = config.kernels.join("RESOURCES.lock");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(Error::io("read", &path)(e)),
    };
    let version = nvrtc.version();
    let lock = match lock::parse("kernels/RESOURCES.lock", &text) {
        Err(_) if config.bless => lock::Lock::default(),
        read => read?,
    };
    if config.bless {
        // Numbers of another compiler do not mix with these.
        let kept = if lock.nvrtc == version { lock.rows } else { Vec::new() };
        let text = lock::render(&version, usage, &kept);
        write_changed(&path, text.as_bytes())?;
        return Ok(usage.iter().filter_map(lock::spills).collect());
    }
    Ok(lock::compare(&lock, &version, usage))
}

/// Writes what is not there already: cargo rebuilds what depends on a file whose date changed.
fn write_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    match fs::read(path) {
        Ok(there) if there == bytes => Ok(()),
        _ => write_whole(path, bytes),
    }
}
