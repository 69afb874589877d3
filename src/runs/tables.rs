//! Tables of the page: stages, scales, distances, time.

use super::distances::Judged;
use super::{Run, StageRun, curves, title};
use crate::eval::table::{Row, meaning};
use crate::report::Report;
use crate::train::clock::pace;

/// Logged steps whose mean stands for the beginning and for the end of a curve.
const ENDS: usize = 10;
/// What a held-out number is called, by stage.
const HELD: [(&str, &[&str]); 3] = [
    ("beta_vae", &["val_mse"]),
    ("msvq", &["val_psnr", "val_ms_ssim"]),
    ("ar", &["val_own", "val_null"]),
];

/// The stages of all runs.
pub fn stages(page: &mut Report, runs: &[Run]) {
    let mut rows = Vec::new();
    for run in runs {
        for stage in &run.stages {
            let done = stage.done();
            let planned = run.planned(&stage.name).filter(|p| *p != done);
            let held = HELD.iter().find(|h| h.0 == stage.name).map_or(&[][..], |h| h.1);
            let held: Vec<String> = held
                .iter()
                .filter_map(|name| Some(format!("{name} {:.4}", stage.newest(name)?)))
                .collect();
            let (first, last) = ends(stage);
            rows.push(vec![
                run.name.clone(),
                stage.name.clone(),
                planned.map_or(done.to_string(), |p| format!("{done} of {p}")),
                first,
                last,
                held.join(", "),
            ]);
        }
    }
    let header = ["run", "stage", "steps", "loss at first", "loss at last", "held out, newest"];
    page.table("Losses are means over the first and the last ten logged steps.", &header, &rows);
}

fn ends(stage: &StageRun) -> (String, String) {
    let all = stage.curve("loss");
    let few = ENDS.min(all.len().div_ceil(2));
    let mean = |part: &[(f64, f64)]| match part.len() {
        0 => "–".to_string(),
        n => format!("{:.4}", part.iter().map(|p| p.1).sum::<f64>() / n as f64),
    };
    (mean(&all[..few]), mean(&all[all.len() - few..]))
}

/// The scales of a run: use of codes, and how well tokens are predicted.
pub fn scales(page: &mut Report, run: &Run) {
    let newest = |stage: &str, pattern: &str| -> Vec<f64> {
        let Some(stage) = run.stage(stage) else { return Vec::new() };
        let names = curves::scales(stage, pattern);
        names.iter().filter_map(|n| stage.newest(n)).collect()
    };
    let codes = newest("msvq", "perplexity_*");
    let (own, gap) = (newest("ar", "val_own_*"), newest("ar", "val_gap_*"));
    let n = codes.len().max(own.len()).max(gap.len());
    if n == 0 {
        page.text(&format!(
            "{} has logged neither the use of its codes nor the cross-entropy of its scales.",
            run.name
        ));
        return;
    }
    let sides = run.config.as_ref().map(|c| c.msvq.patch_nums.clone()).unwrap_or_default();
    let cell = |x: Option<f64>, digits: usize| x.map_or("–".into(), |x| format!("{x:.digits$}"));
    let row = |k: usize| {
        let side = sides.get(k);
        vec![
            (k + 1).to_string(),
            side.map_or("–".into(), |s| format!("{s} x {s}")),
            side.map_or("–".into(), |s| (s * s).to_string()),
            cell(codes.get(k).copied(), 1),
            cell(own.get(k).copied(), 3),
            cell(own.get(k).map(|x| x.exp()), 1),
            cell(gap.get(k).copied(), 4),
        ]
    };
    let rows: Vec<Vec<String>> = (0..n).map(row).collect();
    let header = [
        "scale",
        "map",
        "tokens",
        "codes used evenly",
        "cross-entropy, nats",
        "perplexity",
        "RNA saves, nats",
    ];
    let book = run.config.as_ref().map_or(String::new(), |c| format!(" of {}", c.msvq.vocab));
    let live = run.stage("msvq").and_then(|s| s.newest("live"));
    let live = live.map_or(String::new(), |l| format!(" {l:.0}{book} codes are in use."));
    let caption = format!(
        "{}, at the newest step that logged it: perplexity of the codes that the tokenizer draws \
         on, and the transformer's cross-entropy a token on held-out tiles under their own \
         RNA.{live}",
        run.name
    );
    page.table(&caption, &header, &rows);
}

/// A table of distances and the probe's sentence.
pub fn distances(page: &mut Report, judged: &Judged) {
    let table = &judged.table;
    let mut sets: Vec<_> = table.rows.iter().collect();
    sets.sort_by(|a, b| a.fd.total_cmp(&b.fd));
    let named = sets.iter().any(|r| r.set != r.key);
    let row = |r: &&Row| {
        let interval = format!("{:.1}–{:.1}", r.interval.low, r.interval.high);
        let key = [r.key.clone(), format!("{:.1}", r.fd), interval, meaning(&r.key).into()];
        key.into_iter().chain(named.then(|| r.set.clone())).collect()
    };
    let rows: Vec<Vec<String>> = sets.iter().map(row).collect();
    let header = ["set", "distance", "interval", "meaning", "tiles"];
    let header = &header[..if named { 5 } else { 4 }];
    let level = match table.reps {
        0 => "bootstrap intervals".to_string(),
        reps => format!("{:.0} % bootstrap intervals, {reps} repetitions", 100.0 * table.level),
    };
    let caption = format!(
        "{} from {} ({} tiles in each set), the nearest first; {level}. Read from {}.",
        table.distance, table.reference, table.n, judged.from
    );
    page.table(&caption, header, &rows);
    if let Some(probe) = &judged.probe {
        page.text(&probe.sentence());
    }
}

/// How long stages took and where.
pub fn time(page: &mut Report, runs: &[Run]) {
    let mut rows = Vec::new();
    for (run, stage) in runs.iter().flat_map(|r| r.stages.iter().map(move |s| (r, s))) {
        let Some(pace) = pace(&stage.marks) else { continue };
        rows.push(vec![
            run.name.clone(),
            stage.name.clone(),
            pace.steps.to_string(),
            format!("{:.1}", pace.seconds),
            format!("{:.3}", pace.steps as f64 / pace.seconds.max(1e-9)),
            pace.processes.to_string(),
            pace.devices.join("; "),
        ]);
    }
    if rows.is_empty() {
        page.text(
            "No clock was kept: the runs were trained before clock.jsonl was written, or none of \
             their processes came to a checkpoint.",
        );
        return;
    }
    let header = ["run", "stage", "steps", "seconds", "steps/s", "processes", "where"];
    let caption = "From clock.jsonl, which is written with each checkpoint: steps that were taken \
                   twice count twice, pauses do not count.";
    page.table(caption, &header, &rows);
}

/// The sentences about what a run lacks.
pub fn lacks(page: &mut Report, runs: &[Run]) {
    for run in runs.iter().filter(|r| !r.said.is_empty()) {
        let said = run.said.join(" ");
        page.text(&if runs.len() > 1 { format!("{}: {said}", run.name) } else { said });
    }
}

/// The heading of a stage.
pub fn heading(stage: &str) -> String {
    let title = title(stage);
    title.strip_prefix("The ").map_or(title.to_string(), |t| {
        let mut letters = t.chars();
        letters.next().map_or(String::new(), |c| c.to_uppercase().chain(letters).collect())
    })
}
