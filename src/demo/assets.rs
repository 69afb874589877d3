//! The files that the demo stands on: they come with the repository, nothing is fetched.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Where the repository keeps them.
const FOLDER: &str = "tools/demo";
const PACK: &str = "her2st-demo.safetensors";
const SYSTEM: &str = "genevar-demo.safetensors";
const NETWORK: &str = "efficientnet_lite0_f16.safetensors";

/// The demo's files, all of which exist.
#[derive(Clone, Debug)]
pub struct Assets {
    /// Real tiles and their RNA.
    pub pack: PathBuf,
    /// The trained system.
    pub system: PathBuf,
    /// The network of the evaluation.
    pub network: PathBuf,
}

impl Assets {
    /// Looks into `given`, or else into `tools/demo` below the working directory, or else below the
    /// folder that the program was built in.
    ///
    /// # Errors
    /// The first file that is missing, by name, and where to get it.
    pub fn find(given: Option<&Path>) -> Result<Self> {
        let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join(FOLDER);
        let here = || Some(PathBuf::from(FOLDER)).filter(|f| f.join(PACK).is_file());
        let folder = given.map(Path::to_path_buf).or_else(here).unwrap_or_else(built);
        let find = |name: &str, what: &str| {
            let path = folder.join(name);
            match path.is_file() {
                true => Ok(path),
                false => Err(Error::file(
                    path,
                    format!("the demo's {what} is not there"),
                    format!("give the repository's {FOLDER} with --assets DIR"),
                )),
            }
        };
        Ok(Self {
            pack: find(PACK, "pack of tiles and RNA")?,
            system: find(SYSTEM, "trained system")?,
            network: find(NETWORK, "feature network")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_named_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(PACK), b"x").unwrap();
        let error = Assets::find(Some(dir.path())).unwrap_err();
        assert!(error.to_string().contains(SYSTEM) && error.to_string().contains("--assets"));
        assert_eq!(error.exit_code(), 2);
        for name in [SYSTEM, NETWORK] {
            std::fs::write(dir.path().join(name), b"x").unwrap();
        }
        assert_eq!(Assets::find(Some(dir.path())).unwrap().pack, dir.path().join(PACK));
    }
}
