//! What the program over the generated code does; compiled by the test, not with it.

use launch::first;
use runtime::{Arg, Bf16, Element, Grid, Queue, Slice, SliceMut};
use std::marker::PhantomData;

fn input<T>(len: usize) -> Slice<'static, T> {
    Slice { address: 4096, len, owner: PhantomData }
}

fn output<T>(len: usize) -> SliceMut<'static, T> {
    SliceMut { address: 8192, len, owner: PhantomData }
}

const GRID: Grid = Grid { blocks: [1, 1, 1], threads: [32, 1, 1], shared: 0 };

fn norm<T: first::norm_fwd::Instance>(q: &Queue, len: usize, rows: usize) -> Result<(), String> {
    let (mut y, mut length) = (output::<T>(len), output::<f32>(2));
    first::norm_fwd(q, GRID, &mut y, &mut length, &input::<T>(6), rows, 3, 1e-6)
}

fn launches(q: &Queue) {
    norm::<f32>(q, 6, 2).unwrap();
    norm::<Bf16>(q, 6, 2).unwrap();
    let launched = q.launched.borrow();
    let (entry, grid, args) = &launched[1];
    assert_eq!((entry.name, entry.instance, entry.line), ("norm_fwd", "bf16", 9));
    assert_eq!(*grid, GRID);
    let bf16 = <Bf16 as Element>::NAME;
    let want = [
        Arg::Output { address: 8192, len: 6, element: bf16 },
        Arg::Output { address: 8192, len: 2, element: "f32" },
        Arg::Input { address: 4096, len: 6, element: bf16 },
        Arg::I32(2),
        Arg::I32(3),
        Arg::F32(1e-6),
    ];
    assert_eq!(args[..], want);
    let floor = (entry.floor)(args);
    assert_eq!((floor.bytes, floor.flops), (2 * 6 * 2 + 4 * 2, 3 * 6));
    assert_eq!((entry.slack)(args), 1.02);
    assert_eq!(first::norm_fwd::slack(2, 1, 5000), 1.5);
}

fn refusals(q: &Queue) {
    let told = norm::<f32>(q, 5, 2).unwrap_err();
    let place = "norm_fwd<f32> (kernels/first.cu:9)";
    assert_eq!(told, format!("{place}: `y` has 5 elements, the kernel reaches 6"));
    let told = norm::<f32>(q, 6, 3_000_000_000).unwrap_err();
    assert_eq!(told, format!("{place}: `rows` is 3000000000, more than the kernel's type holds"));
    let told = norm::<f32>(q, 6, 2_000_000_000).unwrap_err();
    let want = "`y` would have 6000000000 elements, the kernel counts to 2147483647";
    assert_eq!(told, format!("{place}: {want}"));
}

fn blocks(q: &Queue) {
    let (mut y, mut length) = (output::<f32>(6), output::<f32>(2));
    let grid = Grid { threads: [128, 3, 1], ..GRID };
    let told = first::norm_fwd(q, grid, &mut y, &mut length, &input::<f32>(6), 2, 3, 0.0);
    let want = "norm_fwd<f32> (kernels/first.cu:9): a block of 384 threads, it is compiled for 256";
    assert_eq!(told.unwrap_err(), want);
    let grid = Grid { threads: [1024, 1, 1], ..GRID };
    first::seed_fwd(q, grid, &mut output(2), 0.5).unwrap();
}

fn templates(q: &Queue) {
    first::tile_fwd::<8, true>(q, GRID, &mut output(4), 9, true).unwrap();
    assert!(first::tile_fwd::<4, true>(q, GRID, &mut output(5), 9, true).is_err());
    first::cast_fwd::<f32, u8>(q, GRID, &mut output(3), &input(3), 3).unwrap();
    first::cast_fwd(q, GRID, &mut output::<Bf16>(3), &input::<u8>(3), 3).unwrap();
    first::seed_fwd(q, GRID, &mut output(2), 1.5).unwrap();
    assert!(first::seed_fwd(q, GRID, &mut output(1), 1.5).is_err());
    let launched = q.launched.borrow();
    let (entry, _, args) = launched.iter().find(|(e, ..)| e.name == "tile_fwd").unwrap();
    assert_eq!(entry.instance, "8, true");
    assert_eq!((entry.floor)(args).bytes, 8);
    assert_eq!(args[1..], [Arg::I64(9), Arg::Bool(true)]);
}

fn tables() {
    assert_eq!(launch::ENTRIES.len(), 2 + 4 + 2 + 1);
    assert_eq!(launch::FILES, ["kernels/first.cu"]);
    assert_eq!(launch::NVRTC.is_some(), COMPILED);
    let norm = &launch::ENTRIES[0];
    assert!(norm.card.starts_with("norm_fwd: y = x / |x| [row by row].\n  for    T: f32, bf16"));
    assert_eq!((norm.max_threads, norm.params.len()), (Some(256), 6));
    assert_eq!((norm.params[2].extent, norm.params[2].element), ("[rows, cols]", "f32"));
    let archs: Vec<&str> = norm.module.images.iter().map(|i| i.arch).collect();
    if COMPILED {
        assert_eq!(archs, ["compute_80", "compute_90a", "sm_80", "sm_90a"]);
        assert!(launch::ENTRIES.iter().all(|e| e.symbol.contains(e.name)));
        let ptx = std::str::from_utf8(norm.module.images[0].bytes).unwrap();
        assert!(launch::ENTRIES.iter().all(|e| ptx.contains(&format!(".entry {}(", e.symbol))));
        assert!(launch::ENTRIES.iter().all(|e| e.resources.len() == 2));
    } else {
        assert!(archs.is_empty() && norm.symbol.is_empty() && norm.resources.is_empty());
    }
}

fn main() {
    let q = Queue::default();
    launches(&q);
    refusals(&q);
    blocks(&q);
    templates(&q);
    tables();
    println!("all well");
}
