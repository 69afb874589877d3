//! [`SampleConfig`] as options of the commands that draw; what is left out is the checkpoint's.

use clap::Args;

use super::{Guidance, SampleConfig};
use crate::error::{Error, Result};

/// Options of `genevar sample`, `eval fd` and `export`.
#[derive(Args, Clone, Debug, Default)]
pub struct DrawOptions {
    /// Classifier-free guidance; 0 runs no null stream. Default: the checkpoint's.
    #[arg(long)]
    pub cfg: Option<f64>,
    /// How guidance is spread over the scales. Default: the checkpoint's.
    #[arg(long, value_enum)]
    pub guidance: Option<Guidance>,
    /// Tokens kept by rank; 0 is .22 of the code book. Default: the checkpoint's.
    #[arg(long)]
    pub top_k: Option<usize>,
    /// Probability mass kept. Default: the checkpoint's.
    #[arg(long)]
    pub top_p: Option<f64>,
    /// On a GPU, scales of at most so many tokens take each block of the transformer in one launch;
    /// 36 draws a few tiles soonest, 0 many. Default: the checkpoint's.
    #[arg(long)]
    pub few: Option<usize>,
}

impl DrawOptions {
    /// `base` with what was given in its place.
    ///
    /// # Errors
    /// A negative guidance, a mass outside (0, 1].
    pub fn over(&self, base: &SampleConfig) -> Result<SampleConfig> {
        let s = SampleConfig {
            cfg: self.cfg.unwrap_or(base.cfg),
            guidance: self.guidance.unwrap_or(base.guidance),
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            few: self.few.unwrap_or(base.few),
        };
        let wrong = |key: &str, what: String, fix: &str| Err(Error::config(key, what, fix));
        if !s.cfg.is_finite() || s.cfg < 0.0 {
            return wrong("--cfg", format!("{} is no strength", s.cfg), "give 0 or more");
        }
        if !(s.top_p > 0.0 && s.top_p <= 1.0) {
            return wrong("--top-p", format!("{} is no probability", s.top_p), "give 0 < p <= 1");
        }
        Ok(s)
    }

    /// Whether nothing was given.
    pub fn is_empty(&self) -> bool {
        let Self { cfg, guidance, top_k, top_p, few } = self;
        let given = [cfg.is_some(), guidance.is_some(), top_k.is_some(), top_p.is_some()];
        !given.contains(&true) && few.is_none()
    }
}
