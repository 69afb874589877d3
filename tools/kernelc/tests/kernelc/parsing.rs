//! Signatures and cards: good ones are read whole, each bad one is refused with its line.

use kernelc::{Element, Kernel, ParamKind, TemplateKind};

const GOOD: &str = r#"// A file.
#include "lib/bf16.cuh"

// norm_fwd: y = x / |x|,
//          row by row.
//   for    T: f32, bf16
//   floor  bytes = 2*rows*cols*s + 4*rows;  flops = 3*rows*cols
//   plan   one warp a row,
//          16-byte loads
//   slack  1.02 for cols <= 4096; 1.55 beyond (second read)
//   bits   fixed tree
template <class T>
__global__ void __launch_bounds__(256) norm_fwd(
    T*       __restrict__ y,      // [rows, cols]
    float*   __restrict__ length, // [rows] in full precision
    const T* __restrict__ x,      // [rows, ceil(cols, 4) * 4]
    int rows, int cols, float eps) {
    y[0] = x[0];
}
"#;

fn one(text: &str) -> Kernel {
    let mut all = kernelc::kernels("kernels/x.cu", text).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(all.len(), 1);
    all.remove(0)
}

/// What is said of `GOOD` with `old` replaced by `new`.
fn told(old: &str, new: &str) -> String {
    assert!(GOOD.contains(old), "the test replaces what is not there: {old}");
    kernelc::kernels("kernels/x.cu", &GOOD.replacen(old, new, 1)).unwrap_err().to_string()
}

#[track_caller]
fn refused(old: &str, new: &str, want: &str) {
    let got = told(old, new);
    assert!(got.starts_with(want), "wanted: {want}\n   got: {got}");
    let (_, fix) = got.split_once("; ").expect("a message says what to do");
    assert!(fix.len() > 10, "the way out is too short: {got}");
}

#[test]
fn a_good_entry_is_read_whole() {
    let k = one(GOOD);
    assert_eq!((k.name.as_str(), k.line, k.max_threads), ("norm_fwd", 13, Some(256)));
    assert_eq!(k.card.what, "y = x / |x|, row by row.");
    assert_eq!(k.card.text.len(), 8);
    assert_eq!(k.sizes(), ["rows", "cols"]);
    assert_eq!(k.floor_arguments(), ["s", "rows", "cols"]);
    let asked: Vec<&str> = k.instances.iter().map(|i| i.expression.as_str()).collect();
    assert_eq!(asked, ["norm_fwd<float>", "norm_fwd<bf16>"]);
    let names: Vec<&str> = k.params.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["y", "length", "x", "rows", "cols", "eps"]);
    let ParamKind::Buffer { element, write, extents, written } = &k.params[2].kind else {
        panic!("x is a buffer");
    };
    assert_eq!(*element, Element::Template("T".to_string()));
    assert_eq!((*write, extents.len(), written.as_str()), (false, 2, "[rows, ceil(cols, 4) * 4]"));
    assert!(matches!(&k.params[1].kind, ParamKind::Buffer { element: Element::Fixed(t), .. }
        if t.card == "f32"));
    assert!(matches!(k.params[5].kind, ParamKind::Scalar(t) if t.cuda == "float"));
}

#[test]
fn template_parameters_multiply() {
    let text = GOOD
        .replace("T: f32, bf16", "T: f32, bf16; N: 4, 8; B: true")
        .replace("<class T>", "<class T, int N, bool B>")
        .replace("flops = 3", "flops = N");
    let k = one(&text);
    assert_eq!(k.template[1].kind, TemplateKind::Int);
    let asked: Vec<&str> = k.instances.iter().map(|i| i.expression.as_str()).collect();
    let want = ["float, 4", "float, 8", "bf16, 4", "bf16, 8"];
    assert_eq!(asked, want.map(|w| format!("norm_fwd<{w}, true>")));
    assert_eq!(k.floor_arguments(), ["s", "N", "rows", "cols"]);
}

#[test]
fn an_entry_without_a_template_needs_no_types() {
    let text = GOOD
        .replace("template <class T>\n", "")
        .replace("//   for    T: f32, bf16\n", "")
        .replace("cols*s", "cols*4")
        .replace("T*", "float*");
    assert_eq!(one(&text).instances[0].expression, "norm_fwd");
}

#[test]
fn comments_and_strings_hide_what_they_hold() {
    let text =
        format!("// __global__ void a(\n/* __global__ */ const char* s = \"__global__\";\n{GOOD}");
    assert_eq!(one(&text).line, 15);
}

#[test]
fn bad_signatures_are_refused_with_their_line() {
    let at = "kernels/x.cu";
    refused("// [rows, cols]", "", &format!("{at}:14: `y` has no extent; a pointer reads"));
    refused(
        "[rows] in",
        "[row] in",
        &format!("{at}:15: `row` in the extent [row] of `length` is no"),
    );
    refused(
        "[rows] in",
        "[eps] in",
        &format!("{at}:15: `eps` in the extent [eps] of `length` is no"),
    );
    refused("[rows] in", "[2 rows]", &format!("{at}:15: cannot read the formula `2 rows`"));
    refused("T*       __restrict__ y", "T* y", &format!("{at}:14: cannot read `T* y`"));
    refused(
        "T*       __restrict__ y",
        "T** __restrict__ y",
        &format!("{at}:14: cannot read `T** __"),
    );
    refused("float*   __", "half* __", &format!("{at}:15: `half` is no element type"));
    refused(
        "int rows",
        "size_t rows",
        &format!("{at}:17: cannot read `size_t rows`; a value reads"),
    );
    refused("float eps", "float", &format!("{at}:17: cannot read `float`"));
    refused("float eps", "float type", &format!("{at}:17: a parameter may not be called `type`"));
    refused("float eps", "float rows", &format!("{at}:17: `rows` stands twice"));
    refused("int rows, int", "int rows,, int", &format!("{at}:17: a parameter is missing"));
    refused(
        "    int rows, int cols",
        "    const T* __restrict__ w, int rows, // [rows]\n    int cols",
        &format!("{at}:17: `rows` shares its line with `w`"),
    );
    refused(
        "float*   __restrict__ length",
        "const float* __restrict__ g, // [rows]\n    float* __restrict__ length",
        &format!("{at}:16: `length`, which is written, stands after `g`; destinations come first"),
    );
    refused(") {\n    y[0] = x[0];\n}", ");", &format!("{at}:13: `norm_fwd` has no body"));
    refused("bounds__(256)", "bounds__(SIZE)", &format!("{at}:13: `SIZE` is no number of threads"));
    refused("class T>", "class>", &format!("{at}:12: cannot read `class`"));
    refused(
        "__global__ void",
        "#define K __global__ void",
        &format!("{at}:13: `__global__` in a macro"),
    );
    refused("norm_fwd(\n", "norm_fwd\n", &format!("{at}:13: `norm_fwd` has no parameters"));
}

#[test]
fn bad_cards_are_refused_with_their_line() {
    let at = "kernels/x.cu";
    refused(
        "// norm_fwd: y",
        "// norm_bwd: y",
        &format!("{at}:4: the comment above `norm_fwd` does not begin"),
    );
    refused("fixed tree\n", "fixed tree\n\n", &format!("{at}:13: `norm_fwd` has no card above it"));
    refused("   floor  bytes", "   flor   bytes", &format!("{at}:7: `flor` is no key of a card"));
    refused(
        "   bits   fixed",
        "   code   speed\n//   bits   fixed",
        &format!("{at}:11: `speed` is nothing that machine code is searched for"),
    );
    refused("   bits   fixed", "   plan   fixed", &format!("{at}:11: `plan` stands twice"));
    refused(
        "//   bits   fixed tree\n",
        "",
        &format!("{at}:4: the card of `norm_fwd` has no `bits`"),
    );
    refused("   bits   fixed tree", "   bits", &format!("{at}:11: `bits` of the card is empty"));
    refused(
        ";  flops = 3*rows*cols",
        "",
        &format!("{at}:7: cannot read the floor `bytes = 2*rows"),
    );
    refused("bytes = 2", "byte = 2", &format!("{at}:7: cannot read the floor"));
    refused("2*rows*cols*s", "2*rows*col*s", &format!("{at}:13: `col` in the card of `norm_fwd`"));
    refused("T: f32, bf16", "f32, bf16", &format!("{at}:6: cannot read `f32, bf16` after `for`"));
    refused("T: f32, bf16", "T: f32, fp8", &format!("{at}:13: `fp8` is no value for `T`"));
    refused("T: f32, bf16", "U: f32", &format!("{at}:13: `U` is no template parameter of"));
    refused(
        "//   for    T: f32, bf16\n",
        "",
        &format!("{at}:12: the card of `norm_fwd` has no values"),
    );
    refused("1.02 for", "0.5 for", &format!("{at}:10: `0.5` is no slack"));
}

#[test]
fn names_are_not_given_twice() {
    let text = format!("{GOOD}\n{}", GOOD.replace("#include \"lib/bf16.cuh\"", ""));
    let told = kernelc::kernels("kernels/x.cu", &text).unwrap_err().to_string();
    assert!(told.starts_with("kernels/x.cu:33: `norm_fwd` stands on line 13 already"), "{told}");
}

const BOXES: &str = r#"// copy_fwd: y = x.
//   for    T: bf16; B: false, true
//   arch   sm_90a
//   shared 65536
//   floor  bytes = 2*n*s;  flops = 0
//   plan   boxes
//   bits   exact
template <class T, bool B>
__global__ void copy_fwd(
    T* __restrict__ y,                        // [n]
    const __grid_constant__ TensorMap<T> x,   // [1, 1 + B*(n - 1), n] in [1, 64, 32]
    int n) {
    y[0] = T{0};
}
"#;

#[test]
fn a_tensor_that_comes_in_boxes_is_read() {
    let k = one(BOXES);
    assert_eq!((k.card.arch.as_deref(), k.card.shared), (Some("sm_90a"), Some(65536)));
    assert_eq!(k.sizes(), ["n"]);
    let ParamKind::Map { extents, part, written, .. } = &k.params[1].kind else {
        panic!("x is a tensor map");
    };
    assert_eq!((extents.len(), *part), (3, [1, 64, 32]));
    assert_eq!(written, "[1, 1 + B*(n - 1), n] in [1, 64, 32]");
    let told = |old: &str, new: &str| {
        let text = BOXES.replacen(old, new, 1);
        kernelc::kernels("kernels/x.cu", &text).unwrap_err().to_string()
    };
    let map = "kernels/x.cu:11: cannot read `const __grid_constant__ TensorMap<T>`; a tensor";
    for (old, new) in [("1, 64, 32]", "64, 32]"), (" in [1, 64, 32]", ""), ("64, 32", "512, 32")] {
        assert!(told(old, new).starts_with(map), "{}", told(old, new));
    }
    let told_of = |old, new, want: &str| assert!(told(old, new).contains(want), "{old}");
    told_of("sm_90a", "sm_90", ":3: `sm_90` is no architecture of its own");
    told_of("65536", "much", ":4: `much` is no number of bytes");
    told_of("B*(n", "C*(n", ":11: `C` in the extent");
    told_of("TensorMap<T>", "TensorMap<U>", ":11: `U` is no element type");
}
