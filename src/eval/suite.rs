//! How a trained system is judged on a held-out split: distances, and whether the RNA matters.
//!
//! Distances ask whether tiles look real. They cannot ask whether the RNA matters: shuffling the
//! RNA among tiles leaves the set as it was. That is asked of a probe fitted on real training
//! tiles: does it find the tissue class of a profile in the tile painted from it, and lose it when
//! the tile comes from another profile?

use super::Features;
use super::bootstrap::{Draws, auc_interval, paired_auc};
use super::metrics::{ProbeReport, Verdict};
use super::probe::{Classes, Probe, ProbeConfig};
use super::protocol::Windows;
use super::table::{Seen, Table, with_anchors};
use super::tiles::Tiles;
use crate::error::{Error, Result, Within};

/// A held-out split: real tiles, and what was made for them. All sets have the same n, and tile i
/// of each belongs to the same profile.
#[derive(Clone, Copy, Debug)]
pub struct HeldOut<'a> {
    /// Its name, for reports and errors.
    pub name: &'a str,
    /// Real tiles: the reference.
    pub real: &'a Windows,
    /// Real tiles disjoint from the reference: the floor, and what the anchors are made from.
    pub floor: &'a Tiles,
    /// Painted from the RNA of each reference tile.
    pub own: &'a Tiles,
    /// Painted from another tile's RNA.
    pub shuffled: &'a Tiles,
    /// The floor through the tokenizer and back.
    pub recon: &'a Tiles,
    /// The floor through the tokenizer, its last scale predicted by Phi, if there is one.
    pub recon_fhat: Option<&'a Tiles>,
}

/// How to judge.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the probe tells apart.
    pub classes: Classes,
    /// The probe's size.
    pub probe: ProbeConfig,
    /// Bootstrap of the AUCs.
    pub draws: Draws,
    /// Bootstrap repetitions of each distance, which are dearer.
    pub fd_reps: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            classes: Classes::default(),
            probe: ProbeConfig::default(),
            draws: Draws::default(),
            fd_reps: 50,
        }
    }
}

/// A probe fitted on real training tiles, ready to judge.
pub struct Judge<'a> {
    look: &'a dyn Fn(&Tiles) -> Result<Features>,
    distance: String,
    settings: Settings,
    probe: Probe,
    train: &'a Windows,
}

impl<'a> Judge<'a> {
    /// Fits the probe. `look` turns tiles into features, `distance` names the distance in them.
    ///
    /// # Errors
    /// Training tiles without the probe's classes.
    pub fn new(
        look: &'a dyn Fn(&Tiles) -> Result<Features>,
        distance: String,
        train: &'a Windows,
        settings: Settings,
    ) -> Result<Self> {
        let (which, labels) = settings.classes.pick(&train.classes);
        let features = match which.is_empty() {
            true => {
                let Classes { positive, negative } = &settings.classes;
                let what = format!("no training tile is {positive} or {negative}");
                return Err(Error::data(what, "label the tiles, or name other classes"));
            }
            false => look(&train.tiles.select(&which))?,
        };
        let probe = Probe::fit(&features, &labels, settings.probe).within("training tiles")?;
        Ok(Self { look, distance, settings, probe, train })
    }

    /// Judges one split.
    ///
    /// # Errors
    /// Sets that do not fit together, or a tile that the probe was fitted on.
    pub fn verdict(&self, held: &HeldOut<'_>) -> Result<Verdict> {
        self.check(held).within(held.name)?;
        let real = (self.look)(&held.real.tiles)?;
        let (own, shuffled) = ((self.look)(held.own)?, (self.look)(held.shuffled)?);
        let table = self.distances(held, &real, [&own, &shuffled]).within(held.name)?;
        let probe = self.ask(held, &real, [&own, &shuffled]).within(held.name)?;
        Ok(Verdict { name: held.name.into(), table, probe })
    }

    fn distances(
        &self,
        held: &HeldOut<'_>,
        real: &Features,
        [own, shuffled]: [&Features; 2],
    ) -> Result<Table> {
        let mut sets = vec![("fd_recon", held.recon.clone())];
        sets.extend(held.recon_fhat.map(|tiles| ("fd_recon_fhat", tiles.clone())));
        sets.extend(with_anchors(held.floor));
        let features: Vec<Features> =
            sets.iter().map(|(_, tiles)| (self.look)(tiles)).collect::<Result<_>>()?;
        let seen = |key, tiles: &'_ Tiles| (key, tiles.name().to_string());
        let mut names = vec![seen("fd_generated", held.own), seen("fd_shuffled", held.shuffled)];
        names.extend(sets.iter().map(|(key, tiles)| seen(*key, tiles)));
        let all = [own, shuffled].into_iter().chain(&features);
        let rows: Vec<Seen<'_>> = names
            .iter()
            .zip(all)
            .map(|((key, name), features)| Seen { key, name, features })
            .collect();
        let reference = Seen { key: "real", name: held.real.tiles.name(), features: real };
        let draws = Draws { reps: self.settings.fd_reps, ..self.settings.draws };
        Table::of(self.distance.clone(), reference, &rows, Some(&held.real.images), draws)
    }

    /// The probe's answers, or nothing for a split that lacks one of its classes.
    fn ask(
        &self,
        held: &HeldOut<'_>,
        real: &Features,
        [own, shuffled]: [&Features; 2],
    ) -> Result<Option<ProbeReport>> {
        let (which, labels) = self.settings.classes.pick(&held.real.classes);
        let positives = labels.iter().filter(|&&l| l).count();
        if positives == 0 || positives == labels.len() {
            return Ok(None);
        }
        let groups: Vec<usize> = which.iter().map(|&i| held.real.images[i]).collect();
        let score = |f: &Features| self.probe.score(&f.select(&which));
        let draws = self.settings.draws;
        let auc_real = auc_interval(&labels, &score(real)?, &groups, draws)?;
        let paired = paired_auc(&labels, &score(own)?, &score(shuffled)?, &groups, draws)?;
        let mut distinct = groups;
        distinct.dedup();
        Ok(Some(ProbeReport {
            split: held.name.into(),
            classes: self.settings.classes.clone(),
            trained_on: self.settings.classes.pick(&self.train.classes).0.len(),
            positives,
            negatives: labels.len() - positives,
            profiles: distinct.len(),
            auc_real,
            auc_own_rna: paired.own,
            auc_shuffled_rna: paired.shuffled,
            difference: paired.difference,
            difference_interval: paired.difference_interval,
            rna_matters: paired.rna_matters(),
        }))
    }

    /// Refuses a tile on both sides of the probe, and sets of several sizes.
    fn check(&self, held: &HeldOut<'_>) -> Result<()> {
        let train: std::collections::HashSet<&String> = self.train.ids.iter().collect();
        if let Some(id) = held.real.ids.iter().find(|id| train.contains(id)) {
            return Err(Error::data(
                format!("tile {id} is also one of the training tiles"),
                "keep splits apart: a probe may not be asked about what it was fitted on",
            ));
        }
        let like = &held.real.tiles;
        let others = [&self.train.tiles, held.floor, held.own, held.shuffled, held.recon];
        for tiles in others.into_iter().chain(held.recon_fhat) {
            if tiles.size() != like.size() {
                return Err(Error::data(
                    format!("{}: {:?}, not {:?} pixels", tiles.name(), tiles.size(), like.size()),
                    "bring all to one size and one resolution first",
                ));
            }
        }
        Ok(())
    }
}
