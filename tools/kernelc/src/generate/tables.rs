//! The tables: every compiled image, and every instance of every entry with its symbol, card,
//! parameters and resources.

use super::Writer;
use crate::compile::{File, Image};
use crate::kernel::{Element, Instance, Kernel, Param, ParamKind, TemplateKind};
use crate::types;

/// The images by file.
pub(super) fn modules(w: &mut Writer, files: &[File], images: &[Image]) {
    w.line("/// The compiled images, file by file; PTX does not end in a zero.");
    w.line(format!("pub static MODULES: [rt::Module; {}] = [", files.len()));
    for file in files {
        w.line("rt::Module {");
        w.line(format!("name: {:?},", file.stem));
        w.line("images: &[");
        for image in images.iter().filter(|i| i.stem == file.stem) {
            let name = image.file_name();
            w.line(format!(
                "rt::Image {{ arch: {:?}, bytes: include_bytes!({name:?}) }},",
                image.arch
            ));
        }
        w.line("],");
        w.line("},");
    }
    w.line("];");
}

/// The instances, in the order of files and entries.
pub(super) fn entries(w: &mut Writer, files: &[File], images: &[Image]) {
    let all = files.iter().flat_map(|f| &f.kernels);
    let count: usize = all.map(|k| k.instances.len()).sum();
    w.line("/// Every instance of every kernel.");
    w.line(format!("pub static ENTRIES: [rt::Entry; {count}] = ["));
    for (module, file) in files.iter().enumerate() {
        for kernel in &file.kernels {
            for instance in &kernel.instances {
                entry(w, file, module, (kernel, instance), images);
            }
        }
    }
    w.line("];");
}

fn entry(
    w: &mut Writer,
    file: &File,
    module: usize,
    (kernel, instance): (&Kernel, &Instance),
    images: &[Image],
) {
    let own: Vec<_> = images
        .iter()
        .filter(|i| i.stem == file.stem)
        .filter_map(|i| Some((i, i.symbols.iter().find(|s| s.expression == instance.expression)?)))
        .collect();
    // One mangling serves all architectures.
    let symbol = own.first().map_or("", |(_, s)| &s.symbol);
    w.line("rt::Entry {");
    w.line(format!("name: {:?},", kernel.name));
    w.line(format!("instance: {:?},", instance.values.join(", ")));
    w.line(format!("symbol: {symbol:?},"));
    w.line(format!("module: &MODULES[{module}],"));
    w.line(format!("file: {:?},", kernel.file));
    w.line(format!("line: {},", kernel.line));
    w.line(format!("max_threads: {:?},", kernel.max_threads));
    w.line(format!("awaits: {},", kernel.awaits));
    w.line(format!("dynamic_shared: {},", kernel.card.shared.unwrap_or(0)));
    w.line(format!("card: {:?},", kernel.card.text.join("\n")));
    w.line("params: &[");
    for p in &kernel.params {
        w.line(param(kernel, instance, p));
    }
    w.line("],");
    w.line("resources: &[");
    for (image, symbol) in &own {
        let Some(r) = symbol.resources else { continue };
        w.line(format!(
            "rt::Resources {{ arch: {:?}, registers: {}, stack: {}, spill_stores: {}, \
             spill_loads: {}, shared: {}, tensor: {}, wide: {} }},",
            image.arch,
            r.registers,
            r.stack,
            r.spill_stores,
            r.spill_loads,
            r.shared,
            r.code.tensor,
            r.code.wide
        ));
    }
    w.line("],");
    for formula in ["floor", "slack"] {
        let path = format!("{}::{}", file.stem, kernel.name);
        let given = formula_arguments(kernel, instance);
        w.line(format!("{formula}: |_args| {path}::{formula}({given}),"));
    }
    w.line("},");
}

/// What `floor` and `slack` get from a launch's arguments.
fn formula_arguments(kernel: &Kernel, instance: &Instance) -> String {
    let value = |name: &str| {
        let at = kernel.template.iter().position(|t| t.name == name)?;
        instance.values.get(at).cloned()
    };
    let given = |name: &str| match (name, kernel.class()) {
        ("s", Some(class)) => {
            let bytes = value(&class.name).and_then(|v| types::by_card(&v)).map_or(0, |t| t.bytes);
            bytes.to_string()
        }
        _ => value(name).unwrap_or_else(|| {
            let at = kernel.params.iter().position(|p| p.name == name).unwrap_or(0);
            format!("rt::size_at(_args, {at})")
        }),
    };
    kernel.floor_arguments().into_iter().map(given).collect::<Vec<_>>().join(", ")
}

fn param(kernel: &Kernel, instance: &Instance, p: &Param) -> String {
    let (element, kind, extent) = match &p.kind {
        ParamKind::Scalar(t) => (t.card.to_string(), "Value", ""),
        ParamKind::Buffer { element, write, written, .. } => {
            let kind = if *write { "Output" } else { "Input" };
            (card_name(kernel, instance, element), kind, written.as_str())
        }
        ParamKind::Map { element, written, .. } => {
            (card_name(kernel, instance, element), "Input", written.as_str())
        }
    };
    format!(
        "rt::Param {{ name: {:?}, element: {element:?}, kind: rt::Kind::{kind}, \
         extent: {extent:?} }},",
        p.name
    )
}

/// An element type as cards name it.
fn card_name(kernel: &Kernel, instance: &Instance, element: &Element) -> String {
    match element {
        Element::Fixed(t) => t.card.to_string(),
        Element::Template(name) => {
            let own =
                |t: &&crate::kernel::Template| t.name == *name && t.kind == TemplateKind::Class;
            let at = kernel.template.iter().position(|t| own(&t)).unwrap_or(0);
            instance.values.get(at).cloned().unwrap_or_default()
        }
    }
}
