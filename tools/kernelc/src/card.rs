//! The card above a kernel entry: what it computes, for which types, its floor, plan and bits.
//!
//! ```text
//! // layer_norm_fwd: y = (x - mean) * rstd, keeping rstd.
//! //   for    T: f32, bf16
//! //   floor  bytes = 2*rows*cols*s + 4*rows;  flops = 6*rows*cols
//! //   plan   one warp a row
//! //   bits   fixed shuffle tree: repeatable
//! ```
//! A key stands after three spaces; what goes on below it stands further in.

use crate::error::{Error, Fault};
use crate::formula::Formula;
use crate::sass::Claim;
use crate::slack::Slack;

const KEYS: [&str; 9] =
    ["for", "arch", "shared", "floor", "plan", "code", "slack", "bits", "tried"];

const CARD: &str = "a card reads `// NAME: what it computes`, then `//   for    T: f32, bf16` (for \
                    a template), `//   floor  bytes = ...; flops = ...`, `//   plan   ...`, \
                    `//   bits   ...`, and where wanted `//   arch   sm_90a`, `//   shared 65536`, \
                    `//   slack  1.02` and `//   tried  ...`";

const FLOOR: &str = "it reads `//   floor  bytes = 2*n*s;  flops = n`";

const CODE: &str = "it reads `//   code   tensor cores, 16-byte loads`, or one of them";

const ARCH: &str = "it reads `//   arch   sm_90a`; what every architecture has needs no such line";

const SHARED: &str = "it reads `//   shared 65536`: the bytes of `extern __shared__` memory";

const FOR: &str = "it reads `//   for    T: f32, bf16`, further parameters after a `;`";

/// A card as read.
#[derive(Clone, Debug, PartialEq)]
pub struct Card {
    /// Its lines without the slashes.
    pub text: Vec<String>,
    /// What the entry computes.
    pub what: String,
    /// Template parameters and the values they are compiled for.
    pub choices: Vec<(String, Vec<String>)>,
    /// The least number of bytes that must move.
    pub bytes: Formula,
    /// The least number of floating-point operations; a fused multiply-add counts as two.
    pub flops: Formula,
    /// What the machine code has in every instance.
    pub claims: Vec<Claim>,
    /// By how much counts may exceed the floor.
    pub slack: Slack,
    /// The one architecture that has its instructions, where not all have.
    pub arch: Option<String>,
    /// Bytes of dynamic shared memory of a block, where it has some.
    pub shared: Option<u32>,
}

/// One key of a card: its line and its value, continuation lines joined.
struct Field {
    key: &'static str,
    line: usize,
    value: String,
}

impl Card {
    /// Reads the comment block that ends right above `line` (1-based) of `lines` as the card of
    /// `name`.
    pub(crate) fn above(
        file: &str,
        lines: &[&str],
        line: usize,
        name: &str,
    ) -> Result<Self, Error> {
        let is_comment = |l: &&&str| l.trim_start().starts_with("//");
        let count = lines[..line - 1].iter().rev().take_while(is_comment).count();
        let first = line - count;
        let block: Vec<&str> = lines[first - 1..line - 1]
            .iter()
            .map(|l| l.trim_start().trim_start_matches('/').trim_end())
            .collect();
        let head = block.first().and_then(|l| l.trim().strip_prefix(name)?.strip_prefix(':'));
        let Some(head) = head else {
            let what = match block.first() {
                None => format!("`{name}` has no card above it"),
                Some(_) => format!("the comment above `{name}` does not begin with `{name}:`"),
            };
            return Err(Fault::new(what, CARD).at(file, if count == 0 { line } else { first }));
        };
        let (what, fields) = fields(file, first, head.trim(), &block[1..])?;
        let mut card = Self::of(file, first, name, &fields)?;
        card.what = what;
        card.text = block.iter().map(|l| l.strip_prefix(' ').unwrap_or(l).to_string()).collect();
        Ok(card)
    }

    fn of(file: &str, first: usize, name: &str, fields: &[Field]) -> Result<Self, Error> {
        let find = |key: &str| fields.iter().find(|f| f.key == key);
        let wanted = |key: &str| {
            let missing = || Fault::new(format!("the card of `{name}` has no `{key}`"), CARD);
            find(key).ok_or_else(|| missing().at(file, first))
        };
        wanted("plan")?;
        wanted("bits")?;
        let floor = wanted("floor")?;
        let (bytes, flops) = floor_of(&floor.value).map_err(|f| f.at(file, floor.line))?;
        let claims = match find("code") {
            None => Vec::new(),
            Some(f) => Claim::list(&f.value).map_err(|claim| {
                let what = format!("`{claim}` is nothing that machine code is searched for");
                Fault::new(what, CODE).at(file, f.line)
            })?,
        };
        let slack = match find("slack") {
            None => Slack::default(),
            Some(f) => Slack::parse(&f.value).map_err(|fault| fault.at(file, f.line))?,
        };
        let choices = match find("for") {
            None => Vec::new(),
            Some(f) => choices(&f.value).map_err(|fault| fault.at(file, f.line))?,
        };
        let arch = match find("arch") {
            None => None,
            Some(f) => Some(exact_arch(&f.value).map_err(|fault| fault.at(file, f.line))?),
        };
        let shared = match find("shared") {
            None => None,
            Some(f) => Some(f.value.trim().parse().map_err(|_| {
                Fault::new(format!("`{}` is no number of bytes", f.value), SHARED).at(file, f.line)
            })?),
        };
        let (text, what) = (Vec::new(), String::new());
        Ok(Self { text, what, choices, bytes, flops, claims, slack, arch, shared })
    }
}

/// The name of an architecture whose code runs nowhere else, as `sm_90a`.
fn exact_arch(text: &str) -> Result<String, Fault> {
    let name = text.trim();
    let digits = name.strip_prefix("sm_").and_then(|n| n.strip_suffix('a')).unwrap_or("");
    match !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        true => Ok(name.to_string()),
        false => Err(Fault::new(format!("`{name}` is no architecture of its own"), ARCH)),
    }
}

/// What the entry computes, and the keys below it.
fn fields(
    file: &str,
    first: usize,
    head: &str,
    lines: &[&str],
) -> Result<(String, Vec<Field>), Error> {
    let mut what = head.to_string();
    let mut fields: Vec<Field> = Vec::new();
    for (i, text) in lines.iter().enumerate() {
        let line = first + 1 + i;
        let indent = text.len() - text.trim_start().len();
        let body = text.trim_start();
        if indent == 3 && !body.is_empty() {
            let (key, value) = body.split_once(' ').unwrap_or((body, ""));
            let Some(key) = KEYS.into_iter().find(|k| *k == key) else {
                return Err(Fault::new(format!("`{key}` is no key of a card"), CARD).at(file, line));
            };
            if fields.iter().any(|f| f.key == key) {
                return Err(Fault::new(format!("`{key}` stands twice"), CARD).at(file, line));
            }
            fields.push(Field { key, line, value: value.trim().to_string() });
        } else {
            let target = fields.last_mut().map_or(&mut what, |f| &mut f.value);
            *target = format!("{target} {body}").trim().to_string();
        }
    }
    if let Some(empty) = fields.iter().find(|f| f.value.is_empty()) {
        let fault = Fault::new(format!("`{}` of the card is empty", empty.key), CARD);
        return Err(fault.at(file, empty.line));
    }
    Ok((what, fields))
}

fn floor_of(text: &str) -> Result<(Formula, Formula), Fault> {
    let parts: Vec<&str> = text.split(';').map(str::trim).collect();
    let value = |part: &str, key: &str| {
        let value = part.strip_prefix(key)?.trim_start().strip_prefix('=')?;
        Some(Formula::parse(value))
    };
    let [bytes, flops] = parts[..] else {
        return Err(Fault::new(format!("cannot read the floor `{text}`"), FLOOR));
    };
    match (value(bytes, "bytes"), value(flops, "flops")) {
        (Some(bytes), Some(flops)) => Ok((bytes?, flops?)),
        _ => Err(Fault::new(format!("cannot read the floor `{text}`"), FLOOR)),
    }
}

fn choices(text: &str) -> Result<Vec<(String, Vec<String>)>, Fault> {
    let choice = |part: &str| {
        let (name, values) = part.split_once(':')?;
        let values: Vec<String> = values.split(',').map(|v| v.trim().to_string()).collect();
        let whole = !name.trim().is_empty() && values.iter().all(|v| !v.is_empty());
        whole.then(|| (name.trim().to_string(), values))
    };
    text.split(';')
        .map(|part| {
            choice(part).ok_or_else(|| {
                Fault::new(format!("cannot read `{}` after `for`", part.trim()), FOR)
            })
        })
        .collect()
}
