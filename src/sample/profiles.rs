//! RNA of some samples as a trained system reads it: standardised expression and z.

use crate::config::RnaEncoding;
use crate::data::genes::GeneMap;
use crate::data::rna::Expression;
use crate::error::{Error, Result};
use crate::sample::Subject;
use crate::tensor::Tensor;
use crate::train::system::System;

/// RNA of some samples.
pub struct Profiles {
    /// Sample names.
    pub names: Vec<String>,
    /// z [N, latent].
    pub z: Tensor,
    /// Standardised expression [N, genes].
    pub inputs: Tensor,
    /// A class number a row, where the transformer is conditioned on them.
    pub labels: Vec<i32>,
}

impl Profiles {
    /// Encodes rows of an expression matrix.
    ///
    /// # Errors
    /// Too few of the system's genes, rows that are not there.
    pub fn encode(system: &System, x: &Expression, rows: &[usize]) -> Result<Self> {
        let genes = &system.prior()?.norm.genes;
        let map = GeneMap::new(genes, &x.genes, system.config.data.min_gene_match)?;
        Self::mapped(system, x, rows, &map)
    }

    /// Encodes rows of a matrix in which the system's genes were found.
    ///
    /// # Errors
    /// Rows that are not there, a sample without counts.
    pub fn mapped(system: &System, x: &Expression, rows: &[usize], map: &GeneMap) -> Result<Self> {
        let inputs = system.prior()?.norm.apply(x, rows, map)?;
        Self::of_inputs(system, rows.iter().map(|&r| x.samples[r].clone()).collect(), inputs)
    }

    /// Encodes standardised expression [N, genes]. A row's z does not depend on the other rows.
    ///
    /// # Errors
    /// Inputs of another width.
    pub fn of_inputs(system: &System, names: Vec<String>, inputs: Tensor) -> Result<Self> {
        let z = system.prior()?.condition(&inputs)?;
        Ok(Self { names, z, inputs, labels: Vec::new() })
    }

    /// What row `i` is drawn for, as tile number `id`.
    ///
    /// # Errors
    /// A system conditioned on classes, where none is known.
    pub fn subject(&self, system: &System, i: usize, id: u64) -> Result<Subject> {
        let other = match system.config.ar.rna {
            RnaEncoding::BetaVae => None,
            RnaEncoding::Linear => Some(self.inputs.rows(i, 1)?),
            RnaEncoding::ClassLabel => {
                let fix =
                    "name a class with --class, or draw with a model whose ar.rna is beta_vae";
                let none = || Error::config("ar.rna", "is class_label, which reads no RNA", fix);
                Some(Tensor::new_i32(vec![*self.labels.get(i).ok_or_else(none)?], [1])?)
            }
        };
        Ok(Subject { id, z: self.z.rows(i, 1)?, other })
    }

    /// `steps` profiles from row 0 to row 1 in equal steps, both ends as they are: linear in z and,
    /// where the transformer reads expression instead, in that. z is standardised and the prior
    /// keeps its distribution near a ball, so a straight line stays among profiles that it knows.
    ///
    /// # Errors
    /// Fewer than two rows.
    pub fn between(&self, steps: usize) -> Result<Self> {
        let blend = |x: &Tensor| -> Result<Tensor> {
            let (a, b) = (x.rows(0, 1)?, x.rows(1, 1)?);
            let (a, b) = (a.f32s()?, b.f32s()?);
            let row = |s: usize| {
                let t = share(s, steps) as f32;
                a.iter().zip(b).map(move |(a, b)| (1.0 - t) * a + t * b)
            };
            Tensor::new((0..steps).flat_map(row).collect(), [steps, a.len()])
        };
        let label = self.labels.first().copied();
        Ok(Self {
            names: (0..steps).map(|s| format!("{:.2}", share(s, steps))).collect(),
            z: blend(&self.z)?,
            inputs: blend(&self.inputs)?,
            labels: label.map_or_else(Vec::new, |l| vec![l; steps]),
        })
    }
}

/// How far step `s` of `steps` lies on the way, 0 to 1.
pub fn share(s: usize, steps: usize) -> f64 {
    s as f64 / (steps.max(2) - 1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_between_two_profiles_begins_and_ends_with_them() {
        let ends = [0.1f32, -3.7, 1e-3, 2.2, 5.0, -1.0 / 3.0];
        let z = Tensor::new(ends.to_vec(), [2, 3]).unwrap();
        let inputs = Tensor::new(ends.repeat(2)[..8].to_vec(), [2, 4]).unwrap();
        let names = vec!["a".into(), "b".into()];
        let two = Profiles { names, z, inputs, labels: vec![4, 4] };
        let five = two.between(5).unwrap();
        let row = |i: usize| five.z.rows(i, 1).unwrap().f32s().unwrap().to_vec();
        assert_eq!((row(0), row(4)), (ends[..3].to_vec(), ends[3..].to_vec()));
        let middle: Vec<f32> = (0..3).map(|i| 0.5 * ends[i] + 0.5 * ends[i + 3]).collect();
        assert_eq!(row(2), middle);
        assert_eq!(five.inputs.shape().dims(), [5, 4]);
        assert_eq!(
            (five.names.join(" "), five.labels.len()),
            ("0.00 0.25 0.50 0.75 1.00".into(), 5)
        );
        assert_eq!(two.between(2).unwrap().z.f32s().unwrap(), ends);
    }
}
