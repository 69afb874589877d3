//! What the tests of a build share: a scratch folder of kernels and the NVRTC of this workspace.

use std::fs;
use std::path::{Path, PathBuf};

use kernelc::Config;

/// The workspace's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Where `tools/setup` puts NVRTC.
pub fn fetched() -> PathBuf {
    root().join("target/nvrtc")
}

/// Whether NVRTC is there; says that `test` is left out where it is not.
pub fn has_nvrtc(test: &str) -> bool {
    let found = kernelc::find(&fetched()).unwrap().0.is_some();
    if !found {
        eprintln!("{test}: left out, NVRTC was not found; run tools/setup");
    }
    found
}

/// A folder with kernels, to be built into another.
pub struct Scratch {
    dir: tempfile::TempDir,
    /// The settings.
    pub config: Config,
}

impl Scratch {
    /// With the files given by name and text.
    pub fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let config = Config {
            kernels: at("kernels"),
            out: at("out"),
            cache: at("cache"),
            fetched: fetched(),
            archs: kernelc::archs(None).unwrap(),
            runtime: "crate::runtime".to_string(),
            require: false,
            bless: false,
        };
        fs::create_dir_all(&config.out).unwrap();
        let scratch = Self { dir, config };
        files.iter().for_each(|(name, text)| scratch.write(name, text));
        scratch
    }

    /// Writes a kernel file or header.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.config.kernels.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// The folder of it all.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}
