//! Every key with its type, its default and its meaning, for `genevar config --explain`: read from
//! the documentation in this folder's own source, so that there is one text and not two.

use std::collections::BTreeMap;

use serde::Serialize;
use toml::{Table, Value};

use super::Config;
use crate::error::{Error, Result};

/// The files that define the settings.
const SOURCE: [&str; 3] =
    [include_str!("mod.rs"), include_str!("models.rs"), include_str!("flow.rs")];

/// One key.
#[derive(Clone, Debug, Serialize)]
pub struct Key {
    /// Its dotted name.
    pub key: String,
    /// What it wants: a type, or the words it may be.
    pub kind: String,
    /// Its value in the preset.
    pub default: String,
    /// What it does, and whose default that is.
    pub meaning: String,
}

/// A field or variant with its documentation.
#[derive(Debug)]
struct Item {
    name: String,
    kind: String,
    doc: String,
}

/// Structs and enums by name.
#[derive(Default)]
struct Source {
    structs: BTreeMap<String, Vec<Item>>,
    enums: BTreeMap<String, Vec<Item>>,
}

/// All keys of a configuration, in the order in which they are written.
///
/// # Errors
/// None for a configuration that can be written.
pub fn explain(config: &Config) -> Result<Vec<Key>> {
    let table = Table::try_from(config).map_err(|e| Error::Internal(e.to_string()))?;
    let mut keys = Vec::new();
    Source::read().walk("Config", "", &Value::Table(table), &mut keys);
    Ok(keys)
}

impl Source {
    fn read() -> Self {
        let mut all = Self::default();
        for text in SOURCE {
            let mut lines = text.lines();
            while let Some(line) = lines.next() {
                let named = |kind: &str| Some(line.strip_prefix(kind)?.trim_end_matches(" {"));
                if let Some(name) = named("pub struct ") {
                    all.structs.insert(name.into(), items(&mut lines));
                } else if let Some(name) = named("pub enum ") {
                    all.enums.insert(name.into(), items(&mut lines));
                }
            }
        }
        all
    }

    fn walk(&self, name: &str, place: &str, value: &Value, keys: &mut Vec<Key>) {
        for item in self.structs.get(name).into_iter().flatten() {
            let Some(value) = value.get(&item.name) else { continue };
            let key = format!("{place}{}", item.name);
            if self.structs.contains_key(&item.kind) {
                self.walk(&item.kind, &format!("{key}."), value, keys);
                continue;
            }
            let (kind, words) = self.kind(&item.kind);
            let meaning = [item.doc.as_str(), words.as_str()].join(" ").trim().to_string();
            keys.push(Key { key, kind, default: value.to_string(), meaning });
        }
    }

    /// A Rust type for people, and what its words mean.
    fn kind(&self, rust: &str) -> (String, String) {
        let plain = match rust {
            "usize" | "u64" => "integer",
            "f64" => "number",
            "bool" => "true or false",
            "String" => "text",
            "Vec<usize>" => "list of integers",
            other => {
                let Some(variants) = self.enums.get(other) else {
                    return (other.to_string(), String::new());
                };
                let names: Vec<String> = variants.iter().map(|v| snake(&v.name)).collect();
                let meant = names.iter().zip(variants).map(|(n, v)| format!("{n}: {}", v.doc));
                return (names.join(" | "), meant.collect::<Vec<_>>().join(" "));
            }
        };
        (plain.to_string(), String::new())
    }
}

/// Fields or variants up to the closing brace, each with the comment before it.
fn items<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Vec<Item> {
    let mut found = Vec::new();
    let mut doc = String::new();
    for line in lines.take_while(|line| *line != "}") {
        let line = line.trim();
        if let Some(text) = line.strip_prefix("///") {
            doc += text;
        } else if !line.starts_with('#') {
            let line = line.trim_start_matches("pub ").trim_end_matches(',');
            let (name, kind) = line.split_once(": ").unwrap_or((line, ""));
            let (name, kind, doc) = (name.into(), kind.into(), plain(&std::mem::take(&mut doc)));
            found.push(Item { name, kind, doc });
        }
    }
    found
}

/// A comment without the marks of documentation.
fn plain(doc: &str) -> String {
    doc.trim().replace(['[', ']', '`'], "")
}

/// A variant as TOML spells it.
fn snake(name: &str) -> String {
    let mut out = String::new();
    for (i, c) in name.chars().enumerate() {
        if c.is_uppercase() && i > 0 {
            out.push('_');
        }
        out.extend(c.to_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(value: &Value, place: &str, found: &mut Vec<String>) {
        match value {
            Value::Table(table) => table.iter().for_each(|(k, v)| {
                let place = if place.is_empty() { k.clone() } else { format!("{place}.{k}") };
                leaves(v, &place, found);
            }),
            _ => found.push(place.to_string()),
        }
    }

    #[test]
    fn every_key_is_explained_and_nothing_else() {
        let config = Config::tier("t1").unwrap();
        let keys = explain(&config).unwrap();
        let mut wanted = Vec::new();
        leaves(&Value::Table(Table::try_from(&config).unwrap()), "", &mut wanted);
        let mut have: Vec<&str> = keys.iter().map(|k| k.key.as_str()).collect();
        have.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(have, wanted);
        for key in &keys {
            let known = !key.kind.contains(char::is_uppercase) && !key.kind.is_empty();
            assert!(known && key.meaning.len() > 5, "{key:?}");
        }
    }

    /// The words that an explanation offers are those that the configuration takes.
    #[test]
    fn the_words_of_an_explanation_are_read() {
        for key in explain(&Config::default()).unwrap() {
            for word in key.kind.split(" | ").filter(|_| key.kind.contains(" | ")) {
                let (table, name) = key.key.rsplit_once('.').unwrap();
                // What else the word would need is said, but it is a word of the key.
                if let Err(e) = Config::parse(&format!("[{table}]\n{name} = \"{word}\"\n")) {
                    let told = e.to_string();
                    assert!(!told.contains("unknown variant"), "{}: {told}", key.key);
                }
            }
        }
    }
}
