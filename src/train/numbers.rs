//! What a step has to say, while its numbers are still on the device.
//!
//! A step that asked for its loss would wait for itself. It sends its numbers instead, and whoever
//! runs it reads them when the next step is under way. What must not wait for them is decided on
//! the device: a [`Pulse`] stops with the first number that is not finite, and with it everything
//! that a step would change.

use super::log::StepLog;
use crate::device::Device;
use crate::error::Result;
use crate::ops::call;
use crate::ops::elementwise::{ADD, Affine};
use crate::ops::layout::Concat;
use crate::ops::reduce::SumTo;
use crate::tensor::{DType, Tensor};

/// Turns numbers that have come into named ones.
type Reader = Box<dyn FnOnce(&[f64]) -> Vec<(String, f64)>>;

enum Item {
    Known(String, f64),
    /// So many numbers of what is sent.
    Sent(usize, Reader),
}

/// The numbers of a step, in the order in which they are logged.
pub struct Numbers {
    lr: f64,
    items: Vec<Item>,
    tensors: Vec<Tensor>,
}

impl Numbers {
    /// The loss that was differentiated, one element, and the learning rate.
    pub fn new(lr: f64, loss: &Tensor) -> Self {
        Self { lr, items: Vec::new(), tensors: Vec::new() }.one("loss", loss)
    }

    /// Adds a tensor of one element.
    pub fn one(self, name: &str, value: &Tensor) -> Self {
        let name = name.to_string();
        self.many(value, move |x| x.iter().map(|&x| (name.clone(), x)).take(1).collect())
    }

    /// Adds what `read` makes of a tensor's elements.
    pub fn many(
        mut self,
        from: &Tensor,
        read: impl FnOnce(&[f64]) -> Vec<(String, f64)> + 'static,
    ) -> Self {
        self.items.push(Item::Sent(from.len(), Box::new(read)));
        self.tensors.push(from.clone());
        self
    }

    /// Adds a number that is known.
    pub fn known(mut self, name: &str, value: f64) -> Self {
        self.items.push(Item::Known(name.to_string(), value));
        self
    }

    /// Sets them on their way to the CPU.
    ///
    /// # Errors
    /// Those of the device.
    pub fn send(self) -> Result<Pending> {
        let all = self.tensors.iter().map(|t| t.reshape([t.len()]));
        let sent = call(
            &Concat { axis: 0 },
            &all.collect::<Result<Vec<_>>>()?.iter().collect::<Vec<_>>(),
        )?;
        sent.send()?;
        Ok(Pending { lr: self.lr, items: self.items, sent })
    }
}

/// A step's log, of which some numbers may still be on their way.
pub struct Pending {
    lr: f64,
    items: Vec<Item>,
    sent: Tensor,
}

impl Pending {
    /// A loss alone, which is wherever it is.
    ///
    /// # Errors
    /// More than one element.
    pub fn of(lr: f64, loss: Tensor) -> Result<Self> {
        let Numbers { items, .. } = Numbers::new(lr, &loss);
        Ok(Self { lr, items, sent: loss.reshape([1])? })
    }

    /// Whether [`Pending::read`] would not have to wait.
    pub fn is_here(&self) -> bool {
        self.sent.remote().is_none()
    }

    /// The log; waits for the numbers, but for nothing that was begun after them.
    ///
    /// # Errors
    /// Those of the device.
    pub fn read(self) -> Result<StepLog> {
        let numbers = self.sent.here()?.to_f64s();
        let mut rest = numbers.as_slice();
        let mut named = Vec::with_capacity(self.items.len());
        for item in self.items {
            match item {
                Item::Known(name, value) => named.push((name, value)),
                Item::Sent(n, read) => {
                    let (own, after) = rest.split_at(n.min(rest.len()));
                    named.extend(read(own));
                    rest = after;
                }
            }
        }
        let mut named = named.into_iter();
        let loss = named.next().map_or(f64::NAN, |(_, loss)| loss);
        Ok(StepLog { loss, lr: self.lr, more: named.collect() })
    }
}

impl From<StepLog> for Pending {
    fn from(log: StepLog) -> Self {
        let known = |(name, value): (String, f64)| Item::Known(name, value);
        let loss = [known(("loss".into(), log.loss))];
        let items = loss.into_iter().chain(log.more.into_iter().map(known)).collect();
        Self { lr: log.lr, items, sent: Tensor::zeros(DType::F32, [0]) }
    }
}

/// Zero as long as every number that it has felt was finite, NaN from then on. Added to a gradient
/// norm it keeps the optimiser from changing anything, so that the weights of a bad step are still
/// there when the host learns of it.
pub struct Pulse(Tensor);

impl Pulse {
    /// A beating one.
    pub fn new() -> Self {
        Self(Tensor::zeros(DType::F32, [1]))
    }

    /// The same on a device.
    ///
    /// # Errors
    /// Those of the device.
    pub fn on(device: &Device) -> Result<Self> {
        device.put(&Self::new().0).map(Self)
    }

    /// Takes in numbers of a step, one element each.
    ///
    /// # Errors
    /// Those of the device.
    pub fn feel(&mut self, numbers: &[&Tensor]) -> Result<()> {
        let flat = numbers.iter().map(|t| t.reshape([1])).chain([Ok(self.0.clone())]);
        let flat = flat.collect::<Result<Vec<_>>>()?;
        let all = call(&Concat { axis: 0 }, &flat.iter().collect::<Vec<_>>())?;
        // Zero times anything finite is zero.
        let zeros = call(&Affine { scale: 0.0, shift: 0.0 }, &[&all])?;
        self.0 = call(&SumTo { to: [1].into() }, &[&zeros])?;
        Ok(())
    }

    /// One element: `norm` while it beats, then NaN.
    ///
    /// # Errors
    /// Those of the device.
    pub fn gate(&self, norm: &Tensor) -> Result<Tensor> {
        call(&ADD, &[norm, &self.0])
    }

    /// One element: 0 or NaN.
    pub fn value(&self) -> &Tensor {
        &self.0
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(x: f32) -> Tensor {
        Tensor::new(vec![x], [1]).unwrap()
    }

    #[test]
    fn numbers_come_out_in_order_and_under_their_names() {
        let many = Tensor::new(vec![1.0, 2.0, 3.0], [3]).unwrap();
        let sum =
            |x: &[f64]| vec![("sum".to_string(), x.iter().sum()), ("n".into(), x.len() as f64)];
        let numbers = Numbers::new(0.5, &one(7.0)).one("norm", &one(2.0)).known("held", 4.0);
        let log = numbers.many(&many, sum).one("last", &one(-1.0)).send().unwrap().read().unwrap();
        let want = StepLog::new(7.0, 0.5).with("norm", 2.0).with("held", 4.0);
        assert_eq!(log, want.with("sum", 6.0).with("n", 3.0).with("last", -1.0));
        assert_eq!(Pending::from(log.clone()).read().unwrap(), log);
    }

    #[test]
    fn a_pulse_stops_for_good() {
        let mut pulse = Pulse::new();
        pulse.feel(&[&one(1e38), &one(-3.0)]).unwrap();
        assert_eq!(pulse.gate(&one(2.5)).unwrap().item().unwrap(), 2.5);
        pulse.feel(&[&one(1.0), &one(f32::INFINITY)]).unwrap();
        pulse.feel(&[&one(1.0)]).unwrap();
        assert!(pulse.gate(&one(2.5)).unwrap().item().unwrap().is_nan());
    }
}
