//! The demo's report: picture, numbers with their meaning, curves, and what held it back.

use crate::config::Config;
use crate::config::short::settings;
use crate::error::Result;
use crate::eval::bootstrap::{Interval, Scored};
use crate::eval::metrics::{Costs, Metrics, ProbeReport, Verdict};
use crate::eval::table::meaning;
use crate::io::images::Rgb;
use crate::report::{Chart, Report};
use crate::train::log::StepLog;

use super::scratch::Curves;

/// Numbers of the log that are drawn, by stage; those that a log lacks are left out.
const DRAWN: [(&str, &str, &[&str]); 4] = [
    ("beta_vae", "Gene prior (beta-VAE)", &["mse", "val_mse"]),
    ("msvq", "Tokenizer (MSVQ)", &["loss"]),
    ("meanflow", "Causal MeanFlow", &["mse", "mse_equal_times"]),
    ("ar", "Masked scale-wise transformer", &["loss", "val_own", "val_null"]),
];
/// Logged steps whose mean stands for the beginning and for the end of a curve.
const ENDS: usize = 10;

/// Everything that the page tells.
pub struct Story<'a> {
    /// The numbers.
    pub metrics: &'a Metrics,
    /// What they cost.
    pub costs: Costs,
    /// The picture.
    pub tiles: &'a Rgb,
    /// What the system trained in this demo paints.
    pub first: &'a Rgb,
    /// Its curves.
    pub curves: &'a Curves,
    /// Its settings.
    pub scratch: &'a Config,
    /// The settings of the system that comes with the repository.
    pub shipped: &'a Config,
    /// Licence and source of the data.
    pub notice: &'a str,
}

/// Bytes for people.
pub fn megabytes(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}

fn fd(verdict: &Verdict, key: &str) -> Option<f64> {
    verdict.table.row(key).map(|r| r.fd)
}

fn between(i: &Interval, digits: usize) -> String {
    format!("{:.digits$}–{:.digits$}", i.low, i.high)
}

impl Story<'_> {
    /// The page.
    ///
    /// # Errors
    /// A picture that cannot be encoded.
    pub fn page(&self) -> Result<Report> {
        let mut page = Report::new("genevar: H&E tiles from RNA");
        page.text(
            "A gene prior, a tokenizer, Causal MeanFlow and a masked transformer turn an RNA \
             profile into a tile of stained tissue. This page shows what the system that comes \
             with the repository paints for RNA it has never seen, how that is measured, and a \
             training of all four parts from nothing that was killed on the way.",
        );
        page.picture(
            "Each column is one tissue spot. From the top: the real tile; a tile painted from the \
             RNA measured in that spot; the same with another spot's RNA and the same random \
             numbers; the real tile through the tokenizer and back, which is the best that a \
             painted tile could look. Pixels are shown twice enlarged, unretouched and unselected.",
            self.tiles,
        )?;
        self.headline(&mut page);
        distances(&mut page, &self.metrics.validation);
        if let Some(unseen) = &self.metrics.unseen {
            distances(&mut page, unseen);
        }
        self.conditioning(&mut page);
        page.heading("What held it back");
        for finding in self.findings() {
            page.text(&finding);
        }
        self.training(&mut page)?;
        self.closing(&mut page);
        Ok(page)
    }

    fn headline(&self, page: &mut Report) {
        let v = &self.metrics.validation;
        let number = |key: &str| fd(v, key).map_or("–".into(), |x| format!("{x:.1}"));
        page.heading("In numbers");
        page.metric(
            "fd_generated",
            number("fd_generated"),
            &format!(
                "Distance of painted from real tiles, n = {}. Real tiles are {} from other real \
                 tiles; blurred by 2 pixels they are {} away.",
                v.table.n,
                number("fd_real_floor"),
                number("fd_blur2")
            ),
        );
        page.metric(
            "fd_recon",
            number("fd_recon"),
            "The same for real tiles through the tokenizer and back: its share of the distance.",
        );
        if let Some(p) = &v.probe {
            page.metric(
                "probe_auc_own_rna",
                format!("{:.3}", p.auc_own_rna.auc),
                &format!(
                    "How well cancer and immune profiles are told apart by the tiles painted from \
                     them: 0.5 is chance, real tiles reach {:.3}, shuffled RNA {:.3}.",
                    p.auc_real.auc, p.auc_shuffled_rna.auc
                ),
            );
            page.metric("RNA shows", if p.rna_matters { "yes" } else { "no" }, &p.sentence());
        }
        page.metric(
            "sample_seconds_per_tile",
            format!("{:.3}", self.costs.sample_seconds_per_tile),
            "Wall-clock seconds of painting one tile with guidance, on this machine.",
        );
        page.metric(
            "peak memory",
            self.costs.peak_rss_bytes.map_or("unknown".into(), megabytes),
            "Largest resident memory of this program and its training together.",
        );
    }

    fn conditioning(&self, page: &mut Report) {
        page.heading("Does the RNA matter?");
        page.text(
            "A distance cannot tell: with the RNA shuffled among the tiles, the set of tiles stays \
             as it was. So a linear probe is fitted on real training tiles to tell cancer from \
             immune tissue, and then asked about painted tiles. If they follow their RNA, it finds \
             the class of the profile; with shuffled RNA it must not. Intervals are 95 % bootstrap \
             intervals over RNA profiles.",
        );
        let mut rows = Vec::new();
        let verdicts = [Some(&self.metrics.validation), self.metrics.unseen.as_ref()];
        for verdict in verdicts.into_iter().flatten() {
            match &verdict.probe {
                Some(probe) => rows.push(probe_row(probe)),
                None => rows.push(vec![verdict.name.clone(), "lacks a class".into()]),
            }
        }
        let header = [
            "split",
            "cancer",
            "immune",
            "real",
            "own RNA",
            "shuffled RNA",
            "own minus shuffled",
            "interval",
        ];
        page.table("AUC of the probe. Cancer and immune: tiles in each set.", &header, &rows);
    }

    /// What the numbers say about the weak places, in sentences.
    fn findings(&self) -> Vec<String> {
        let v = &self.metrics.validation;
        let mut out = Vec::new();
        let get = |key: &str| fd(v, key).unwrap_or(f64::NAN);
        let (generated, recon) = (get("fd_generated"), get("fd_recon"));
        let (blur, colour) = (get("fd_blur2"), get("fd_mean_colour"));
        out.push(match generated < blur && generated < 0.5 * colour {
            true => format!(
                "Painted tiles lie nearer to real ones ({generated:.1}) than real tiles blurred by \
                 2 pixels ({blur:.1}), and at less than half of what colour alone reaches \
                 ({colour:.1})."
            ),
            false => format!(
                "Painted tiles are {generated:.1} from real ones: real tiles blurred by 2 pixels \
                 are {blur:.1} away and tiles of one colour {colour:.1}. The aim, below both the \
                 blur and half of the colour, is missed."
            ),
        });
        out.push(match recon > 0.75 * generated {
            true => format!(
                "The tokenizer is the limit: real tiles through it and back are already {recon:.1} \
                 away. It has {} codes for {} pixels of side and was trained without a perceptual \
                 network, by choice.",
                self.shipped.msvq.vocab, self.shipped.msvq.image
            ),
            false => format!(
                "The tokenizer alone costs {recon:.1}; the rest of {generated:.1} is what the \
                 transformer adds: sequences of tokens that no real tile has."
            ),
        });
        if let Some(predicted) = fd(v, "fd_recon_fhat") {
            out.push(format!(
                "With its last scale predicted by Phi in one step, and not read from the tile, a \
                 reconstruction is {predicted:.1} away: the prediction is a sample, not the truth, \
                 and is only ever an input to the transformer."
            ));
        }
        for verdict in [Some(v), self.metrics.unseen.as_ref()].into_iter().flatten() {
            out.extend(verdict.probe.as_ref().map(about_rna));
        }
        out.push(
            "The data are small: one tumour of one patient to train on (sections C2 to C5), the \
             next section of the same tumour to validate on, and one other patient, whose spots \
             have about a third of the RNA counts."
                .into(),
        );
        out
    }

    fn training(&self, page: &mut Report) -> Result<()> {
        let kill = &self.curves.kill;
        page.heading("Trained from nothing, killed, resumed");
        page.text(&format!(
            "All four parts at toy size, {:.0} seconds in all. The process was killed without \
             warning in the stage {} after logged step {}; a new one went on from the checkpoint \
             at step {}. The steps between were taken twice, by two processes.",
            self.costs.train_seconds, kill.stage, kill.logged, kill.resumed_at
        ));
        let verdict = if kill.identical { "identical" } else { "DIFFERENT" };
        page.metric(
            "log after the resume",
            verdict,
            &format!(
                "Every line that the killed process had written, {} of them and {} of steps taken \
                 twice, compared byte by byte with the log that the resumed one left.",
                kill.logged,
                kill.logged.saturating_sub(kill.resumed_at)
            ),
        );
        let mut rows = Vec::new();
        for (stage, title, names) in DRAWN {
            let Some((_, log)) = self.curves.stages.iter().find(|(s, _)| *s == stage) else {
                continue;
            };
            let mut chart = Chart::new(title, "step", names.first().copied().unwrap_or("loss"));
            for name in names {
                let points = curve(log, name);
                if !points.is_empty() {
                    rows.extend(ends(title, name, &points));
                    chart = chart.series(name, points);
                }
            }
            if stage == kill.stage {
                chart = chart.mark(kill.resumed_at as f64, "killed and resumed");
            }
            page.chart(&chart, "Names beginning with val_ are of the validation split.");
        }
        let header = ["part", "number", "steps", "at first", "at last"];
        page.table("Means over the first and the last ten logged values.", &header, &rows);
        page.picture(
            "What the system of this training paints, below the real tiles of the same spots. \
             After a minute it knows the colours and little else.",
            self.first,
        )?;
        page.text("Its settings, as a file for `genevar train all --config`:");
        page.code(&settings(self.scratch)?);
        Ok(())
    }

    fn closing(&self, page: &mut Report) {
        page.heading("How it was made");
        page.text(&format!(
            "The whole demo took {:.0} seconds. The system of the repository was trained by this \
             program on the same pack; tools/demo/training has the commands and the logs. \
             FD-EffNet is the Frechet distance in features of EfficientNet-Lite0 at 224 pixels: a \
             stand-in that is not comparable with Inception FIDs, and only at equal n with itself.",
            self.costs.seconds
        ));
        page.text("Tiles are for method research. They are no medical images.");
        page.heading("The data");
        page.code(self.notice);
    }
}

fn distances(page: &mut Report, verdict: &Verdict) {
    let table = &verdict.table;
    page.heading(&format!("Distances: {}", verdict.name));
    let row = |r: &crate::eval::table::Row| {
        vec![r.set.clone(), format!("{:.1}", r.fd), between(&r.interval, 1), meaning(&r.key).into()]
    };
    let rows: Vec<Vec<String>> = table.rows.iter().map(row).collect();
    let caption = format!(
        "{} of each set from {} ({} tiles each). Brackets: {:.0} % bootstrap intervals over RNA \
         profiles, {} repetitions.",
        table.distance,
        table.reference,
        table.n,
        100.0 * table.level,
        table.reps
    );
    page.table(&caption, &["set", "distance", "interval", "meaning"], &rows);
}

fn probe_row(p: &ProbeReport) -> Vec<String> {
    let scored = |s: &Scored| format!("{:.3} ({})", s.auc, between(&s.interval, 2));
    vec![
        p.split.clone(),
        p.positives.to_string(),
        p.negatives.to_string(),
        scored(&p.auc_real),
        scored(&p.auc_own_rna),
        scored(&p.auc_shuffled_rna),
        format!("{:.3}", p.difference),
        format!("{:.3} to {:.3}", p.difference_interval.low, p.difference_interval.high),
    ]
}

fn about_rna(p: &ProbeReport) -> String {
    let (own, shuffled) = (p.auc_own_rna.auc, p.auc_shuffled_rna.auc);
    let Interval { low, high } = p.difference_interval;
    match (p.rna_matters, own > shuffled) {
        (true, _) => format!(
            "{}: the RNA shows. Own RNA reaches {own:.3} where shuffled RNA reaches {shuffled:.3}, \
             and the whole interval of the difference, {low:.3} to {high:.3}, lies above zero.",
            p.split
        ),
        (false, true) => format!(
            "{}: own RNA reaches {own:.3} and shuffled RNA {shuffled:.3}, but the interval of the \
             difference, {low:.3} to {high:.3}, holds zero: with {} profiles this may be chance.",
            p.split, p.profiles
        ),
        (false, false) => format!(
            "{}: own RNA ({own:.3}) is not above shuffled RNA ({shuffled:.3}): nothing here shows \
             that these tiles follow their RNA.",
            p.split
        ),
    }
}

fn curve(log: &[(u64, StepLog)], name: &str) -> Vec<(f64, f64)> {
    let value = |entry: &StepLog| match name {
        "loss" => Some(entry.loss),
        _ => entry.more.iter().find(|(n, _)| n == name).map(|(_, v)| *v),
    };
    log.iter().filter_map(|(step, entry)| Some((*step as f64, value(entry)?))).collect()
}

/// A line of the table of curves.
fn ends(title: &str, name: &str, points: &[(f64, f64)]) -> Option<Vec<String>> {
    let mean = |p: &[(f64, f64)]| p.iter().map(|v| v.1).sum::<f64>() / p.len().max(1) as f64;
    let few = ENDS.min(points.len().div_ceil(2));
    let steps = points.last()?.0 as u64 + 1;
    Some(vec![
        title.to_string(),
        name.to_string(),
        steps.to_string(),
        format!("{:.4}", mean(&points[..few])),
        format!("{:.4}", mean(&points[points.len() - few..])),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::scratch::{self, Kill};
    use crate::eval::probe::Classes;
    use crate::eval::table::{Row, Table};

    fn verdict(name: &str, generated: f64, own: f64) -> Verdict {
        let row = |key: &str, fd: f64| Row {
            key: key.into(),
            set: format!("{name} <{key}>"),
            fd,
            interval: Interval { low: fd - 1.0, high: fd + 1.0 },
        };
        let table = Table {
            distance: "FD-EffNet".into(),
            reference: "real tiles".into(),
            n: 356,
            level: 0.95,
            reps: 40,
            rows: vec![
                row("fd_generated", generated),
                row("fd_recon", 60.0),
                row("fd_recon_fhat", 90.0),
                row("fd_real_floor", 20.0),
                row("fd_blur2", 130.0),
                row("fd_mean_colour", 215.0),
            ],
        };
        let scored = |auc: f64| Scored { auc, interval: Interval { low: auc - 0.1, high: 0.9 } };
        let difference = own - 0.5;
        let probe = ProbeReport {
            split: name.into(),
            classes: Classes::default(),
            trained_on: 1386,
            positives: 172,
            negatives: 168,
            profiles: 170,
            auc_real: scored(0.75),
            auc_own_rna: scored(own),
            auc_shuffled_rna: scored(0.5),
            difference,
            difference_interval: Interval { low: difference - 0.1, high: difference + 0.1 },
            rna_matters: difference > 0.1,
        };
        Verdict { name: name.into(), table, probe: Some(probe) }
    }

    fn story(validation: Verdict, identical: bool) -> String {
        let unseen = verdict("unseen patient (B4)", 150.0, 0.45);
        let costs = Costs { peak_rss_bytes: Some(1_500_000_000), ..Costs::default() };
        let metrics = Metrics::new(&[validation, unseen], Some(costs)).unwrap();
        let log = |n: u64| (0..n).map(|s| (s, StepLog::new(1.0 / (s + 1) as f64, 1e-3))).collect();
        let kill = Kill { stage: "msvq", resumed_at: 40, logged: 47, identical };
        let curves = Curves {
            stages: vec![("msvq", log(60)), ("ar", log(30))],
            kill,
            seconds: 51.0,
            peak_rss: None,
        };
        let config = scratch::config(2000, 0).unwrap();
        let picture = Rgb::filled(4, 4, [200; 3]);
        let story = Story {
            metrics: &metrics,
            costs,
            tiles: &picture,
            first: &picture,
            curves: &curves,
            scratch: &config,
            shipped: &config,
            notice: "CC BY 4.0",
        };
        story.page().unwrap().render()
    }

    #[test]
    fn the_page_tells_every_number_and_loads_nothing() {
        let html = story(verdict("validation (C6)", 95.0, 0.68), true);
        for word in [
            "95.0",
            "60.0",
            "1500 MB",
            "killed and resumed",
            "identical",
            "CC BY 4.0",
            "validation (C6) &lt;fd_blur2&gt;",
            "the RNA shows",
            "is not above shuffled RNA",
            "tier = &quot;t0&quot;",
            "at less than half",
        ] {
            assert!(html.contains(word), "{word}");
        }
        assert_eq!(html.matches("<img").count(), 2);
        assert!(!html.contains("NaN") && !html.contains("src=\"h"));
    }

    #[test]
    fn bad_news_are_told() {
        let html = story(verdict("validation (C6)", 140.0, 0.55), false);
        for word in ["is missed", "this may be chance", "DIFFERENT"] {
            assert!(html.contains(word), "{word}");
        }
    }
}
