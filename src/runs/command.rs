//! `genevar report`: one page about runs.

use std::path::PathBuf;

use clap::Args;

use super::pictures::{Wanted, pictures};
use super::{Run, curves, distances, tables};
use crate::config::short::settings;
use crate::error::{Error, Result};
use crate::report::Report;
use crate::train::place::PlaceOptions;

/// Arguments of `genevar report`.
#[derive(Args, Debug)]
pub struct ReportArgs {
    /// Folders of `genevar train --out`, finished or not; or of single stages.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Numbers of `genevar eval fd --json`; those in a run's folder are taken up without.
    #[arg(long, value_name = "FILE")]
    eval: Vec<PathBuf>,
    /// Pack whose tiles are shown; the configuration's `data.pack` if left out.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Tiles of each class; 0 for none.
    #[arg(long, default_value_t = 3)]
    tiles: usize,
    /// Seed of the tiles that are drawn.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    place: PlaceOptions,
    /// The page: one file that loads nothing.
    #[arg(long, default_value = "report.html")]
    out: PathBuf,
}

/// Writes the page; returns what is to be printed.
///
/// # Errors
/// A folder without a run, a file of numbers that is none, a page that cannot be written.
pub fn run(args: &ReportArgs) -> Result<String> {
    let runs = args.runs.iter().map(|p| Run::read(p)).collect::<Result<Vec<_>>>()?;
    let mut judged = Vec::new();
    for path in &args.eval {
        let found = distances::read(path)?;
        let fix = "give what `genevar eval fd --json` wrote";
        judged.extend(found.ok_or_else(|| Error::file(path, "holds no distances", fix))?);
    }
    let own = |path: &str| args.eval.iter().any(|given| given.display().to_string() == path);
    judged.extend(runs.iter().flat_map(|r| distances::beside(&r.path)).filter(|j| !own(&j.from)));
    let mut page = Report::new(match &runs[..] {
        [one] => format!("genevar: {}", one.name),
        all => format!("genevar: {} runs", all.len()),
    });
    page.text(
        "A gene prior, a tokenizer, Causal MeanFlow and a masked transformer are trained one after \
         the other to paint tissue from RNA. This page shows how far that has come.",
    );
    tables::stages(&mut page, &runs);
    tables::lacks(&mut page, &runs);
    show_tiles(&mut page, &runs, args)?;
    for stage in stages(&runs) {
        let charts = curves::charts(&runs, stage);
        if !charts.is_empty() {
            page.heading(&tables::heading(stage));
            for (chart, note) in charts {
                page.small_chart(chart, &note);
            }
        }
    }
    page.heading("Scale by scale");
    runs.iter().for_each(|run| tables::scales(&mut page, run));
    page.heading("Distances from real tiles");
    match judged.is_empty() {
        true => {
            page.text(
                "None were measured: `genevar eval fd --checkpoint RUN --pack PACK --json \
                 RUN/fd.json`, and then this page again.",
            );
        }
        false => judged.iter().for_each(|j| tables::distances(&mut page, j)),
    }
    page.heading("Time");
    tables::time(&mut page, &runs);
    reproduce(&mut page, &runs);
    page.write(&args.out)?;
    Ok(format!("{}\n", args.out.display()))
}

/// The stages of all runs, each once, in order.
fn stages(runs: &[Run]) -> Vec<&str> {
    let mut all: Vec<&str> = Vec::new();
    for stage in runs.iter().flat_map(|r| &r.stages) {
        if !all.contains(&stage.name.as_str()) {
            all.push(&stage.name);
        }
    }
    let order = crate::train::bundle::STAGES;
    all.sort_by_key(|s| order.iter().position(|o| o == s).unwrap_or(order.len()));
    all
}

fn show_tiles(page: &mut Report, runs: &[Run], args: &ReportArgs) -> Result<()> {
    page.heading("Tiles");
    if args.tiles == 0 {
        page.text("None were asked for.");
        return Ok(());
    }
    for run in runs {
        let (data, tiles, seed) = (args.data.as_deref(), args.tiles, args.seed);
        let shown = pictures(run, &Wanted { data, tiles, seed, place: &args.place });
        for (caption, sheet) in &shown.sheets {
            page.picture(caption, sheet)?;
        }
        page.text(&shown.said.join("\n\n"));
        if shown.sheets.is_empty() && shown.said.is_empty() {
            page.text(&format!("{} has no checkpoint to draw with.", run.name));
        }
    }
    Ok(())
}

/// Settings, program and command of each run.
fn reproduce(page: &mut Report, runs: &[Run]) {
    page.heading("To have it again");
    for run in runs {
        let Some(config) = &run.config else {
            page.text(&format!("{} has no checkpoint that records its settings.", run.name));
            continue;
        };
        let mut programs: Vec<&str> = run
            .stages
            .iter()
            .filter_map(|s| Some(s.meta.as_ref()?.program.as_str()).filter(|p| !p.is_empty()))
            .collect();
        programs.dedup();
        let by = match programs.is_empty() {
            true => "an older genevar".to_string(),
            false => programs.join(", "),
        };
        page.text(&format!(
            "{} was trained by {by}, with seed {}. A run that is repeated with the same settings, \
             pack and program on the same device has the same bits.",
            run.name, config.seed
        ));
        let pack = if config.data.pack.is_empty() { "PACK" } else { &config.data.pack };
        page.code(&format!("genevar train all --config run.toml --data {pack} --out {}", run.name));
        if let Ok(text) = settings(config) {
            page.folded("run.toml: the preset, and what differs", &text);
        }
        if let Ok(text) = config.to_toml() {
            page.folded("All settings", &text);
        }
    }
    page.text(&format!(
        "This page was made by genevar {}. Tiles are for method research. They are no medical \
         images.",
        env!("CARGO_PKG_VERSION")
    ));
}
