//! What a step has to say, while its numbers are still on the device.
//!
//! A step that asked for its loss would wait for itself. It sends its numbers instead, and whoever
//! runs it reads them when the next step is under way. What must not wait for them is decided on
//! the device, by a [`Guard`](super::guard::Guard).

use super::log::StepLog;
use crate::error::Result;
use crate::ops::call;
use crate::ops::layout::Concat;
use crate::tensor::{DType, Tensor};

/// Turns numbers that have come into named ones.
type Reader = Box<dyn FnOnce(&[f64]) -> Vec<(String, f64)>>;

enum Item {
    Known(String, f64),
    /// So many numbers of what is sent.
    Sent(usize, Reader),
    /// One number of what is sent: NaN if the step did not happen.
    Gate,
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

    /// Adds whether the step happened: its gate, one element, is not finite if it did not.
    pub fn under(mut self, gate: &Tensor) -> Self {
        self.items.push(Item::Gate);
        self.tensors.push(gate.clone());
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
        let (mut named, mut skipped) = (Vec::with_capacity(self.items.len()), false);
        for item in self.items {
            match item {
                Item::Known(name, value) => named.push((name, value)),
                Item::Sent(n, read) => {
                    let (own, after) = rest.split_at(n.min(rest.len()));
                    named.extend(read(own));
                    rest = after;
                }
                Item::Gate => {
                    skipped = rest.first().is_some_and(|gate| !gate.is_finite());
                    rest = rest.get(1..).unwrap_or_default();
                }
            }
        }
        let mut named = named.into_iter();
        let loss = named.next().map_or(f64::NAN, |(_, loss)| loss);
        Ok(StepLog { loss, lr: self.lr, skipped, more: named.collect() })
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
}
