//! Curves of one or more runs, stage by stage: a colour a run, or a colour a number where there is
//! one run.

use super::{Run, StageRun};
use crate::report::Chart;

/// A chart of numbers of a log. A name that ends in `_*` stands for one number a scale.
struct Spec {
    title: &'static str,
    y: &'static str,
    names: &'static [&'static str],
    log: bool,
    note: &'static str,
}

const fn spec(
    title: &'static str,
    y: &'static str,
    names: &'static [&'static str],
    note: &'static str,
) -> Spec {
    Spec { title, y, names, log: false, note }
}

const PRIOR: [Spec; 3] = [
    spec(
        "Error of the reconstruction",
        "squared error a gene",
        &["mse", "val_mse"],
        "Standardised genes: 1 is what the mean profile reaches. val_ is held out.",
    ),
    spec("KL divergence", "nats a profile", &["kl"], ""),
    spec("Dimensions of z that vary", "dimensions", &["active"], "Variance above 0.01."),
];

const TOKENIZER: [Spec; 6] = [
    spec("Loss", "loss", &["loss"], ""),
    spec(
        "Parts of the loss",
        "unweighted",
        &["l2", "l1", "ssim_loss", "vq", "perceptual", "gan", "features", "disc"],
        "",
    ),
    spec("Held-out tiles", "PSNR, dB", &["val_psnr"], "Through the tokenizer and back."),
    spec("Held-out tiles", "MS-SSIM", &["val_ms_ssim"], "1 is the tile itself."),
    spec("Codes", "codes", &["live", "moved"], "In use, and moved onto data at the step."),
    spec(
        "Perplexity of the codes",
        "codes",
        &["perplexity_*"],
        "How many codes a scale uses evenly. Scale 1 is one token a tile.",
    ),
];

const FLOW: [Spec; 3] = [
    spec("Loss", "loss", &["loss"], ""),
    spec(
        "Error of the velocity",
        "squared error an element",
        &["mse", "mse_equal_times"],
        "With equal times it is plain flow matching.",
    ),
    spec("Length of the velocity", "predicted / true", &["length_ratio"], "1 is right."),
];

const TRANSFORMER: [Spec; 5] = [
    spec(
        "Cross-entropy",
        "nats a token",
        &["loss", "val_own", "val_null"],
        "Held out under the tile's own RNA and under none.",
    ),
    spec("Held-out cross-entropy by scale", "nats a token", &["val_own_*"], "Under own RNA."),
    spec(
        "What the RNA tells",
        "nats a token",
        &["val_gap"],
        "Cross-entropy without RNA minus that with it, held out: above zero it helps.",
    ),
    spec("What the RNA tells, by scale", "nats a token", &["val_gap_*"], ""),
    spec("Positions that the mask keeps", "share", &["keep_rate"], ""),
];

const ALL: [Spec; 2] = [
    spec("Learning rate", "learning rate", &["lr"], ""),
    Spec { log: true, ..spec("Gradient norm", "norm, before it is cut", &["grad_norm"], "") },
];

fn specs(stage: &str) -> &'static [Spec] {
    match stage {
        "beta_vae" => &PRIOR,
        "msvq" => &TOKENIZER,
        "meanflow" => &FLOW,
        "ar" => &TRANSFORMER,
        _ => &TOKENIZER[..1],
    }
}

/// The charts of a stage, each with a note; those without a number are left out.
pub fn charts(runs: &[Run], stage: &str) -> Vec<(Chart, String)> {
    let with: Vec<(usize, &Run, &StageRun)> =
        runs.iter().enumerate().filter_map(|(i, r)| Some((i, r, r.stage(stage)?))).collect();
    let mut out = Vec::new();
    let mut told = vec!["loss".to_string(), "lr".to_string()];
    for spec in specs(stage).iter().chain(&ALL) {
        told.extend(spec.names.iter().map(ToString::to_string));
        match spec.names {
            [one] if one.ends_with("_*") => {
                // Lines of several scales of several runs in one chart could not be told apart.
                for (_, run, own) in &with {
                    let title = match runs.len() {
                        1 => spec.title.to_string(),
                        _ => format!("{}: {}", spec.title, run.name),
                    };
                    let names = scales(own, one);
                    let lines = names.iter().map(|n| (scale_name(n), own.curve(n)));
                    let chart = Chart::new(&title, "step", spec.y);
                    let chart = lines.fold(chart, |c, (name, points)| c.series(&name, points));
                    out.push((chart, spec.note.to_string()));
                }
            }
            names => out.push((overlaid(runs.len(), &with, spec, names), spec.note.to_string())),
        }
    }
    let known = |name: &str| {
        told.iter().any(|t| match t.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => t == name,
        })
    };
    let mut rest: Vec<&str> = with.iter().flat_map(|(_, _, s)| s.names()).collect();
    rest.retain(|name| !known(name));
    rest.sort_unstable();
    rest.dedup();
    for name in rest {
        let spec = Spec { title: "", ..spec("", "value", &[], "") };
        let chart = overlaid(runs.len(), &with, &spec, &[name]);
        out.push((chart.titled(name), String::new()));
    }
    out.retain(|(chart, _)| !chart.is_empty());
    let last = with.iter().filter_map(|(_, _, s)| s.log.last()).map(|(step, _)| *step).max();
    let last = last.unwrap_or(0) as f64;
    out.into_iter().map(|(chart, note)| (chart.spanning(0.0, last), note)).collect()
}

fn overlaid(runs: usize, with: &[(usize, &Run, &StageRun)], spec: &Spec, names: &[&str]) -> Chart {
    let mut chart = Chart::new(spec.title, "step", spec.y);
    if spec.log {
        chart = chart.log_y();
    }
    for (i, run, own) in with {
        for (n, name) in names.iter().enumerate() {
            let points = own.curve(name);
            if points.is_empty() {
                continue;
            }
            let (label, looks) = match (runs, names.len()) {
                (1, _) => ((*name).to_string(), (n, n)),
                (_, 1) => (run.name.clone(), (*i, 0)),
                _ => (format!("{} · {name}", run.name), (*i, n)),
            };
            chart = chart.drawn(&label, points, looks);
        }
    }
    chart
}

/// The numbers of a log that `pattern` stands for, by scale.
pub fn scales(stage: &StageRun, pattern: &str) -> Vec<String> {
    let start = pattern.trim_end_matches('*');
    let names = stage.names();
    let has = |k: &usize| names.contains(format!("{start}{k}").as_str());
    (1..).take_while(has).map(|k| format!("{start}{k}")).collect()
}

fn scale_name(name: &str) -> String {
    format!("scale {}", name.rsplit('_').next().unwrap_or_default())
}
