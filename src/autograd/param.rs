//! Parameters: named tensors that a model owns and an optimiser changes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::device::{Device, Meter};
use crate::error::{Error, Result};
use crate::tensor::{DType, Purpose, Shape, Stream, Tensor};

static NEXT_GROUP: AtomicU64 = AtomicU64::new(1);

struct Inner {
    name: String,
    group: u64,
    index: usize,
    decay: bool,
    value: RwLock<Tensor>,
}

/// A handle to one parameter; clones are the same parameter.
#[derive(Clone)]
pub struct Param(Arc<Inner>);

impl Param {
    /// Dotted name, unique in its model.
    pub fn name(&self) -> &str {
        &self.0.name
    }
    /// The current value.
    pub fn value(&self) -> Tensor {
        self.0.value.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
    /// Replaces the value; the shape must stay.
    pub fn set(&self, value: Tensor) -> Result<()> {
        let mut slot = self.0.value.write().unwrap_or_else(PoisonError::into_inner);
        if slot.shape() != value.shape() {
            let what = format!("{} is {}, not {}", self.name(), slot.shape(), value.shape());
            return Err(Error::shape("parameter", what));
        }
        *slot = value;
        Ok(())
    }
    /// Whether weight decay applies (matrices and kernels yes; biases, norms and tables no).
    pub fn decays(&self) -> bool {
        self.0.decay
    }
    pub(super) fn key(&self) -> (u64, usize) {
        (self.0.group, self.0.index)
    }
}

/// The parameters of one model, in the order the model made them. Also the builder that makes them:
/// a model's constructor takes `&mut Params`, and [`Params::at`] gives each part its name prefix.
pub struct Params {
    group: u64,
    seed: u64,
    prefix: String,
    all: Vec<Param>,
    elements: usize,
    dry: bool,
    unset: Option<Meter>,
}

impl Params {
    /// No parameters yet; initial values are drawn from `seed`.
    pub fn new(seed: u64) -> Self {
        let group = NEXT_GROUP.fetch_add(1, Ordering::Relaxed);
        let (prefix, all) = (String::new(), Vec::new());
        Self { group, seed, prefix, all, elements: 0, dry: false, unset: None }
    }

    /// Draws nothing: every parameter waits for [`Params::load`], and has its shape until then.
    pub fn unset() -> Self {
        Self { unset: Some(Meter::default()), ..Self::new(0) }
    }

    /// Counts parameters without making them: a model built on these cannot run, but it says how
    /// large it would be.
    pub fn dry() -> Self {
        Self { dry: true, ..Self::new(0) }
    }

    /// Runs `make` with `name` added to the prefix of all names.
    pub fn at<T>(&mut self, name: impl std::fmt::Display, make: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.prefix.len();
        if !self.prefix.is_empty() {
            self.prefix.push('.');
        }
        self.prefix.push_str(&name.to_string());
        let made = make(self);
        self.prefix.truncate(before);
        made
    }

    /// A parameter with these values. `decay` says whether weight decay applies.
    pub fn add(&mut self, name: &str, value: Tensor, decay: bool) -> Param {
        let name = match self.prefix.as_str() {
            "" => name.to_string(),
            prefix => format!("{prefix}.{name}"),
        };
        let index = self.all.len();
        let group = self.group;
        if !self.dry {
            self.elements += value.len();
        }
        let param = Param(Arc::new(Inner { name, group, index, decay, value: RwLock::new(value) }));
        self.all.push(param.clone());
        param
    }

    /// Normal with standard deviation `std`.
    pub fn normal(&mut self, name: &str, shape: impl Into<Shape>, std: f64, decay: bool) -> Param {
        let shape = self.planned(shape.into());
        if let Some(value) = self.waiting(&shape) {
            return self.add(name, value, decay);
        }
        let draws = self.stream().normals(shape.len());
        let values = draws.iter().map(|&x| f64::from(x) * std).collect();
        self.filled(name, values, shape, decay)
    }

    /// Uniform in [-limit, limit).
    pub fn uniform(
        &mut self,
        name: &str,
        shape: impl Into<Shape>,
        limit: f64,
        decay: bool,
    ) -> Param {
        let shape = self.planned(shape.into());
        if let Some(value) = self.waiting(&shape) {
            return self.add(name, value, decay);
        }
        let draws = self.stream().uniforms(shape.len());
        let values = draws.iter().map(|&x| (2.0 * f64::from(x) - 1.0) * limit).collect();
        self.filled(name, values, shape, decay)
    }

    /// All elements `value`; never decays.
    pub fn constant(&mut self, name: &str, shape: impl Into<Shape>, value: f64) -> Param {
        let shape = self.planned(shape.into());
        let waiting = self.waiting(&shape);
        self.add(name, waiting.unwrap_or_else(|| Tensor::full(DType::F32, shape, value)), false)
    }

    /// All zeros, as the last layer of a residual network starts.
    pub fn zeros(&mut self, name: &str, shape: impl Into<Shape>, decay: bool) -> Param {
        let shape = self.planned(shape.into());
        let waiting = self.waiting(&shape);
        self.add(name, waiting.unwrap_or_else(|| Tensor::zeros(DType::F32, shape)), decay)
    }

    /// A value that is still to come.
    fn waiting(&self, shape: &Shape) -> Option<Tensor> {
        self.unset.as_ref()?.tensor(DType::F32, shape).ok()
    }

    /// The shape to allocate: nothing when only counting.
    fn planned(&mut self, shape: Shape) -> Shape {
        if self.dry {
            self.elements += shape.len();
            return Shape::from([0]);
        }
        shape
    }

    fn filled(&mut self, name: &str, values: Vec<f64>, shape: Shape, decay: bool) -> Param {
        let value = Tensor::from_f64s(DType::F32, values, &shape);
        // The values were made for this shape, so the fallback is never taken.
        self.add(name, value.unwrap_or_else(|_| Tensor::zeros(DType::F32, shape)), decay)
    }

    fn stream(&self) -> Stream {
        Stream::new(self.seed, self.all.len() as u64, 0, Purpose::Init)
    }

    /// All parameters, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Param> {
        self.all.iter()
    }
    /// How many parameters (tensors).
    pub fn len(&self) -> usize {
        self.all.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
    /// How many elements in all.
    pub fn elements(&self) -> usize {
        self.elements
    }
    /// Whether `param` is one of these.
    pub fn owns(&self, param: &Param) -> bool {
        param.0.group == self.group
    }
    pub(super) fn group(&self) -> u64 {
        self.group
    }

    /// Current values by name.
    pub fn values(&self) -> BTreeMap<String, Tensor> {
        self.all.iter().map(|p| (p.name().to_string(), p.value())).collect()
    }

    /// Takes values by name; a missing name or another shape is an error naming the tensor. Nothing
    /// changes unless everything fits. Names beginning with none of ours are ignored.
    pub fn load(&self, values: &BTreeMap<String, Tensor>, prefix: &str) -> Result<()> {
        let mut found = Vec::with_capacity(self.all.len());
        for p in &self.all {
            let name = format!("{prefix}{}", p.name());
            let fix = "the checkpoint is of another architecture: use the configuration it was \
                       trained with";
            let value = values
                .get(&name)
                .ok_or_else(|| Error::data(format!("tensor {name} is missing"), fix))?;
            if value.shape() != p.value().shape() {
                let (want, have) = (p.value(), value.shape());
                let what = format!("tensor {name} is {have}, the model wants {}", want.shape());
                return Err(Error::data(what, fix));
            }
            found.push(value.clone());
        }
        self.all.iter().zip(found).try_for_each(|(p, v)| p.set(v))
    }

    /// Moves all values to a device.
    ///
    /// # Errors
    /// Those of the device.
    pub fn place(&self, device: &Device) -> Result<()> {
        self.all.iter().try_for_each(|p| p.set(device.put(&p.value())?))
    }

    /// Changes the element type of all values (f64 for oracles).
    pub fn cast(&self, dtype: DType) -> Result<()> {
        self.all.iter().try_for_each(|p| p.set(p.value().cast(dtype)))
    }
}
