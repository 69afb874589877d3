//! A `.cu` file as text: comments and strings blanked, lines counted, includes found.

use crate::error::{Error, Fault};

/// A file's text beside the same text without comments and strings; both have the same length, so
/// that a position in one is a position in the other.
pub(crate) struct Source<'a> {
    /// The file, as `kernels/x.cu`.
    pub(crate) file: &'a str,
    pub(crate) text: &'a str,
    pub(crate) code: String,
    pub(crate) lines: Vec<&'a str>,
}

impl<'a> Source<'a> {
    pub(crate) fn new(file: &'a str, text: &'a str) -> Result<Self, Error> {
        let code = blank(text).map_err(|(fault, at)| fault.at(file, line_of(text, at)))?;
        Ok(Self { file, text, code, lines: text.lines().collect() })
    }

    /// 1-based line of a position.
    pub(crate) fn line(&self, at: usize) -> usize {
        line_of(self.text, at)
    }

    /// The text of a 1-based line.
    pub(crate) fn text_of(&self, line: usize) -> &'a str {
        self.lines.get(line.saturating_sub(1)).copied().unwrap_or("")
    }

    pub(crate) fn fault(&self, at: usize, fault: Fault) -> Error {
        fault.at(self.file, self.line(at))
    }

    /// Included names and their 1-based lines, in order.
    pub(crate) fn includes(&self) -> Result<Vec<(String, usize)>, Error> {
        let mut found = Vec::new();
        for (i, (line, code)) in self.lines.iter().zip(self.code.lines()).enumerate() {
            // The code tells whether the line is a comment, the text what it includes.
            let (Some(_), Some(rest)) = (directive(code, "include"), directive(line, "include"))
            else {
                continue;
            };
            let name = rest.strip_prefix('"').and_then(|r| r.split_once('"'));
            let Some((name, _)) = name else {
                let what = format!("cannot read `{}`", line.trim());
                let fix = "headers are ours and written from kernels/, as in \
                           `#include \"lib/bf16.cuh\"`; NVRTC has no others";
                return Err(Fault::new(what, fix).at(self.file, i + 1));
            };
            found.push((name.to_string(), i + 1));
        }
        Ok(found)
    }
}

/// What follows `#name` on a line.
pub(crate) fn directive<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let rest = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix(name)?;
    Some(rest.trim_start())
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.as_bytes().iter().take(at).filter(|&&b| b == b'\n').count()
}

/// Where the blanked thing at `at` ends, if it is a comment or a string.
fn end_of_blank(rest: &str) -> Option<Result<usize, Fault>> {
    if rest.starts_with("//") {
        return Some(Ok(rest.find('\n').unwrap_or(rest.len())));
    }
    if let Some(inner) = rest.strip_prefix("/*") {
        let end = inner.find("*/").map(|end| end + 4);
        return Some(end.ok_or_else(|| Fault::new("a comment has no end", "close it with `*/`")));
    }
    let quote = rest.chars().next().filter(|c| *c == '"' || *c == '\'')?;
    let mut escaped = false;
    for (i, c) in rest.char_indices().skip(1) {
        match c {
            '\n' => break,
            c if c == quote && !escaped => return Some(Ok(i + 1)),
            _ => escaped = c == '\\' && !escaped,
        }
    }
    let fix = "close it on the line it begins on (and write numbers without `'`)";
    Some(Err(Fault::new("a string or character has no end", fix)))
}

/// The text with every byte of comments and strings a space, or a fault and its position.
fn blank(text: &str) -> Result<String, (Fault, usize)> {
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        match end_of_blank(&text[at..]) {
            None => {
                code.push(c);
                at += c.len_utf8();
            }
            Some(end) => {
                let end = at + end.map_err(|fault| (fault, at))?;
                let spaces = text[at..end].bytes().map(|b| if b == b'\n' { '\n' } else { ' ' });
                code.extend(spaces);
                at = end;
            }
        }
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_blanked_in_place() {
        let text = "a // b \u{fc}\n/* c\n d */ e \"f\\\"\" g";
        let source = Source::new("kernels/x.cu", text).unwrap();
        assert_eq!(source.code.len(), text.len());
        assert_eq!(source.code.split_whitespace().collect::<Vec<_>>(), ["a", "e", "g"]);
        assert_eq!(source.line(text.find('e').unwrap()), 3);
    }

    #[test]
    fn what_has_no_end_is_named_with_its_line() {
        let told = |text| Source::new("kernels/x.cu", text).err().unwrap().to_string();
        assert!(told("a\n/* b").starts_with("kernels/x.cu:2: a comment has no end"));
        assert!(told("\n\n'a").starts_with("kernels/x.cu:3: a string or character has no end"));
    }

    #[test]
    fn includes_are_ours() {
        let source = Source::new("kernels/x.cu", "#include \"lib/a.cuh\"\n # include \"b\"\n");
        let found = source.unwrap().includes().unwrap();
        assert_eq!(found, [("lib/a.cuh".to_string(), 1), ("b".to_string(), 2)]);
        let system = Source::new("kernels/x.cu", "\n#include <cuda_bf16.h>").unwrap();
        let told = system.includes().unwrap_err().to_string();
        assert!(told.starts_with("kernels/x.cu:2: cannot read `#include <cuda_bf16.h>`"), "{told}");
    }
}
