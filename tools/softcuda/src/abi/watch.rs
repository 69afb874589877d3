//! What a test may ask beyond the driver's interface: another schedule for the calling thread's
//! launches, and what each of them counted.
//!
//! Three names that no driver has, so a program that looks for them knows what it runs on. They
//! speak of the calling thread, whatever its streams: tests that run side by side do not meet. A
//! launch belongs to the thread that asked for it, at each replay where it is a graph's.

use super::call::lock;
use crate::count::Counts;
use crate::exec::Options;
use std::cell::{Cell, RefCell};
use std::mem::ManuallyDrop;
use std::sync::{Arc, Mutex};

/// Where the counts of a thread's launches go.
type Shelf = Arc<Mutex<Vec<Counts>>>;

// As in `call`, without destructors: what a thread leaves here is leaked.
thread_local! {
    static SEED: Cell<u64> = const { Cell::new(0) };
    static SHELF: RefCell<ManuallyDrop<Option<Shelf>>> =
        const { RefCell::new(ManuallyDrop::new(None)) };
}

/// What the thread that asks for a launch wants of it.
#[derive(Clone)]
pub(super) struct Watch {
    seed: u64,
    shelf: Option<Shelf>,
}

impl Watch {
    /// Of the calling thread.
    pub(super) fn here() -> Self {
        Self { seed: SEED.get(), shelf: SHELF.with_borrow(|shelf| (**shelf).clone()) }
    }

    /// The options of the environment with what the thread wants.
    pub(super) fn options(&self) -> Options {
        let given = Options::from_env();
        Options {
            schedule_seed: if self.seed == 0 { given.schedule_seed } else { self.seed },
            count: given.count || self.shelf.is_some(),
            ..given
        }
    }

    /// Keeps the counts of a launch, if the thread wants them.
    pub(super) fn keep(&self, counts: &Counts) {
        if let Some(shelf) = &self.shelf {
            lock(shelf).push(counts.clone());
        }
    }
}

/// The calling thread's launches from now on run under the schedule with this seed; 0 is what
/// SOFTCUDA_SEED says.
// SAFETY: no other library has this name.
#[unsafe(no_mangle)]
pub extern "C" fn softcudaSchedule(seed: u64) {
    SEED.set(seed);
}

/// Begins to keep the counts of the calling thread's launches, with none kept so far, or stops.
// SAFETY: no other library has this name.
#[unsafe(no_mangle)]
pub extern "C" fn cuxCountLaunches(on: bool) {
    SHELF.with_borrow_mut(|shelf| **shelf = on.then(Shelf::default));
}

/// Copies what was counted since [`cuxCountLaunches`] to `to`, a line of JSON a launch in the order
/// in which they ended, as far as `room` goes; returns how many bytes there are. Wait for the
/// streams before.
///
/// # Safety
/// `to` is null or has room for `room` bytes.
// SAFETY: no other library has this name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuxLaunchCounts(to: *mut u8, room: usize) -> usize {
    let shelf = SHELF.with_borrow(|shelf| (**shelf).clone());
    let lines: String = shelf.map_or_else(String::new, |shelf| {
        lock(&shelf).iter().map(|counts| counts.to_json() + "\n").collect()
    });
    if !to.is_null() {
        let part = room.min(lines.len());
        // SAFETY: the caller promised room for `room` bytes; the text is this function's own.
        unsafe { std::ptr::copy_nonoverlapping(lines.as_ptr(), to, part) };
    }
    lines.len()
}
