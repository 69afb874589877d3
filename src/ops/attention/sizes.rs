//! The shapes that attention is tested and timed on.

use super::{Attention, Mask};
use crate::ops::{Case, Draw, Input};

/// Shapes a case is made of: (name, batch, queries, keys, heads, width, ends).
pub(super) type Sizes = (&'static str, [usize; 5], &'static [usize]);

pub(super) const SIZES: &[Sizes] = &[
    ("one", [1, 1, 1, 1, 4], &[]),
    ("odd", [2, 5, 7, 3, 5], &[]),
    ("single_head", [2, 16, 16, 1, 32], &[]),
    ("cross", [1, 33, 4, 2, 33], &[]),
    ("no_queries", [2, 0, 3, 2, 8], &[]),
    ("scales", [2, 30, 30, 2, 32], &[1, 5, 14, 30, 55]),
    ("cached", [2, 9, 14, 3, 40], &[1, 5, 14]),
    ("several_cached", [1, 13, 14, 1, 8], &[1, 5, 14]),
    ("tiled", [1, 150, 150, 1, 32], &[]),
    ("wide", [1, 70, 70, 2, 64], &[1, 5, 30, 70]),
    ("odd_wide", [2, 9, 12, 1, 99], &[3, 7, 12]),
    ("widest", [1, 20, 37, 1, 128], &[]),
];

/// Heads wider than kernels keep on chip.
pub(super) const WIDE: &[Sizes] = &[
    ("width_129", [1, 9, 12, 2, 129], &[3, 7, 12]),
    ("width_160", [2, 67, 37, 1, 160], &[]),
    ("width_256", [1, 20, 20, 1, 256], &[]),
    ("width_640", [1, 7, 20, 1, 640], &[]),
    ("wide_no_queries", [2, 0, 3, 2, 130], &[]),
];

pub(super) fn sized(s: &Sizes) -> (Attention, [usize; 4], [usize; 4]) {
    let [b, n, m, h, d] = s.1;
    let mask = if s.2.is_empty() { Mask::Full } else { Mask::Blocks(s.2.to_vec()) };
    (Attention { scale: 1.0 / (d as f64).sqrt(), mask }, [b, n, h, d], [b, m, h, d])
}

/// An op whose heads are up to 20 wide, and one of `more` beyond that.
pub(super) fn drawn(d: &mut Draw<'_>, more: &[usize]) -> (Attention, [usize; 4], [usize; 4]) {
    let (b, h, width) = (d.size(1, 2), d.size(1, 3), d.size(1, 20) + d.pick(more));
    let scale = 1.0 / (width as f64).sqrt();
    let scales = d.size(0, 3);
    if scales == 0 {
        let (n, m) = (d.size(1, 20), d.size(1, 20));
        return (Attention { scale, mask: Mask::Full }, [b, n, h, width], [b, m, h, width]);
    }
    let mut end = 0;
    let ends: Vec<usize> = (0..scales)
        .map(|_| {
            end += d.size(1, 8);
            end
        })
        .collect();
    let n = d.size(1, end);
    (Attention { scale, mask: Mask::Blocks(ends) }, [b, n, h, width], [b, end, h, width])
}

/// (q, k, v, lse) and then `more`.
pub(super) fn derived(q: [usize; 4], k: [usize; 4], more: &[Input]) -> Vec<Input> {
    let lse = Input::uniform([q[0], q[1], q[2]], 1.0, 4.0);
    let mut inputs = vec![Input::normal(q), Input::normal(k), Input::normal(k), lse];
    inputs.extend_from_slice(more);
    inputs
}

/// Timed shapes: a training batch of the small tier, and the last scale of the reference's sampler.
pub(super) const TIMED: &[Sizes] = &[
    ("small_tier", [16, 130, 130, 4, 64], &[1, 5, 14, 30, 66, 130]),
    ("d16_last_scale", [2, 256, 680, 16, 64], &[]),
    ("full_256", [16, 256, 256, 3, 64], &[]),
    ("t3_tokenizer", [1, 256, 256, 1, 640], &[]),
];

/// Sizes with the number of keys that are there.
pub(super) const ROOMS: &[(&str, [usize; 5], usize)] = &[
    ("room", [2, 9, 21, 3, 8], 14),
    ("room_for_one", [2, 5, 6, 1, 5], 5),
    ("wide_room", [2, 20, 90, 2, 64], 37),
    ("wider_room", [2, 9, 21, 2, 200], 14),
];

pub(super) fn roomy(&(name, [b, n, m, h, d], seen): &(&'static str, [usize; 5], usize)) -> Case {
    let op = Attention { scale: 1.0 / (d as f64).sqrt(), mask: Mask::First(seen) };
    let k = [b, m, h, d];
    Case::new(name, op, vec![Input::normal([b, n, h, d]), Input::normal(k), Input::normal(k)])
}
