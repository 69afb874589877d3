//! Tensor: shared storage, a shape and a type. It knows nothing of gradients.
//!
//! The elements are in the CPU's memory, or away, in a device's; then they are fetched when
//! something here asks for them.
//!
//! Tensors are row-major and contiguous; images and feature maps are channels-last `[B, H, W, C]`,
//! token sequences `[B, n, C]`, so that a feature map and its token sequence are the same bytes. A
//! clone shares the storage; nothing is ever written through a shared handle.

mod away;
mod philox;
mod shape;

use std::sync::Arc;

use away::Away;
pub use away::{Coming, Remote};

pub use philox::{Purpose, Stream, philox4x32};
pub use shape::Shape;

use crate::error::{Error, Result};

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE binary32: what models train and sample in.
    F32,
    /// IEEE binary64: the oracle's type.
    F64,
    /// Indices and tokens.
    I32,
}

/// The elements, in the CPU's memory or elsewhere.
#[derive(Clone, Debug)]
enum Storage {
    F32(Arc<Vec<f32>>),
    F64(Arc<Vec<f64>>),
    I32(Arc<Vec<i32>>),
    Away(Arc<Away>),
}

impl Storage {
    /// The same elements in the CPU's memory; those that are away are fetched once and kept.
    fn here(&self) -> Result<&Self> {
        match self {
            Self::Away(away) => away.here(),
            here => Ok(here),
        }
    }
}

/// A contiguous row-major array.
#[derive(Clone, Debug)]
pub struct Tensor {
    storage: Storage,
    shape: Shape,
}

macro_rules! typed {
    ($t:ty, $variant:ident, $new:ident, $get:ident) => {
        #[doc = concat!("A tensor of `", stringify!($t), "`; the data must fill the shape.")]
        pub fn $new(data: Vec<$t>, shape: impl Into<Shape>) -> Result<Self> {
            let shape = shape.into();
            if shape.len() != data.len() {
                let what = format!("{} values do not fill the shape {shape}", data.len());
                return Err(Error::shape("tensor", what));
            }
            Ok(Self { storage: Storage::$variant(Arc::new(data)), shape })
        }

        #[doc = concat!("The elements, if the type is `", stringify!($t), "`.")]
        pub fn $get(&self) -> Result<&[$t]> {
            match self.storage.here()? {
                Storage::$variant(v) => Ok(v),
                _ => Err(Error::shape(
                    "tensor",
                    format!("wanted {:?} elements, found {:?}", DType::$variant, self.dtype()),
                )),
            }
        }
    };
}

impl Tensor {
    typed!(f32, F32, new, f32s);
    typed!(f64, F64, new_f64, f64s);
    typed!(i32, I32, new_i32, i32s);

    /// Elements that are not in the CPU's memory; they must fill the shape.
    pub fn away(elements: impl Remote, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if shape.len() != elements.len() {
            let what = format!("{} values do not fill the shape {shape}", elements.len());
            return Err(Error::shape("tensor", what));
        }
        Ok(Self { storage: Storage::Away(Arc::new(Away::new(elements))), shape })
    }

    /// The elements as they are elsewhere; `None` for those in the CPU's memory.
    pub fn remote(&self) -> Option<&dyn Remote> {
        match &self.storage {
            Storage::Away(away) => Some(away.remote()),
            _ => None,
        }
    }

    /// The elements as they are elsewhere, to be changed; `None` for those in the CPU's memory, and
    /// where there is another handle to them.
    pub fn remote_mut(&mut self) -> Option<&mut dyn Remote> {
        match &mut self.storage {
            Storage::Away(away) => Some(Arc::get_mut(away)?.remote_mut()),
            _ => None,
        }
    }

    /// As [`Tensor::remote_mut`], taken out of the tensor.
    pub fn into_remote(self) -> Option<Box<dyn Remote>> {
        match self.storage {
            Storage::Away(away) => Arc::try_unwrap(away).ok().map(Away::into_remote),
            _ => None,
        }
    }

    /// Whether both are handles to the same elements.
    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.storage, &other.storage) {
            (Storage::F32(a), Storage::F32(b)) => Arc::ptr_eq(a, b),
            (Storage::F64(a), Storage::F64(b)) => Arc::ptr_eq(a, b),
            (Storage::I32(a), Storage::I32(b)) => Arc::ptr_eq(a, b),
            (Storage::Away(a), Storage::Away(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// Begins to copy elements that are elsewhere to the CPU's memory. Who asks for them later
    /// waits for the commands before this call alone.
    ///
    /// # Errors
    /// Those of the device that they are on.
    pub fn send(&self) -> Result<()> {
        match &self.storage {
            Storage::Away(away) => away.send(),
            _ => Ok(()),
        }
    }

    /// The same tensor in the CPU's memory.
    ///
    /// # Errors
    /// Those of the device that it is on.
    pub fn here(&self) -> Result<Self> {
        Ok(Self { storage: self.storage.here()?.clone(), shape: self.shape.clone() })
    }

    /// All elements `value`, in a float type.
    pub fn full(dtype: DType, shape: impl Into<Shape>, value: f64) -> Self {
        let shape = shape.into();
        let n = shape.len();
        let storage = match dtype {
            DType::F32 => Storage::F32(Arc::new(vec![value as f32; n])),
            DType::F64 => Storage::F64(Arc::new(vec![value; n])),
            DType::I32 => Storage::I32(Arc::new(vec![value as i32; n])),
        };
        Self { storage, shape }
    }

    /// All zeros.
    pub fn zeros(dtype: DType, shape: impl Into<Shape>) -> Self {
        Self::full(dtype, shape, 0.0)
    }

    /// f64 values rounded to `dtype`.
    pub fn from_f64s(dtype: DType, data: Vec<f64>, shape: impl Into<Shape>) -> Result<Self> {
        match dtype {
            DType::F64 => Self::new_f64(data, shape),
            DType::F32 => Self::new(data.iter().map(|&x| x as f32).collect(), shape),
            DType::I32 => Self::new_i32(data.iter().map(|&x| x as i32).collect(), shape),
        }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        match self.storage {
            Storage::F32(_) => DType::F32,
            Storage::F64(_) => DType::F64,
            Storage::I32(_) => DType::I32,
            Storage::Away(ref away) => away.remote().dtype(),
        }
    }

    /// The shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same elements under another shape of the same length; shares the storage.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if shape.len() != self.len() {
            return Err(Error::shape("reshape", format!("{} does not become {shape}", self.shape)));
        }
        Ok(Self { storage: self.storage.clone(), shape })
    }

    /// The values in another type (a copy, unless the type is the same).
    pub fn cast(&self, dtype: DType) -> Self {
        if dtype == self.dtype() {
            return self.clone();
        }
        let n = self.len();
        let storage = match dtype {
            DType::F32 => Storage::F32(Arc::new((0..n).map(|i| self.at(i) as f32).collect())),
            DType::F64 => Storage::F64(Arc::new((0..n).map(|i| self.at(i)).collect())),
            DType::I32 => Storage::I32(Arc::new((0..n).map(|i| self.at(i) as i32).collect())),
        };
        Self { storage, shape: self.shape.clone() }
    }

    /// One element by flat index, widened. For reports and tests, not for loops that matter. NaN
    /// where it is on a device that has failed; the next command there tells why.
    pub fn at(&self, i: usize) -> f64 {
        match self.storage.here() {
            Ok(Storage::F32(v)) => f64::from(v[i]),
            Ok(Storage::F64(v)) => v[i],
            Ok(Storage::I32(v)) => f64::from(v[i]),
            Ok(Storage::Away(_)) | Err(_) => f64::NAN,
        }
    }

    /// The only element of a one-element tensor.
    pub fn item(&self) -> Result<f64> {
        match self.len() {
            1 => self.storage.here().map(|_| self.at(0)),
            _ => Err(Error::shape("item", format!("{} has not one element", self.shape))),
        }
    }

    /// All elements, widened.
    pub fn to_f64s(&self) -> Vec<f64> {
        (0..self.len()).map(|i| self.at(i)).collect()
    }

    /// The elements as an owned vector; no copy when this is the only handle.
    pub fn into_f32s(self) -> Result<Vec<f32>> {
        match self.storage {
            Storage::F32(v) => Ok(Arc::try_unwrap(v).unwrap_or_else(|shared| (*shared).clone())),
            _ => self.f32s().map(<[f32]>::to_vec),
        }
    }

    /// Rows `start..start + rows` of the first axis (a copy).
    pub fn rows(&self, start: usize, rows: usize) -> Result<Self> {
        let d = self.shape.dims();
        if d.is_empty() || start + rows > d[0] {
            let what = format!("rows {start}..{} of {}", start + rows, self.shape);
            return Err(Error::shape("rows", what));
        }
        let row = self.len().checked_div(d[0]).unwrap_or(0);
        let range = start * row..(start + rows) * row;
        let storage = match self.storage.here()? {
            Storage::F32(v) => Storage::F32(Arc::new(v[range].to_vec())),
            Storage::F64(v) => Storage::F64(Arc::new(v[range].to_vec())),
            Storage::I32(v) => Storage::I32(Arc::new(v[range].to_vec())),
            Storage::Away(_) => return Err(away::unreachable()),
        };
        let mut dims = d.to_vec();
        dims[0] = rows;
        Ok(Self { storage, shape: Shape::from(dims) })
    }

    /// Fails, naming `place`, unless every element is finite.
    pub fn check_finite(&self, place: &str) -> Result<()> {
        let bad = |i: &usize| !self.at(*i).is_finite();
        let clean = match self.storage.here()? {
            Storage::F32(v) => v.iter().all(|x| x.is_finite()),
            Storage::F64(v) => v.iter().all(|x| x.is_finite()),
            Storage::I32(_) => true,
            Storage::Away(_) => return Err(away::unreachable()),
        };
        if clean {
            return Ok(());
        }
        let count = (0..self.len()).filter(bad).count();
        let first = (0..self.len()).find(bad).unwrap_or(0);
        Err(Error::NotFinite { place: place.to_string(), count, len: self.len(), first })
    }
}
