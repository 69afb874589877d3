//! The ops of the models at the shapes of a tier, each shape once: what a tile and the training
//! steps run, heard while they are planned, where nothing is computed.

use std::collections::BTreeMap;

use clap::Parser;
use genevar::Result;
use genevar::ops::{Case, Fill, Input, Timed, timed};
use genevar::profile::{sample, train};
use genevar::tensor::Shape;

/// An op at the shapes of a model.
pub struct Real {
    /// Its name in the table of ops.
    pub op: &'static str,
    /// Named after its shapes.
    pub case: Case,
    /// How often a tile and a step of each stage run it.
    pub calls: usize,
}

#[derive(Parser)]
struct Tile {
    #[command(flatten)]
    args: sample::SampleArgs,
}

#[derive(Parser)]
struct Step {
    #[command(flatten)]
    args: train::TrainArgs,
}

/// All ops of a tier whose names contain `filter`, or one of several with commas between them.
pub fn all(tier: &str, filter: &str) -> Result<Vec<Real>> {
    let mut found = BTreeMap::new();
    let planned = ["bench", "--tier", tier, "--device", "plan", "--precision", "f32"];
    let args = Tile::parse_from(planned).args;
    let (done, ran) = timed(|| sample::run(&args).map(drop));
    done.map(|()| note(ran, &mut found))?;
    for stage in ["beta-vae", "msvq", "meanflow", "ar"] {
        let more = ["--stage", stage, "--batch", "2"];
        let args = Step::parse_from(planned.into_iter().chain(more)).args;
        let (done, ran) = timed(|| train::run(&args).map(drop));
        done.map(|()| note(ran, &mut found))?;
    }
    let wanted = |real: &Real| filter.split(',').any(|part| real.op.contains(part));
    Ok(found.into_values().filter(wanted).collect())
}

fn note(ran: Vec<Timed>, found: &mut BTreeMap<String, Real>) {
    for Timed { op, inputs, outputs, .. } in ran {
        let name = op.name();
        let key = format!("{name} {inputs:?} {outputs:?}");
        let real = found.entry(key).or_insert_with(|| {
            let ints = op.int_inputs();
            let fill = |(i, shape): (usize, &Shape)| Input {
                shape: shape.clone(),
                fill: match ints.contains(&i) {
                    true => Fill::Below(codes(&inputs)),
                    // Positive and below one, as a variance, a time and a draw have to be.
                    false => Fill::Uniform(0.05, 0.95),
                },
            };
            let inputs: Vec<Input> = inputs.iter().enumerate().map(fill).collect();
            Real { op: name, case: Case { name: shown(&inputs), op, inputs }, calls: 0 }
        });
        real.calls += 1;
    }
}

/// Numbers that an index may have: rows of a table or columns of logits.
fn codes(inputs: &[Shape]) -> usize {
    let first = inputs.first().map_or(&[][..], Shape::dims);
    first.first().zip(first.last()).map_or(1, |(a, b)| *a.min(b)).max(1)
}

/// The shapes of the first inputs, as a folder may be called.
fn shown(inputs: &[Input]) -> String {
    let one = |input: &Input| {
        let dims: Vec<String> = input.shape.dims().iter().map(ToString::to_string).collect();
        dims.join("x")
    };
    let mut names: Vec<String> = inputs.iter().take(3).map(one).collect();
    if inputs.len() > 3 {
        names.push(format!("and {}", inputs.len() - 3));
    }
    names.join(" ")
}
