//! A kernel entry as read: its signature, its card and the instances it is compiled as.

use crate::card::Card;
use crate::error::{Error, Fault};
use crate::formula::Formula;
use crate::types::{self, Type};

/// What a template parameter stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateKind {
    /// `class T`.
    Class,
    /// `int N`.
    Int,
    /// `bool B`.
    Bool,
}

/// One template parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Its name.
    pub name: String,
    /// What it stands for.
    pub kind: TemplateKind,
}

/// The element type of a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Element {
    /// One type for all instances.
    Fixed(&'static Type),
    /// A template parameter.
    Template(String),
}

/// What a kernel takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParamKind {
    /// A pointer to global memory.
    Buffer {
        /// What it points to.
        element: Element,
        /// Whether the kernel writes it.
        write: bool,
        /// Its extents.
        extents: Vec<Formula>,
        /// Its extents as written, with brackets.
        written: String,
    },
    /// A tensor that the copy engine reads box by box, through a map that the launcher makes.
    Map {
        /// What it holds.
        element: Element,
        /// Its three extents, the contiguous axis last; whole-number and bool template parameters
        /// count in them.
        extents: Vec<Formula>,
        /// The extents of a box.
        part: [u32; 3],
        /// Both as written.
        written: String,
    },
    /// A value.
    Scalar(&'static Type),
}

/// One parameter of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name.
    pub name: String,
    /// 1-based line.
    pub line: usize,
    /// What it is.
    pub kind: ParamKind,
}

impl Param {
    /// The extents of a buffer or tensor; none of a value.
    pub fn extents(&self) -> &[Formula] {
        match &self.kind {
            ParamKind::Buffer { extents, .. } | ParamKind::Map { extents, .. } => extents,
            ParamKind::Scalar(_) => &[],
        }
    }
}

/// One set of template arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The arguments as the card names them, in the template's order.
    pub values: Vec<String>,
    /// What NVRTC is asked for, as `layer_norm_fwd<float>`.
    pub expression: String,
}

/// A kernel entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// The file, as `kernels/x.cu`.
    pub file: String,
    /// 1-based line of its name.
    pub line: usize,
    /// Its template parameters.
    pub template: Vec<Template>,
    /// Its parameters.
    pub params: Vec<Param>,
    /// The largest block it may be launched with, where `__launch_bounds__` says.
    pub max_threads: Option<u32>,
    /// Whether its body waits for the launches before it, so that it may begin beside them.
    pub awaits: bool,
    /// Its card.
    pub card: Card,
    /// What it is compiled as.
    pub instances: Vec<Instance>,
}

const FOR: &str = "name every template parameter after `for` and the values to compile, as in \
                   `//   for    T: f32, bf16; N: 4, 8; B: false, true`";

impl Kernel {
    /// The first template parameter that is a class: `s` in formulas is the size of its elements.
    pub fn class(&self) -> Option<&Template> {
        self.template.iter().find(|t| t.kind == TemplateKind::Class)
    }

    /// Names of the parameters that formulas use, in the signature's order: what the launcher takes
    /// as `usize`.
    pub fn sizes(&self) -> Vec<&str> {
        let mut used = self.formula_names();
        for p in &self.params {
            p.extents().iter().for_each(|e| e.names(&mut used));
        }
        let own = self.params.iter().map(|p| p.name.as_str());
        own.filter(|name| used.iter().any(|u| u == name)).collect()
    }

    /// Names that the card's floor and slack use.
    fn formula_names(&self) -> Vec<String> {
        let mut used = Vec::new();
        self.card.bytes.names(&mut used);
        self.card.flops.names(&mut used);
        self.card.slack.names(&mut used);
        used
    }

    /// The arguments of the generated `floor` and `slack`: `s`, whole-number template parameters,
    /// sizes.
    pub fn floor_arguments(&self) -> Vec<&str> {
        let ints = self.template.iter().filter(|t| t.kind == TemplateKind::Int);
        let mut names: Vec<&str> = self.class().iter().map(|_| "s").collect();
        names.extend(ints.map(|t| t.name.as_str()));
        names.extend(self.sizes());
        names
    }

    /// Checks what signature and card say of each other, and fills in the instances.
    pub(crate) fn complete(mut self) -> Result<Self, Error> {
        self.check_names()?;
        let fault = |what: String| Fault::new(what, FOR).at(&self.file, self.line);
        let named = self.card.choices.iter().map(|(name, _)| name);
        if let Some(extra) = named.clone().find(|n| self.template.iter().all(|t| t.name != **n)) {
            return Err(fault(format!("`{extra}` is no template parameter of `{}`", self.name)));
        }
        let mut sets: Vec<Vec<String>> = vec![Vec::new()];
        for t in &self.template {
            let of =
                |(name, values): &(String, Vec<String>)| (*name == t.name).then(|| values.clone());
            let Some(values) = self.card.choices.iter().find_map(of) else {
                let what = format!("the card of `{}` has no values for `{}`", self.name, t.name);
                return Err(fault(what));
            };
            if let Some(bad) = values.iter().find(|v| cuda_value(t.kind, v).is_none()) {
                return Err(fault(format!("`{bad}` is no value for `{}`", t.name)));
            }
            let each = |set: Vec<String>| {
                values.iter().map(move |v| set.iter().chain([v]).cloned().collect())
            };
            sets = sets.into_iter().flat_map(each).collect();
        }
        self.instances = sets.into_iter().map(|values| self.instance(values)).collect();
        Ok(self)
    }

    fn instance(&self, values: Vec<String>) -> Instance {
        let pairs = self.template.iter().zip(&values);
        let cuda: Vec<String> = pairs.filter_map(|(t, v)| cuda_value(t.kind, v)).collect();
        let expression = match cuda.is_empty() {
            true => self.name.clone(),
            false => format!("{}<{}>", self.name, cuda.join(", ")),
        };
        Instance { values, expression }
    }

    /// Every name in a formula must be a whole-number parameter.
    fn check_names(&self) -> Result<(), Error> {
        let mut known: Vec<&str> = Vec::new();
        let ints = self.template.iter().filter(|t| t.kind == TemplateKind::Int);
        known.extend(ints.map(|t| t.name.as_str()));
        for p in &self.params {
            if matches!(p.kind, ParamKind::Scalar(t) if t.counts()) {
                known.push(&p.name);
            }
        }
        let fix = |known: &[&str]| match known.is_empty() {
            true => format!("`{}` has no whole-number parameter to count with", self.name),
            false => format!("formulas know {} here", known.join(", ")),
        };
        let flags = self.template.iter().filter(|t| t.kind == TemplateKind::Bool);
        let flags: Vec<&str> = flags.map(|t| t.name.as_str()).collect();
        for p in &self.params {
            let mut used = Vec::new();
            p.extents().iter().for_each(|e| e.names(&mut used));
            let written = match &p.kind {
                ParamKind::Buffer { written, .. } => written,
                ParamKind::Map { written, .. } => {
                    used.retain(|n| !flags.contains(&n.as_str()));
                    written
                }
                ParamKind::Scalar(_) => continue,
            };
            if let Some(bad) = used.iter().find(|n| !known.contains(&n.as_str())) {
                let what = format!("`{bad}` in the extent {written} of `{}` is no size", p.name);
                return Err(Fault::new(what, fix(&known)).at(&self.file, p.line));
            }
        }
        if self.class().is_some() {
            known.push("s");
        }
        let used = self.formula_names();
        match used.iter().find(|n| !known.contains(&n.as_str())) {
            None => Ok(()),
            Some(bad) => {
                let what = format!("`{bad}` in the card of `{}` is no size", self.name);
                Err(Fault::new(what, fix(&known)).at(&self.file, self.line))
            }
        }
    }
}

/// A card's value of a template parameter in CUDA.
fn cuda_value(kind: TemplateKind, value: &str) -> Option<String> {
    match kind {
        TemplateKind::Class => types::by_card(value).map(|t| t.cuda.to_string()),
        TemplateKind::Int => value.parse::<i32>().ok().map(|n| n.to_string()),
        TemplateKind::Bool => value.parse::<bool>().ok().map(|b| b.to_string()),
    }
}
