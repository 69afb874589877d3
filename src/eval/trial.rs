//! A trained system on trial: its tiles for the held-out splits of a pack, and the verdict on them.
//!
//! The demo and `genevar eval fd --checkpoint` both come here, so they print the same numbers.

use std::collections::BTreeSet;
use std::fmt;

use super::bootstrap::Draws;
use super::features::Extractor;
use super::metrics::Verdict;
use super::paint::{Painted, Painter};
use super::protocol::{Windows, held_out, training};
use super::suite::{HeldOut, Judge, Settings};
use super::tiles::Tiles;
use crate::data::pack::Pack;
use crate::error::Result;
use crate::train::interrupt::Interrupt;
use crate::train::progress::Shared;
use crate::train::system::System;

/// Splits that are looked at, the most windows of a tile in a set, and what each split is.
const SPLITS: [(&str, usize, &str); 2] = [("val", 2, "validation"), ("test", 1, "unseen patient")];

/// What is put on trial.
#[derive(Clone, Copy)]
pub struct Trial<'a> {
    /// The trained system.
    pub system: &'a System,
    /// Real tiles and RNA.
    pub pack: &'a Pack,
    /// The features.
    pub extractor: &'a Extractor,
    /// Seed of sampling, of the disorder and of the bootstrap.
    pub seed: u64,
    /// The most windows of a split, spread over it; None is all.
    pub most: Option<usize>,
    /// Bootstrap repetitions of each distance.
    pub fd_reps: usize,
    /// Raised by Ctrl-C.
    pub interrupt: &'a Interrupt,
}

/// The tiles of one held-out split.
pub struct Exhibit {
    /// What the split is, for people.
    pub name: String,
    /// Real windows: the reference.
    pub real: Windows,
    /// Real windows: the floor.
    pub floor: Windows,
    /// From RNA.
    pub painted: Painted,
    /// The floor through the tokenizer.
    pub recon: Tiles,
    /// The same with the last scale predicted by Phi.
    pub recon_fhat: Option<Tiles>,
}

/// What came of it.
pub struct Outcome {
    /// The tiles of the validation split and, where there is one, of the unseen patient.
    pub exhibits: Vec<Exhibit>,
    /// The verdict on each.
    pub verdicts: Vec<Verdict>,
    /// Wall-clock seconds of painting one tile.
    pub seconds_per_tile: f64,
}

impl Trial<'_> {
    /// Paints and judges.
    ///
    /// # Errors
    /// No validation split; RNA that the system cannot read; Ctrl-C.
    pub fn run(&self) -> Result<Outcome> {
        let mut exhibits = Vec::new();
        for (split, per, role) in SPLITS {
            if split == "val" || self.pack.split(split).is_ok() {
                exhibits.push(self.exhibit(split, per, role)?);
            }
        }
        let tiles: usize = exhibits.iter().map(|e| 2 * e.painted.own.n()).sum();
        let seconds: f64 = exhibits.iter().map(|e| e.painted.seconds).sum();
        let verdicts = self.judge(&exhibits)?;
        Ok(Outcome { exhibits, verdicts, seconds_per_tile: seconds / tiles.max(1) as f64 })
    }

    fn exhibit(&self, split: &str, per: usize, role: &str) -> Result<Exhibit> {
        let side = self.system.config.msvq.image;
        let (real, floor) = held_out(self.pack, split, side, per)?;
        let (all, n) = (real.tiles.n(), self.most.unwrap_or(usize::MAX).min(real.tiles.n()));
        let which: Vec<usize> = (0..n).map(|i| i * all / n).collect();
        let (real, floor) = (real.select(&which), floor.select(&which));
        let sections: BTreeSet<&str> = real.images.iter().map(|&i| self.pack.section(i)).collect();
        let sections: Vec<&str> = sections.into_iter().filter(|s| !s.is_empty()).collect();
        let name = match sections.is_empty() {
            true => role.to_string(),
            false => format!("{role} ({})", sections.join(", ")),
        };
        let bar = Shared::new(&format!("painting, {name}"), 2 * real.tiles.n());
        let done = || bar.one();
        let painter = self.painter(&done);
        let painted = painter.paint(&real, &name)?;
        bar.finish();
        let bar = Shared::new(&format!("tokenizer, {name}"), floor.tiles.n());
        let done = || bar.one();
        let (recon, recon_fhat) = self.painter(&done).reconstruct(&floor)?;
        bar.finish();
        Ok(Exhibit { name, real, floor, painted, recon, recon_fhat })
    }

    fn painter<'b>(&'b self, done: &'b (dyn Fn() + Sync)) -> Painter<'b> {
        let Trial { system, pack, seed, interrupt, .. } = *self;
        Painter { system, pack, seed, interrupt, done }
    }

    fn judge(&self, exhibits: &[Exhibit]) -> Result<Vec<Verdict>> {
        let draws = Draws { seed: self.seed, ..Draws::default() };
        let settings = Settings { draws, fd_reps: self.fd_reps, ..Settings::default() };
        let side = self.system.config.msvq.image;
        let classes = [settings.classes.positive.as_str(), settings.classes.negative.as_str()];
        let train = training(self.pack, side, &classes)?;
        // Reference, floor, own, shuffled, recon, three blurs, one colour; f_hat where there is
        // one.
        let sets = |e: &Exhibit| 9 + usize::from(e.recon_fhat.is_some());
        let all: usize = exhibits.iter().map(|e| sets(e) * e.real.tiles.n()).sum();
        let bar = Shared::new("features", all + train.tiles.n());
        let look = |tiles: &Tiles| {
            self.interrupt.check()?;
            self.extractor.extract_each(tiles, &|| bar.one())
        };
        let judge = Judge::new(&look, self.extractor.name(), &train, settings)?;
        let verdicts = exhibits.iter().map(|e| judge.verdict(&e.held_out())).collect();
        bar.finish();
        verdicts
    }
}

impl Exhibit {
    fn held_out(&self) -> HeldOut<'_> {
        HeldOut {
            name: &self.name,
            real: &self.real,
            floor: &self.floor.tiles,
            own: &self.painted.own,
            shuffled: &self.painted.shuffled,
            recon: &self.recon,
            recon_fhat: self.recon_fhat.as_ref(),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for verdict in &self.verdicts {
            writeln!(f, "{}\n{}", verdict.name, verdict.table)?;
            match &verdict.probe {
                Some(probe) => writeln!(f, "{}\n", probe.sentence())?,
                None => writeln!(f, "No probe: the split lacks one of its classes.\n")?,
            }
        }
        write!(f, "Painting took {:.0} ms a tile.", 1e3 * self.seconds_per_tile)
    }
}
