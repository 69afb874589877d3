//! One module a kernel file: for each entry a function that checks its buffers and launches, and
//! beside it what its card says as functions.

use super::Writer;
use crate::compile::File;
use crate::kernel::{Element, Instance, Kernel, Param, ParamKind, Template, TemplateKind};
use crate::types;

/// The module of a file whose first instance is entry `first` of the table.
pub(super) fn module(w: &mut Writer, file: &File, first: usize) {
    w.line(format!("/// Launchers of the kernels in {}.", file.name));
    w.line(
        "#[allow(clippy::all, non_snake_case, unused_imports, unused_parens, unused_variables, \
         reason = \"written by a program\")]",
    );
    w.line(format!("pub mod {} {{", file.stem));
    w.line("use super::{block, fits, rt, size};");
    let mut entry = first;
    for kernel in &file.kernels {
        w.line("");
        launcher(w, kernel);
        w.line("");
        companion(w, kernel, entry);
        entry += kernel.instances.len();
    }
    w.line("}");
}

/// `<T: f::Instance, const N: i32>` or its like, and the trait with its arguments.
struct Generics {
    /// The list in angle brackets, empty without a template.
    list: String,
    /// What implements `Instance`: the first class, or `()`.
    subject: String,
    /// `Instance` with the arguments that are not the subject.
    bound: String,
}

fn generics(kernel: &Kernel) -> Generics {
    let class = kernel.class().map(|t| t.name.clone());
    let others = || kernel.template.iter().filter(|t| Some(&t.name) != class.as_ref());
    let names: Vec<&str> = others().map(|t| t.name.as_str()).collect();
    let bound = match names.is_empty() {
        true => format!("{}::Instance", kernel.name),
        false => format!("{}::Instance<{}>", kernel.name, names.join(", ")),
    };
    let one = |t: &Template| match t.kind {
        TemplateKind::Class if Some(&t.name) == class.as_ref() => format!("{}: {bound}", t.name),
        TemplateKind::Class => format!("{}: rt::Element", t.name),
        TemplateKind::Int => format!("const {}: i32", t.name),
        TemplateKind::Bool => format!("const {}: bool", t.name),
    };
    let list: Vec<String> = kernel.template.iter().map(one).collect();
    let list = if list.is_empty() { String::new() } else { format!("<{}>", list.join(", ")) };
    Generics { list, subject: class.unwrap_or_else(|| "()".to_string()), bound }
}

fn card(w: &mut Writer, kernel: &Kernel) {
    w.line(format!("/// Launches `{}` of {}:{}.", kernel.name, kernel.file, kernel.line));
    w.line("///");
    w.line("/// ```text");
    kernel.card.text.iter().for_each(|l| w.line(format!("/// {l}").trim_end()));
    w.line("/// ```");
}

fn launcher(w: &mut Writer, kernel: &Kernel) {
    let Generics { list, subject, bound } = generics(kernel);
    card(w, kernel);
    w.line(format!("pub fn {}{list}(", kernel.name));
    w.line("queue: &rt::Queue,");
    w.line("grid: rt::Grid,");
    let sizes = kernel.sizes();
    for p in &kernel.params {
        w.line(format!("{}: {},", p.name, rust_type(p, &sizes)));
    }
    w.line(") -> rt::Result<()>");
    // Without a class nothing in the list carries the bound.
    if kernel.class().is_none() && !kernel.template.is_empty() {
        w.line(format!("where (): {bound},"));
    }
    w.line("{");
    w.line(format!("let entry = <{subject} as {bound}>::ENTRY;"));
    w.line("block(entry, &grid)?;");
    if let Some(bytes) = kernel.card.shared {
        w.line(format!("let grid = rt::Grid {{ shared: {bytes}, ..grid }};"));
    }
    for p in kernel.params.iter().filter(|p| sizes.contains(&p.name.as_str())) {
        let ParamKind::Scalar(t) = p.kind else { continue };
        w.line(format!("let {0}_value: {1} = size(entry, {0:?}, {0})?;", p.name, t.rust));
    }
    w.line("{");
    sizes.iter().for_each(|n| w.line(format!("let {n} = {n} as i128;")));
    kernel.params.iter().for_each(|p| check(w, kernel, p));
    w.line("}");
    kernel.params.iter().for_each(|p| map(w, kernel, p, &sizes));
    let args: Vec<String> = kernel.params.iter().map(|p| argument(p, &sizes)).collect();
    w.line(format!("queue.launch(entry, grid, &[{}])", args.join(", ")));
    w.line("}");
}

fn rust_type(p: &Param, sizes: &[&str]) -> String {
    match &p.kind {
        ParamKind::Scalar(_) if sizes.contains(&p.name.as_str()) => "usize".to_string(),
        ParamKind::Scalar(t) => t.rust.to_string(),
        ParamKind::Buffer { element, write, .. } => {
            let element = match element {
                Element::Fixed(t) => t.rust,
                Element::Template(name) => name,
            };
            match write {
                true => format!("&mut rt::SliceMut<'_, {element}>"),
                false => format!("&rt::Slice<'_, {element}>"),
            }
        }
        ParamKind::Map { element: Element::Fixed(t), .. } => format!("&rt::Slice<'_, {}>", t.rust),
        ParamKind::Map { element: Element::Template(t), .. } => format!("&rt::Slice<'_, {t}>"),
    }
}

/// The check of a buffer, its sizes in scope as `i128`.
fn check(w: &mut Writer, kernel: &Kernel, p: &Param) {
    let extents = p.extents();
    if matches!(p.kind, ParamKind::Scalar(_)) {
        return;
    }
    let constants = constants(kernel);
    let wanted = extents.iter().map(|e| e.rust(&constants));
    let wanted = wanted.reduce(|a, b| format!("{a}.saturating_mul({b})"));
    let mut names = Vec::new();
    extents.iter().for_each(|e| e.names(&mut names));
    // A kernel counts in the type of its sizes: 32 bits unless one of them has 64.
    let of = |n: &String| kernel.params.iter().find(|p| p.name == *n).map(|p| &p.kind);
    let wide = |n: &String| matches!(of(n), Some(ParamKind::Scalar(t)) if t.bytes == 8);
    let most = if names.iter().any(wide) { "i64::MAX" } else { "i32::MAX" };
    w.line(format!(
        "fits(entry, {0:?}, {1}, {most} as i128, {0}.len())?;",
        p.name,
        wanted.unwrap_or_else(|| "1_i128".to_string()),
    ));
}

/// Template parameters that formulas may use: a bool counts as 0 or 1.
fn constants(kernel: &Kernel) -> Vec<&str> {
    let numbers = kernel.template.iter().filter(|t| t.kind != TemplateKind::Class);
    numbers.map(|t| t.name.as_str()).collect()
}

/// The extents of a tensor, which its map holds.
fn map(w: &mut Writer, kernel: &Kernel, p: &Param, sizes: &[&str]) {
    let ParamKind::Map { extents, .. } = &p.kind else { return };
    w.line(format!("let {}_extents = {{", p.name));
    sizes.iter().for_each(|n| w.line(format!("let {n} = {n} as i128;")));
    let constants = constants(kernel);
    // What fits a buffer fits 64 bits.
    let each = extents.iter().map(|e| format!("({}) as u64", e.rust(&constants)));
    w.line(format!("[{}]", each.collect::<Vec<_>>().join(", ")));
    w.line("};");
}

fn argument(p: &Param, sizes: &[&str]) -> String {
    match &p.kind {
        ParamKind::Buffer { write: true, .. } => format!("rt::Arg::output({})", p.name),
        ParamKind::Buffer { write: false, .. } => format!("rt::Arg::input({})", p.name),
        ParamKind::Map { part, .. } => {
            format!("rt::Arg::map({0}, {0}_extents, {part:?})", p.name)
        }
        ParamKind::Scalar(t) => {
            let variant = t.by_value.unwrap_or("I32");
            let value = if sizes.contains(&p.name.as_str()) { "_value" } else { "" };
            format!("rt::Arg::{variant}({}{value})", p.name)
        }
    }
}

/// The module named like the entry: the trait that tells its instances, its floor and its slack.
fn companion(w: &mut Writer, kernel: &Kernel, first: usize) {
    w.line(format!("/// Instances and card of [`{0}`](fn@{0}).", kernel.name));
    w.line(format!("pub mod {} {{", kernel.name));
    w.line("use super::rt;");
    w.line("");
    let class = kernel.class().map(|t| t.name.clone());
    let others: Vec<&Template> =
        kernel.template.iter().filter(|t| Some(&t.name) != class.as_ref()).collect();
    let declared: Vec<String> = others
        .iter()
        .map(|t| match t.kind {
            TemplateKind::Class => t.name.clone(),
            TemplateKind::Int => format!("const {}: i32", t.name),
            TemplateKind::Bool => format!("const {}: bool", t.name),
        })
        .collect();
    let angle = |list: &[String]| match list.is_empty() {
        true => String::new(),
        false => format!("<{}>", list.join(", ")),
    };
    let element = if class.is_some() { ": rt::Element" } else { "" };
    w.line("/// Implemented for what the kernel is compiled for.");
    w.line(format!("pub trait Instance{}{element} {{", angle(&declared)));
    w.line("/// The entry of the table.");
    w.line("const ENTRY: &'static rt::Entry;");
    w.line("}");
    for (i, instance) in kernel.instances.iter().enumerate() {
        let (subject, rest) = arguments(kernel, instance, class.as_deref());
        w.line(format!("impl Instance{} for {subject} {{", angle(&rest)));
        let at = first + i;
        w.line(format!("const ENTRY: &'static rt::Entry = &super::super::ENTRIES[{at}];"));
        w.line("}");
    }
    w.line("");
    formulas(w, kernel);
    w.line("}");
}

/// An instance's template arguments in Rust: the subject, and the rest.
fn arguments(kernel: &Kernel, instance: &Instance, class: Option<&str>) -> (String, Vec<String>) {
    let mut subject = "()".to_string();
    let mut rest = Vec::new();
    for (t, value) in kernel.template.iter().zip(&instance.values) {
        let rust = match t.kind {
            TemplateKind::Class => types::by_card(value).map_or("()", |t| t.rust).to_string(),
            TemplateKind::Int if value.starts_with('-') => format!("{{ {value} }}"),
            TemplateKind::Int | TemplateKind::Bool => value.clone(),
        };
        if Some(t.name.as_str()) == class {
            subject = rust;
        } else {
            rest.push(rust);
        }
    }
    (subject, rest)
}

fn formulas(w: &mut Writer, kernel: &Kernel) {
    let names = kernel.floor_arguments();
    let ints = |n: &&str| kernel.template.iter().any(|t| t.name == **n);
    let typed = |n: &&str| format!("{n}: {}", if ints(n) { "i32" } else { "usize" });
    let list: Vec<String> = names.iter().map(typed).collect();
    let list = list.join(", ");
    let widen = |w: &mut Writer| {
        names.iter().for_each(|n| w.line(format!("let {n} = {n} as i128;")));
    };
    w.line("/// The least that must move and be computed; `s` is the size of an element in bytes.");
    w.line(format!("pub fn floor({list}) -> rt::Floor {{"));
    widen(w);
    // A size may be called anything but a name with this beginning.
    w.line("let _u64 = |n: i128| u64::try_from(n.max(0)).unwrap_or(u64::MAX);");
    let (bytes, flops) = (kernel.card.bytes.rust(&[]), kernel.card.flops.rust(&[]));
    w.line(format!("rt::Floor {{ bytes: _u64({bytes}), flops: _u64({flops}) }}"));
    w.line("}");
    w.line("");
    w.line("/// By what factor a count may exceed the floor.");
    w.line(format!("pub fn slack({list}) -> f64 {{"));
    widen(w);
    w.line(kernel.card.slack.rust());
    w.line("}");
}
