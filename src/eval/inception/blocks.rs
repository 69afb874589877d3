//! The layers of FID's Inception-v3 as data: what each block joins, by the names of its weights.
//!
//! A block runs its branches side by side on one map and joins their channels. A branch may begin
//! with a pool and may end in a fork, two layers on the same map. The stem is written as blocks of
//! a single branch.

/// A convolution with its batch norm and ReLU.
#[derive(Clone, Copy)]
pub(super) struct Layer {
    /// Its name in its block.
    pub name: &'static str,
    /// Channels of its result.
    pub outs: usize,
    /// Rows and columns of its kernel.
    pub kernel: [usize; 2],
    /// Step in both directions.
    pub stride: usize,
    /// Zeros above and below, and on the left and the right.
    pub pad: [usize; 2],
}

/// A 3x3 pool.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pool {
    /// Mean of what lies inside the map, at every pixel.
    Mean,
    /// Largest of what lies inside the map, at every pixel.
    Largest,
    /// Largest of whole windows, every second pixel.
    Halving,
}

/// What one branch of a block does.
pub(super) struct Branch {
    pub pool: Option<Pool>,
    pub layers: Vec<Layer>,
    pub fork: Vec<Layer>,
}

/// Branches whose channels are joined; an empty name is the stem.
pub(super) struct Block {
    pub name: &'static str,
    pub branches: Vec<Branch>,
}

/// A layer that keeps the size of its map.
fn layer(name: &'static str, outs: usize, kernel: [usize; 2]) -> Layer {
    Layer { name, outs, kernel, stride: 1, pad: kernel.map(|k| k / 2) }
}

fn point(name: &'static str, outs: usize) -> Layer {
    layer(name, outs, [1, 1])
}

/// A 3x3 layer without padding.
fn inner(name: &'static str, outs: usize, stride: usize) -> Layer {
    Layer { name, outs, kernel: [3, 3], stride, pad: [0, 0] }
}

fn chain(layers: &[Layer]) -> Branch {
    Branch { pool: None, layers: layers.to_vec(), fork: Vec::new() }
}

fn pooled(pool: Pool, layers: &[Layer]) -> Branch {
    Branch { pool: Some(pool), ..chain(layers) }
}

fn stem(branch: Branch) -> Block {
    Block { name: "", branches: vec![branch] }
}

fn a(name: &'static str, from_pool: usize) -> Block {
    let branches = vec![
        chain(&[point("branch1x1", 64)]),
        chain(&[point("branch5x5_1", 48), layer("branch5x5_2", 64, [5, 5])]),
        chain(&[
            point("branch3x3dbl_1", 64),
            layer("branch3x3dbl_2", 96, [3, 3]),
            layer("branch3x3dbl_3", 96, [3, 3]),
        ]),
        pooled(Pool::Mean, &[point("branch_pool", from_pool)]),
    ];
    Block { name, branches }
}

fn b(name: &'static str) -> Block {
    let branches = vec![
        chain(&[inner("branch3x3", 384, 2)]),
        chain(&[
            point("branch3x3dbl_1", 64),
            layer("branch3x3dbl_2", 96, [3, 3]),
            inner("branch3x3dbl_3", 96, 2),
        ]),
        pooled(Pool::Halving, &[]),
    ];
    Block { name, branches }
}

fn c(name: &'static str, wide: usize) -> Block {
    let branches = vec![
        chain(&[point("branch1x1", 192)]),
        chain(&[
            point("branch7x7_1", wide),
            layer("branch7x7_2", wide, [1, 7]),
            layer("branch7x7_3", 192, [7, 1]),
        ]),
        chain(&[
            point("branch7x7dbl_1", wide),
            layer("branch7x7dbl_2", wide, [7, 1]),
            layer("branch7x7dbl_3", wide, [1, 7]),
            layer("branch7x7dbl_4", wide, [7, 1]),
            layer("branch7x7dbl_5", 192, [1, 7]),
        ]),
        pooled(Pool::Mean, &[point("branch_pool", 192)]),
    ];
    Block { name, branches }
}

fn d(name: &'static str) -> Block {
    let branches = vec![
        chain(&[point("branch3x3_1", 192), inner("branch3x3_2", 320, 2)]),
        chain(&[
            point("branch7x7x3_1", 192),
            layer("branch7x7x3_2", 192, [1, 7]),
            layer("branch7x7x3_3", 192, [7, 1]),
            inner("branch7x7x3_4", 192, 2),
        ]),
        pooled(Pool::Halving, &[]),
    ];
    Block { name, branches }
}

fn e(name: &'static str, pool: Pool) -> Block {
    let fork = |one: &'static str, other: &'static str| {
        vec![layer(one, 384, [1, 3]), layer(other, 384, [3, 1])]
    };
    let branches = vec![
        chain(&[point("branch1x1", 320)]),
        Branch {
            fork: fork("branch3x3_2a", "branch3x3_2b"),
            ..chain(&[point("branch3x3_1", 384)])
        },
        Branch {
            fork: fork("branch3x3dbl_3a", "branch3x3dbl_3b"),
            ..chain(&[point("branch3x3dbl_1", 448), layer("branch3x3dbl_2", 384, [3, 3])])
        },
        pooled(pool, &[point("branch_pool", 192)]),
    ];
    Block { name, branches }
}

/// The network up to its last map, 2048 channels.
pub(super) fn network() -> Vec<Block> {
    let first = [inner("Conv2d_1a_3x3", 32, 2), inner("Conv2d_2a_3x3", 32, 1)];
    let second = [point("Conv2d_3b_1x1", 80), inner("Conv2d_4a_3x3", 192, 1)];
    vec![
        stem(chain(&[first[0], first[1], layer("Conv2d_2b_3x3", 64, [3, 3])])),
        stem(pooled(Pool::Halving, &second)),
        stem(pooled(Pool::Halving, &[])),
        a("Mixed_5b", 32),
        a("Mixed_5c", 64),
        a("Mixed_5d", 64),
        b("Mixed_6a"),
        c("Mixed_6b", 128),
        c("Mixed_6c", 160),
        c("Mixed_6d", 160),
        c("Mixed_6e", 192),
        d("Mixed_7a"),
        e("Mixed_7b", Pool::Mean),
        e("Mixed_7c", Pool::Largest),
    ]
}

/// Where pytorch-fid's wrapper keeps the parts of the network: its names in a state dict of the
/// wrapper.
pub(super) const IN_WRAPPER: [(&str, &str); 16] = [
    ("Conv2d_1a_3x3", "blocks.0.0"),
    ("Conv2d_2a_3x3", "blocks.0.1"),
    ("Conv2d_2b_3x3", "blocks.0.2"),
    ("Conv2d_3b_1x1", "blocks.1.0"),
    ("Conv2d_4a_3x3", "blocks.1.1"),
    ("Mixed_5b", "blocks.2.0"),
    ("Mixed_5c", "blocks.2.1"),
    ("Mixed_5d", "blocks.2.2"),
    ("Mixed_6a", "blocks.2.3"),
    ("Mixed_6b", "blocks.2.4"),
    ("Mixed_6c", "blocks.2.5"),
    ("Mixed_6d", "blocks.2.6"),
    ("Mixed_6e", "blocks.2.7"),
    ("Mixed_7a", "blocks.3.0"),
    ("Mixed_7b", "blocks.3.1"),
    ("Mixed_7c", "blocks.3.2"),
];
