//! A configuration as a person would write it: the tier, and what differs.

use super::Config;
use crate::error::Result;

/// A configuration as its tier and the keys that differ from it.
///
/// # Errors
/// A tier that there is not.
pub fn settings(config: &Config) -> Result<String> {
    let base = Config::tier(&config.tier)?;
    let (whole, changed) = (config.to_toml()?, config.differences(&base)?);
    let mut out = format!("tier = {:?}\n", config.tier);
    let (mut section, mut written) = (String::new(), String::new());
    for line in whole.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name.to_string();
            continue;
        }
        let key = line.split(" = ").next().unwrap_or_default();
        let dotted = if section.is_empty() { key.into() } else { format!("{section}.{key}") };
        if changed.contains(&dotted) {
            if section != written {
                out += &format!("\n[{section}]\n");
                written.clone_from(&section);
            }
            out += &format!("{line}\n");
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_name_what_differs_and_read_back() {
        let c = crate::demo::scratch::config(2000, 7).unwrap();
        let text = settings(&c).unwrap();
        assert_eq!(Config::parse(&text).unwrap(), c);
        assert!(text.lines().count() < 60 && !text.contains("pack"), "{text}");
    }
}
