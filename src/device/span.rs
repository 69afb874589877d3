//! Spans: at which scale, in which part of the work and in which op the calling thread is.
//!
//! The sampler, the models and the stages of training say where they are. Nobody else pays for it:
//! unless a profile is being taken or a tool listens ([`super::nvtx`]), saying so is one load.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::nvtx;

/// Where a thread is; empty names and no scale where nothing was said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The scale, from 1.
    pub scale: Option<usize>,
    /// The part of the work: transformer, phi, decoder.
    pub part: &'static str,
    /// The op.
    pub op: &'static str,
}

thread_local!(static PLACE: Cell<Place> = const { Cell::new(NOWHERE) });

const NOWHERE: Place = Place { scale: None, part: "", op: "" };

/// How many profiles are being taken.
static LISTENERS: AtomicUsize = AtomicUsize::new(0);

/// Where the calling thread is, while somebody listens.
pub fn here() -> Place {
    PLACE.get()
}

/// As long as it lives, places are known.
pub struct Listening(());

impl Listening {
    /// From now on.
    pub fn begin() -> Self {
        LISTENERS.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        LISTENERS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stretch of the calling thread's work, which ends where this is dropped.
#[must_use]
pub struct Span {
    before: Option<Place>,
    /// Whether a tool was told of it.
    told: bool,
    /// It belongs to the thread that began it.
    here: PhantomData<*const ()>,
}

impl Span {
    fn begin(change: impl FnOnce(&mut Place), name: impl FnOnce() -> String) -> Self {
        let told = nvtx::is_heard() && nvtx::push(&name());
        if !told && LISTENERS.load(Ordering::Relaxed) == 0 {
            return Self { before: None, told, here: PhantomData };
        }
        let before = PLACE.get();
        let mut place = before;
        change(&mut place);
        PLACE.set(place);
        Self { before: Some(before), told, here: PhantomData }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            PLACE.set(before);
        }
        if self.told {
            nvtx::pop();
        }
    }
}

/// A scale, from 1.
pub fn scale(number: usize) -> Span {
    Span::begin(|place| place.scale = Some(number), || format!("scale {number}"))
}

/// A part of the work.
pub fn part(name: &'static str) -> Span {
    Span::begin(|place| place.part = name, || name.to_string())
}

/// An op.
pub fn op(name: &'static str) -> Span {
    Span::begin(|place| place.op = name, || name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_nest_and_are_kept_only_while_somebody_listens() {
        // Another test of this process may listen meanwhile, so silence is not looked at here.
        let listening = Listening::begin();
        {
            let _scale = scale(3);
            let _part = part("mask");
            {
                let _part = part("phi");
                let _op = op("linear");
                let want = Place { scale: Some(3), part: "phi", op: "linear" };
                assert_eq!(here(), want);
            }
            assert_eq!(here(), Place { scale: Some(3), part: "mask", op: "" });
        }
        assert_eq!(here(), NOWHERE);
        drop(listening);
    }
}
