//! TOML in and out: a file names a tier and overrides its keys.
//!
//! The preset is written as a table and the file is laid over it, so an unknown key is one that the
//! preset does not have, and every key of the file is checked against the type it replaces before
//! serde sees it. Errors name the dotted key, as a person wrote it.

use std::path::Path;

use toml::{Table, Value};

use super::{Config, StageConfig, TIERS, TrainConfigs};
use crate::error::{Error, Result, Within};

impl Config {
    /// Reads a file; see [`Config::parse`].
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        Self::parse(&text).within(path.display())
    }

    /// Parses a configuration: `tier` (default `t3`) gives the preset, other keys override it.
    ///
    /// Fails on a syntax error, an unknown key (suggesting the nearest known one), a value of the
    /// wrong type and whatever [`Config::validate`] refuses.
    pub fn parse(text: &str) -> Result<Self> {
        Self::from_table(&table_of(text)?)
    }

    /// Parses the record of a checkpoint. Keys that this version has no longer are passed over: a
    /// program must read what an older one trained.
    pub fn recorded(text: &str) -> Result<Self> {
        let mut file = table_of(text)?;
        let tier = file.get("tier").and_then(Value::as_str).unwrap_or("t3");
        let preset = Self::tier(tier)?.table()?;
        keep_known(&mut file, &preset);
        Self::from_table(&file)
    }

    fn from_table(file: &Table) -> Result<Self> {
        let tier = match file.get("tier") {
            None => "t3",
            Some(Value::String(name)) => name,
            Some(other) => {
                let what = format!("wants a name, found {}", other.type_str());
                return Err(Error::config("tier", what, TIERS.join(", ")));
            }
        };
        let mut table = Self::tier(tier)?.table()?;
        let base = table.clone();
        overlay(&mut table, file, "", &base)?;
        let config: Self = table
            .try_into()
            .map_err(|e: toml::de::Error| Error::config("config", e.message(), "mend the file"))?;
        config.validate()?;
        Ok(config)
    }

    /// The whole configuration, every key written out, as a checkpoint records it.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(unwritable)
    }

    /// Dotted names of the keys whose values differ from those of `other`.
    pub fn differences(&self, other: &Self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        compare(&self.table()?, &other.table()?, "", &mut names);
        Ok(names)
    }

    fn table(&self) -> Result<Table> {
        Table::try_from(self).map_err(unwritable)
    }
}

impl TrainConfigs {
    /// The four stages in their order.
    pub fn stages(&self) -> [&StageConfig; 4] {
        [&self.beta_vae, &self.msvq, &self.meanflow, &self.ar]
    }

    /// The four stages in their order, to change.
    pub fn stages_mut(&mut self) -> [&mut StageConfig; 4] {
        [&mut self.beta_vae, &mut self.msvq, &mut self.meanflow, &mut self.ar]
    }
}

fn table_of(text: &str) -> Result<Table> {
    text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(0, |s| text[..s.start].matches('\n').count() + 1);
        Error::config(format!("line {line}"), e.message(), "write it as TOML")
    })
}

/// Drops the keys that `preset` does not have.
fn keep_known(file: &mut Table, preset: &Table) {
    file.retain(|key, value| match (value, preset.get(key)) {
        (Value::Table(inner), Some(Value::Table(known))) => {
            keep_known(inner, known);
            true
        }
        (_, found) => found.is_some(),
    });
}

fn unwritable(e: toml::ser::Error) -> Error {
    Error::Internal(format!("the configuration cannot be written as TOML: {e}"))
}

fn compare(a: &Table, b: &Table, place: &str, names: &mut Vec<String>) {
    for (key, value) in a {
        match (value, b.get(key)) {
            (Value::Table(x), Some(Value::Table(y))) => {
                compare(x, y, &format!("{place}{key}."), names);
            }
            (x, Some(y)) if x == y => {}
            _ => names.push(format!("{place}{key}")),
        }
    }
}

/// Lays `over` on `table`, whose dotted name is `place`; `root` is the whole untouched preset.
fn overlay(table: &mut Table, over: &Table, place: &str, root: &Table) -> Result<()> {
    for (key, value) in over {
        let dotted = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
        let known: Vec<&str> = table.keys().map(String::as_str).collect();
        let unknown = || {
            Error::config(&dotted, "no such key", "remove it or see `genevar config`")
                .suggesting(key, &known)
        };
        match (table.get(key).ok_or_else(unknown)?, value) {
            (Value::Table(_), Value::Table(inner)) => {
                if let Some(Value::Table(t)) = table.get_mut(key) {
                    overlay(t, inner, &dotted, root)?;
                }
            }
            (old, new) => {
                let new = fit(old, new, &dotted)?;
                try_alone(root, &dotted, &new)?;
                table.insert(key.clone(), new);
            }
        }
    }
    Ok(())
}

/// `new` in the type of `old`; whole numbers serve as fractions.
fn fit(old: &Value, new: &Value, key: &str) -> Result<Value> {
    match (old, new) {
        (Value::Float(_), Value::Integer(n)) => Ok(Value::Float(*n as f64)),
        (Value::Float(_), Value::Float(x)) if !x.is_finite() => {
            Err(Error::config(key, "is not a finite number", "write a number"))
        }
        (a, b) if a.same_type(b) => Ok(new.clone()),
        (a, b) => {
            let what = format!("wants {}, found {}", a.type_str(), b.type_str());
            Err(Error::config(key, what, format!("for example {key} = {a}")))
        }
    }
}

/// Puts one value alone into the preset and deserialises it, so that a refusal names its key.
fn try_alone(root: &Table, dotted: &str, value: &Value) -> Result<()> {
    let mut whole = root.clone();
    let mut at = &mut whole;
    let mut parts = dotted.split('.').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            at.insert(part.to_string(), value.clone());
            break;
        }
        match at.get_mut(part) {
            Some(Value::Table(inner)) => at = inner,
            _ => return Err(Error::Internal(format!("{dotted} is not in the preset"))),
        }
    }
    let tried: Result<Config, toml::de::Error> = whole.try_into();
    tried
        .map(|_| ())
        .map_err(|e| Error::config(dotted, e.message(), format!("{value} does not fit")))
}

impl Error {
    /// Puts "did you mean" in a configuration error's advice when one of `known` is near `found`.
    pub(crate) fn suggesting(self, found: &str, known: &[&str]) -> Self {
        let near = known
            .iter()
            .map(|k| (strsim::jaro_winkler(found, k), *k))
            .filter(|(score, _)| *score > 0.7)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        match (self, near) {
            (Self::Config { key, what, fix }, Some((_, k))) => {
                Self::Config { key, what, fix: format!("did you mean `{k}`? Otherwise: {fix}") }
            }
            (other, _) => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_are_valid_and_survive_a_round_trip() {
        for name in TIERS {
            let tier = Config::tier(name).unwrap();
            assert_eq!(tier.tier, name);
            tier.validate().unwrap();
            assert_eq!(Config::parse(&tier.to_toml().unwrap()).unwrap(), tier);
            assert_eq!(Config::parse(&format!("tier = {name:?}")).unwrap(), tier);
        }
    }

    #[test]
    fn a_file_overrides_its_tier() {
        let text = "tier = 'demo'\n[train.ar]\nlr = 1\nsteps = 7\n[mask]\nkind = 'e_distance'";
        let c = Config::parse(text).unwrap();
        assert_eq!((c.train.ar.lr, c.train.ar.steps), (1.0, 7));
        assert_eq!(c.mask.kind, super::super::MaskKind::EDistance);
        let demo = Config::tier("demo").unwrap();
        assert_eq!(c.msvq, demo.msvq);
        let changed = ["mask.kind", "train.ar.lr", "train.ar.steps"];
        assert_eq!(c.differences(&demo).unwrap(), changed);
    }

    #[test]
    fn a_record_of_an_older_version_is_read() {
        let text = "tier = 'demo'\ngone = 1\n[data]\nold = true\nz_clip = 3\n[old]\nx = 1";
        assert!(Config::parse(text).is_err());
        let read = Config::recorded(text).unwrap();
        assert_eq!(read.data.z_clip, 3.0);
        assert_eq!(read.msvq, Config::tier("demo").unwrap().msvq);
    }

    fn refusal(text: &str) -> String {
        Config::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn mistakes_are_named() {
        let near = refusal("[train.ar]\nlearning_rate = 1.0\nlr_min = 0.1");
        assert!(near.contains("train.ar.l"), "{near}");
        assert!(refusal("[msvq]\nvocabs = 9").contains("msvq.vocabs: no such key; did you mean"));
        assert!(refusal("[msvq]\nvocabs = 9").contains("`vocab`"));
        assert!(refusal("tier = 'dmo'").contains("`demo`"));
        let kind = refusal("[mask]\nkind = 'gradent'");
        assert!(kind.contains("mask.kind") && kind.contains("`gradient`"), "{kind}");
        assert!(refusal("[ar]\ndepth = -1").contains("ar.depth"));
        assert!(refusal("[ar]\ndepth = 'x'").contains("wants integer, found string"));
        assert!(refusal("[ar]\nmsvq = ").contains("line 2"));
        assert!(refusal("ar = 3").contains("ar: wants table"));
        assert!(refusal("[ar]\ndropout = nan").contains("finite"));
    }
}
