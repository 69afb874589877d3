//! Finds every `__global__` function of a file and reads its signature.
//!
//! One parameter a line where it is a pointer, its extent behind it as a comment:
//! `const T* __restrict__ x,   // [rows, cols]`. Values may share a line.

use crate::card::Card;
use crate::error::{Error, Fault};
use crate::formula::Formula;
use crate::kernel::{Element, Kernel, Param, ParamKind, Template, TemplateKind};
use crate::source::Source;
use crate::types;

const ENTRY: &str = "an entry reads `__global__ void __launch_bounds__(256) name(`, its parameters \
                     and its body; no macros and no declarations ahead";

const TEMPLATE: &str = "a template of an entry reads `template <class T, int N, bool B>`";

const BUFFER: &str = "a pointer reads `const T* __restrict__ x,   // [rows, cols]` where it is \
                      read and `T* __restrict__ y,   // [rows, cols]` where it is written, alone \
                      on its line";

const MAP: &str = "a tensor that is copied box by box reads `const __grid_constant__ TensorMap<T> \
                   x,   // [batch, rows, cols] in [1, 64, 64]`, alone on its line";

const SCALAR: &str = "a value reads `int rows`, of type float, double, int, unsigned, long long, \
                      unsigned long long or bool";

/// What an entry calls to wait for the launches before it (`lib/order.cuh`).
const AWAIT: &str = "await_previous";

/// Words that Rust keeps for itself and a parameter may not be called.
const KEYWORDS: [&str; 21] = [
    "as", "async", "await", "box", "crate", "dyn", "fn", "impl", "in", "let", "loop", "match",
    "mod", "move", "mut", "pub", "ref", "self", "super", "type", "where",
];

/// Names that the launcher uses itself.
const TAKEN: [&str; 6] = ["queue", "grid", "entry", "rt", "s", "size"];

/// All kernel entries of `text`, which is the file `file` (as `kernels/x.cu`).
pub fn kernels(file: &str, text: &str) -> Result<Vec<Kernel>, Error> {
    let source = Source::new(file, text)?;
    let mut found: Vec<Kernel> = Vec::new();
    let mut from = 0;
    while let Some(at) = word_at(&source.code, from, "__global__") {
        let kernel = kernel(&source, at)?;
        if let Some(twin) = found.iter().find(|k| k.name == kernel.name) {
            let what = format!("`{}` stands on line {} already", kernel.name, twin.line);
            return Err(Fault::new(what, "give each entry a name of its own").at(file, kernel.line));
        }
        found.push(kernel);
        from = at + 1;
    }
    Ok(found)
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The first place from `from` on where `word` stands as a whole word.
fn word_at(code: &str, from: usize, word: &str) -> Option<usize> {
    code.match_indices(word).map(|(at, _)| at).find(|&at| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        at >= from && !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

/// Reads words and signs from a position on.
struct Cursor<'a> {
    code: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn space(&mut self) {
        let rest = &self.code[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn word(&mut self) -> &'a str {
        self.space();
        let rest = &self.code[self.at..];
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn sign(&mut self, sign: char) -> bool {
        self.space();
        let found = self.code[self.at..].starts_with(sign);
        self.at += usize::from(found);
        found
    }

    /// What lies between the parentheses that open here.
    fn parentheses(&mut self) -> Option<&'a str> {
        if !self.sign('(') {
            return None;
        }
        let inner = self.until(['(', ')'])?;
        self.at += inner.len() + 1;
        Some(inner)
    }

    /// What lies between the bracket before this place and the one that closes it.
    fn until(&self, [opens, closes]: [char; 2]) -> Option<&'a str> {
        let rest = &self.code[self.at..];
        let mut depth = 1;
        rest.char_indices().find_map(|(i, c)| {
            depth += i32::from(c == opens) - i32::from(c == closes);
            (depth == 0).then(|| &rest[..i])
        })
    }

    /// The body whose brace is behind this place; all that is left where none closes it.
    fn body(&self) -> &'a str {
        self.until(['{', '}']).unwrap_or(&self.code[self.at..])
    }
}

/// The entry whose `__global__` stands at `at`.
fn kernel(source: &Source<'_>, at: usize) -> Result<Kernel, Error> {
    let fault = |at: usize, what: &str| source.fault(at, Fault::new(what, ENTRY));
    let line_start = source.code[..at].rfind('\n').map_or(0, |i| i + 1);
    if source.code[line_start..].trim_start().starts_with('#') {
        return Err(fault(at, "`__global__` in a macro cannot be read"));
    }
    let (template, head) = template(source, at)?;
    let mut cursor = Cursor { code: &source.code, at: at + "__global__".len() };
    let mut max_threads = None;
    let name = loop {
        match cursor.word() {
            "void" => {}
            "__launch_bounds__" => {
                let inner = cursor.parentheses().unwrap_or("");
                let threads = inner.split(',').next().unwrap_or("").trim();
                let number = threads.parse().ok().filter(|n| (1..=1024).contains(n));
                max_threads = Some(number.ok_or_else(|| {
                    fault(cursor.at, &format!("`{threads}` is no number of threads, 1 to 1024"))
                })?);
            }
            "__cluster_dims__" => {
                cursor.parentheses();
            }
            "" => return Err(fault(at, "cannot read what follows `__global__`")),
            name => break name,
        }
    };
    let name_at = cursor.at - name.len();
    let open = cursor.at;
    let Some(inside) = cursor.parentheses() else {
        return Err(fault(name_at, &format!("`{name}` has no parameters in parentheses")));
    };
    if !cursor.sign('{') {
        return Err(fault(name_at, &format!("`{name}` has no body")));
    }
    let awaits = word_at(cursor.body(), 0, AWAIT).is_some();
    let first = open + source.code[open..].find('(').map_or(0, |i| i + 1);
    let params = params(source, first, inside, &template)?;
    let line = source.line(name_at);
    let card = Card::above(source.file, &source.lines, source.line(head), name)?;
    let name = name.to_string();
    let file = source.file.to_string();
    let instances = Vec::new();
    Kernel { name, file, line, template, params, max_threads, awaits, card, instances }.complete()
}

/// The template right before `at`, and where the entry begins.
fn template(source: &Source<'_>, at: usize) -> Result<(Vec<Template>, usize), Error> {
    let before = source.code[..at].trim_end();
    if !before.ends_with('>') {
        return Ok((Vec::new(), at));
    }
    let fault = |at: usize, what: String| source.fault(at, Fault::new(what, TEMPLATE));
    let Some(head) = before.rfind("template") else {
        return Err(fault(at, "cannot read what precedes `__global__`".to_string()));
    };
    let inner = before[head + "template".len()..].trim().trim_start_matches('<');
    let inner = inner.trim_end_matches('>');
    let read = |part: &str| {
        let words: Vec<&str> = part.split_whitespace().collect();
        let kind = match words[..] {
            ["class" | "typename", _] => TemplateKind::Class,
            ["int", _] => TemplateKind::Int,
            ["bool", _] => TemplateKind::Bool,
            _ => return Err(fault(head, format!("cannot read `{}`", part.trim()))),
        };
        Ok(Template { name: words[1].to_string(), kind })
    };
    let all: Result<Vec<Template>, Error> = inner.split(',').map(read).collect();
    Ok((all?, head))
}

/// The parameters between the parentheses; `first` is the position of `inside`.
fn params(
    source: &Source<'_>,
    first: usize,
    inside: &str,
    template: &[Template],
) -> Result<Vec<Param>, Error> {
    let mut params: Vec<Param> = Vec::new();
    let mut at = first;
    let parts: Vec<&str> = inside.split(',').collect();
    for part in &parts {
        let name_at = at + part.trim_end().len().saturating_sub(1);
        if part.trim().is_empty() && parts.len() > 1 {
            return Err(source.fault(at, Fault::new("a parameter is missing", BUFFER)));
        }
        if !part.trim().is_empty() {
            let param = param(source, source.line(name_at), part, template)?;
            check_place(source, &params, &param)?;
            params.push(param);
        }
        at += part.len() + 1;
    }
    Ok(params)
}

/// What a parameter must keep with respect to those before it.
fn check_place(source: &Source<'_>, before: &[Param], param: &Param) -> Result<(), Error> {
    let name = &param.name;
    let buffer = |p: &Param| !matches!(p.kind, ParamKind::Scalar(_));
    let fault = |what, fix: &str| Err(Fault::new(what, fix).at(source.file, param.line));
    if let Some(other) = before.iter().find(|p| p.name == *name) {
        return fault(format!("`{}` stands twice", other.name), "give each its own name");
    }
    if let Some(other) =
        before.last().filter(|p| p.line == param.line && (buffer(p) || buffer(param)))
    {
        return fault(format!("`{name}` shares its line with `{}`", other.name), BUFFER);
    }
    let read = |p: &&Param| {
        matches!(p.kind, ParamKind::Buffer { write: false, .. } | ParamKind::Map { .. })
    };
    if let (ParamKind::Buffer { write: true, .. }, Some(other)) =
        (&param.kind, before.iter().find(read))
    {
        let what = format!("`{name}`, which is written, stands after `{}`", other.name);
        return fault(what, "destinations come first");
    }
    Ok(())
}

fn param(
    source: &Source<'_>,
    line: usize,
    part: &str,
    template: &[Template],
) -> Result<Param, Error> {
    let spaced = part.replace('*', " * ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let text = words.join(" ").replace(" *", "*");
    let fault = |what: String, fix: &str| Fault::new(what, fix).at(source.file, line);
    let name = words.last().copied().unwrap_or("");
    if !name.chars().all(is_word) || name.chars().next().is_none_or(|c| c.is_ascii_digit()) {
        return Err(fault(format!("cannot read the parameter `{text}`"), BUFFER));
    }
    if KEYWORDS.contains(&name) || TAKEN.contains(&name) {
        let what = format!("a parameter may not be called `{name}`");
        return Err(fault(what, "Rust or the launcher has the word; choose another"));
    }
    let body = &words[..words.len() - 1];
    let kind = match body.iter().position(|w| *w == "*") {
        None if body.first() == Some(&"const") => {
            map(body, source.text_of(line), template).map_err(|f| f.at(source.file, line))?
        }
        None => {
            let known = types::by_cuda(&body.join(" ")).filter(|t| t.by_value.is_some());
            let known = known.ok_or_else(|| fault(format!("cannot read `{text}`"), SCALAR))?;
            ParamKind::Scalar(known)
        }
        Some(star) => {
            if body[star + 1..] != ["__restrict__"] {
                return Err(fault(format!("cannot read `{text}`"), BUFFER));
            }
            let write = body[0] != "const";
            let element = body[usize::from(!write)..star].join(" ");
            let element = self::element(element, template).map_err(|f| f.at(source.file, line))?;
            let (extents, written) =
                extent(source.text_of(line), name).map_err(|f| f.at(source.file, line))?;
            ParamKind::Buffer { element, write, extents, written }
        }
    };
    Ok(Param { name: name.to_string(), line, kind })
}

/// An element type, by its name in CUDA.
fn element(name: String, template: &[Template]) -> Result<Element, Fault> {
    let class = template.iter().any(|t| t.name == name && t.kind == TemplateKind::Class);
    match types::by_cuda(&name).filter(|t| t.cuda != "bool") {
        Some(fixed) => Ok(Element::Fixed(fixed)),
        None if class => Ok(Element::Template(name)),
        None => Err(Fault::new(format!("`{name}` is no element type"), BUFFER)),
    }
}

/// A tensor map of these words, whose line ends in extents and box.
fn map(words: &[&str], line: &str, template: &[Template]) -> Result<ParamKind, Fault> {
    let fault = || Fault::new(format!("cannot read `{}`", words.join(" ")), MAP);
    let ["const", "__grid_constant__", of] = words else { return Err(fault()) };
    let of = of.strip_prefix("TensorMap<").and_then(|o| o.strip_suffix('>')).ok_or_else(fault)?;
    let element = element(of.to_string(), template)?;
    let (extents, written) = extent(line, of).map_err(|_| fault())?;
    let part = line.rsplit_once("] in [").and_then(|(_, p)| p.trim_end().strip_suffix(']'));
    let part = part.ok_or_else(fault)?;
    let sides: Vec<u32> = part.split(',').filter_map(|n| n.trim().parse().ok()).collect();
    match (<[u32; 3]>::try_from(sides), extents.len()) {
        (Ok(sides), 3) if sides.iter().all(|n| (1..=256).contains(n)) => {
            let written = format!("{written} in [{part}]");
            Ok(ParamKind::Map { element, extents, part: sides, written })
        }
        _ => Err(fault()),
    }
}

/// The extent in the comment at the end of a parameter's line.
fn extent(line: &str, name: &str) -> Result<(Vec<Formula>, String), Fault> {
    let comment = line.split_once("//").map(|(_, c)| c.trim());
    let inner = comment.and_then(|c| c.strip_prefix('[')?.split_once(']')).map(|(i, _)| i);
    let Some(inner) = inner else {
        return Err(Fault::new(format!("`{name}` has no extent"), BUFFER));
    };
    let extents: Result<Vec<Formula>, Fault> = split_extents(inner).map(Formula::parse).collect();
    Ok((extents?, format!("[{}]", inner.trim())))
}

/// Splits at the commas that no parenthesis encloses.
fn split_extents(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    text.split(move |c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    })
}
