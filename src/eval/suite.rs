//! Everything a run is judged by, from sets of tiles to the numbers of `metrics.json`.
//!
//! Distances ask whether tiles look real. They cannot ask whether the RNA matters: shuffling the
//! RNA among tiles leaves the set as it was. That is asked of a probe fitted on real training
//! tiles: does it find the tissue class of a profile in the tile painted from it, and lose it when
//! the tile comes from another profile?

use super::bootstrap::{Draws, Paired, Scored, auc_interval, paired_auc};
use super::features::Extractor;
use super::metrics::{Costs, Metrics, ProbeReport};
use super::probe::{Classes, Probe, ProbeConfig};
use super::table::{Table, with_anchors};
use super::tiles::Tiles;
use crate::error::{Error, Result, Within};

/// Sets for the distances. All are drawn down to the smallest one's n.
#[derive(Clone, Copy, Debug)]
pub struct DistanceSets<'a> {
    /// Real tiles: the reference.
    pub real: &'a Tiles,
    /// Real tiles disjoint from the reference: the floor, and what the anchors are made from.
    pub other: &'a Tiles,
    /// Tiles painted from held-out RNA.
    pub generated: &'a Tiles,
    /// `other` through the tokenizer and back.
    pub recon: &'a Tiles,
    /// `other` through the tokenizer and the one-step prediction f_hat_K, if there is one.
    pub recon_fhat: Option<&'a Tiles>,
}

/// Real tiles with their tissue classes.
#[derive(Clone, Copy, Debug)]
pub struct Labelled<'a> {
    /// The tiles.
    pub tiles: &'a Tiles,
    /// The class of each, by name; tiles of classes that the probe does not know are left out.
    pub classes: &'a [String],
    /// A name for each that is unique in the data set: how leakage is noticed.
    pub ids: &'a [String],
}

/// Painted tiles; tile i stands for profile `profiles[i]` of class `classes[i]`.
#[derive(Clone, Copy, Debug)]
pub struct Painted<'a> {
    /// Tile i painted from its own profile.
    pub own: &'a Tiles,
    /// Tile i painted from another tile's profile.
    pub shuffled: &'a Tiles,
    /// Class of the own profile.
    pub classes: &'a [String],
    /// Number of the own profile; several tiles may share one.
    pub profiles: &'a [usize],
}

/// A held-out split for the probe.
#[derive(Clone, Copy, Debug)]
pub struct ProbeSplit<'a> {
    /// Its name, for reports and errors.
    pub name: &'a str,
    /// Its real tiles.
    pub real: Labelled<'a>,
    /// Tiles painted from its RNA.
    pub painted: Painted<'a>,
}

/// All that is judged.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// For the distances.
    pub distances: DistanceSets<'a>,
    /// Real training tiles for the probe.
    pub train: Labelled<'a>,
    /// The validation split.
    pub validation: ProbeSplit<'a>,
    /// The unseen patient, where there is one.
    pub unseen: Option<ProbeSplit<'a>>,
}

/// How to judge.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the probe tells apart.
    pub classes: Classes,
    /// The probe's size.
    pub probe: ProbeConfig,
    /// Bootstrap of the AUCs; its seed also draws the distance sets.
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
            fd_reps: 100,
        }
    }
}

/// Judges a run. `step` hears what is being worked on, for a progress display.
///
/// # Errors
/// `Data` when sets do not fit together, a class is missing from a split, or a tile the probe is
/// trained on is also one it is asked about.
pub fn suite(
    extractor: &Extractor,
    inputs: &Inputs<'_>,
    costs: Costs,
    settings: &Settings,
    step: &mut dyn FnMut(&str),
) -> Result<Metrics> {
    check_leaks(inputs)?;
    let distances = distances(extractor, &inputs.distances, settings, step)?;
    step("the tissue-class probe");
    let (train, labels) = pick(inputs.train, &settings.classes)?;
    let features = extractor.extract(&train)?;
    let probe = Probe::fit(&features, &labels, settings.probe).within("training tiles")?;
    let mut ask = |split: &ProbeSplit<'_>| {
        step(split.name);
        ask_probe(extractor, &probe, split, settings).within(split.name)
    };
    let validation = ask(&inputs.validation)?;
    let unseen = inputs.unseen.as_ref().map(ask).transpose()?;
    Metrics::new(distances, validation, unseen, costs)
}

/// The distance table of a run; keys as in [`Metrics`].
///
/// # Errors
/// As [`Table::measure`].
pub fn distances(
    extractor: &Extractor,
    sets: &DistanceSets<'_>,
    settings: &Settings,
    step: &mut dyn FnMut(&str),
) -> Result<Table> {
    let given = [Some(sets.real), Some(sets.other), Some(sets.generated), Some(sets.recon)];
    let n = given.into_iter().chain([sets.recon_fhat]).flatten().map(Tiles::n).min().unwrap_or(0);
    let draw = |tiles: &Tiles| tiles.draw(n, settings.draws.seed);
    let mut rows = vec![("fd_generated", draw(sets.generated)), ("fd_recon", draw(sets.recon))];
    rows.extend(sets.recon_fhat.map(|tiles| ("fd_recon_fhat", draw(tiles))));
    rows.extend(with_anchors(&draw(sets.other)));
    let rows: Vec<(&str, &Tiles)> = rows.iter().map(|(key, tiles)| (*key, tiles)).collect();
    let draws = Draws { reps: settings.fd_reps, ..settings.draws };
    Table::measure(extractor, &draw(sets.real), &rows, draws, step)
}

fn ask_probe(
    extractor: &Extractor,
    probe: &Probe,
    split: &ProbeSplit<'_>,
    settings: &Settings,
) -> Result<ProbeReport> {
    let (real, labels) = pick(split.real, &settings.classes)?;
    let scores = probe.score(&extractor.extract(&real)?)?;
    let each: Vec<usize> = (0..labels.len()).collect();
    let on_real = auc_interval(&labels, &scores, &each, settings.draws).within("real tiles")?;
    let painted =
        ask_painted(extractor, probe, &split.painted, settings).within("painted tiles")?;
    let Asked { paired, positives, negatives, profiles } = painted;
    Ok(ProbeReport {
        split: split.name.into(),
        classes: settings.classes.clone(),
        real_tiles: labels.len(),
        positives,
        negatives,
        profiles,
        auc_real: on_real,
        auc_own_rna: paired.own,
        auc_shuffled_rna: paired.shuffled,
        difference: paired.difference,
        difference_interval: paired.difference_interval,
        rna_matters: paired.rna_matters(),
    })
}

/// The probe's answer about painted tiles.
struct Asked {
    paired: Paired,
    positives: usize,
    negatives: usize,
    profiles: usize,
}

fn ask_painted(
    extractor: &Extractor,
    probe: &Probe,
    painted: &Painted<'_>,
    settings: &Settings,
) -> Result<Asked> {
    let n = painted.own.n();
    let counts = [painted.shuffled.n(), painted.classes.len(), painted.profiles.len()];
    if counts.iter().any(|&c| c != n) {
        let [shuffled, classes, profiles] = counts;
        return Err(Error::data(
            format!(
                "{n} own tiles, {shuffled} shuffled tiles, {classes} classes, {profiles} profiles"
            ),
            "give one of each for every tile",
        ));
    }
    let (which, labels) = settings.classes.pick(painted.classes);
    let groups: Vec<usize> = which.iter().map(|&i| painted.profiles[i]).collect();
    let score = |tiles: &Tiles| probe.score(&extractor.extract(&tiles.select(&which))?);
    let (own, shuffled) = (score(painted.own)?, score(painted.shuffled)?);
    let paired = paired_auc(&labels, &own, &shuffled, &groups, settings.draws)?;
    let positives = labels.iter().filter(|&&l| l).count();
    let mut distinct = groups;
    distinct.sort_unstable();
    distinct.dedup();
    Ok(Asked { paired, positives, negatives: labels.len() - positives, profiles: distinct.len() })
}

/// The tiles of the probe's classes, with their labels.
fn pick(set: Labelled<'_>, classes: &Classes) -> Result<(Tiles, Vec<bool>)> {
    if set.classes.len() != set.tiles.n() {
        return Err(Error::data(
            format!("{}: {} tiles, {} classes", set.tiles.name(), set.tiles.n(), set.classes.len()),
            "give one class a tile",
        ));
    }
    let (which, labels) = classes.pick(set.classes);
    Ok((set.tiles.select(&which), labels))
}

/// Refuses a tile on both sides of the probe.
fn check_leaks(inputs: &Inputs<'_>) -> Result<()> {
    let train: std::collections::HashSet<&String> = inputs.train.ids.iter().collect();
    for split in [Some(inputs.validation), inputs.unseen].into_iter().flatten() {
        if let Some(id) = split.real.ids.iter().find(|id| train.contains(id)) {
            return Err(Error::data(
                format!("tile {id} is in the training tiles and in {}", split.name),
                "keep splits apart: a probe may not be asked about what it was fitted on",
            ));
        }
        let size = inputs.train.tiles.size();
        for tiles in [split.real.tiles, split.painted.own, split.painted.shuffled] {
            if tiles.size() != size {
                return Err(Error::data(
                    format!(
                        "tiles of {} are {:?}, training tiles {size:?}",
                        tiles.name(),
                        tiles.size()
                    ),
                    "bring all to one size and one resolution first",
                ));
            }
        }
    }
    Ok(())
}

impl ProbeReport {
    /// A sentence for people.
    pub fn sentence(&self) -> String {
        let Scored { auc, .. } = self.auc_own_rna;
        let verdict = match self.rna_matters {
            true => "so the RNA shows in the tiles",
            false => "so these tiles do not show that the RNA matters",
        };
        format!(
            "{}: AUC {auc:.3} on tiles from their own RNA, {:.3} from shuffled RNA, {:.3} on real \
             tiles; the difference lies in [{:.3}, {:.3}], {verdict}.",
            self.split,
            self.auc_shuffled_rna.auc,
            self.auc_real.auc,
            self.difference_interval.low,
            self.difference_interval.high
        )
    }
}
