//! The inputs of a check: those of a case, in f32, or rounded to bf16 for the kernels that take it.

use std::ops::{Deref, DerefMut};

use genevar::ops::{DynOp, Precision};
use genevar::tensor::Shape;
use half::bf16;

use super::data::Data;
use super::faces::site;

/// Inputs of an op and what its kernels take them as.
#[derive(Clone)]
pub struct Inputs {
    all: Vec<Data>,
    pub precision: Precision,
    /// Which inputs hold bf16 values.
    half: Vec<bool>,
}

impl Inputs {
    /// As they are.
    pub fn f32(all: Vec<Data>) -> Self {
        Self { half: vec![false; all.len()], all, precision: Precision::F32 }
    }

    /// Rounded to bf16, but for those that stay in f32; `None` where the op has no such kernels for
    /// these shapes, or no real input.
    pub fn bf16(&self, op: &dyn DynOp) -> Option<Self> {
        let halved = |i: usize| !self.all[i].is_int && !op.f32_inputs().contains(&i);
        let half: Vec<bool> = (0..self.all.len()).map(halved).collect();
        let real = self.all.iter().any(|d| !d.is_int);
        let has = real && !op.variants(site(Precision::Bf16), &self.shapes()).is_empty();
        let mut new = Self { half, precision: Precision::Bf16, ..self.clone() };
        for i in 0..new.len() {
            (0..new[i].real.len()).for_each(|j| new.set(i, j, self[i].real[j]));
        }
        has.then_some(new)
    }

    /// Whether input `i` holds bf16 values.
    pub fn is_half(&self, i: usize) -> bool {
        self.half[i]
    }

    /// Sets a real element of input `i`, rounded to what the input holds.
    pub fn set(&mut self, i: usize, j: usize, x: f32) {
        self.all[i].real[j] = if self.half[i] { bf16::from_f32(x).to_f32() } else { x };
    }

    /// Each input replaced by another of its kind.
    pub fn map(&self, f: impl FnMut(&Data) -> Data) -> Self {
        Self { all: self.all.iter().map(f).collect(), ..self.clone() }
    }

    pub fn shapes(&self) -> Vec<&Shape> {
        self.all.iter().map(|d| &d.shape).collect()
    }
}

impl Deref for Inputs {
    type Target = [Data];

    fn deref(&self) -> &[Data] {
        &self.all
    }
}

impl DerefMut for Inputs {
    fn deref_mut(&mut self) -> &mut [Data] {
        &mut self.all
    }
}
