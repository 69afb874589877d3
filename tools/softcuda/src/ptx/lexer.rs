//! Words, numbers and marks of a PTX text, each with its line.

use super::ParseError;

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A name, directive or opcode: `%r1`, `.reg`, `ld.global.L2::128B`.
    Word,
    /// A number as written: `0f3F800000`, `-`-less.
    Number,
    /// Text between quotes.
    Text,
    /// One character.
    Mark(u8),
    /// The end of the text.
    End,
}

/// One token.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Token<'a> {
    pub(crate) kind: Kind,
    pub(crate) text: &'a str,
    pub(crate) line: u32,
}

fn in_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

/// Length of the word at the start of `rest`; `::` belongs to a word, a single colon does not.
fn word_length(rest: &[u8]) -> usize {
    let mut n = 0;
    while let Some(&byte) = rest.get(n) {
        if in_word(byte) {
            n += 1;
        } else if byte == b':'
            && rest.get(n + 1) == Some(&b':')
            && rest.get(n + 2).copied().is_some_and(in_word)
        {
            n += 2;
        } else {
            break;
        }
    }
    n
}

/// Length of white space and comments at the start of `rest`, or nothing if a comment is open.
fn blank_length(rest: &[u8]) -> Option<usize> {
    let mut n = 0;
    loop {
        match rest.get(n) {
            Some(b) if b.is_ascii_whitespace() || *b == 0 => n += 1,
            Some(b'/') if rest.get(n + 1) == Some(&b'/') => {
                n += rest[n..].iter().position(|&b| b == b'\n').unwrap_or(rest.len() - n);
            }
            Some(b'/') if rest.get(n + 1) == Some(&b'*') => {
                n += 4 + rest[n + 2..].windows(2).position(|w| w == b"*/")?;
            }
            _ => return Some(n),
        }
    }
}

/// Cuts a text into tokens, the last one being [`Kind::End`].
pub(crate) fn tokens(text: &str) -> Result<Vec<Token<'_>>, ParseError> {
    let bytes = text.as_bytes();
    let (mut at, mut line, mut out) = (0, 1u32, Vec::new());
    let fail = |line, what: &str| ParseError { line, what: what.to_owned(), ..Default::default() };
    loop {
        let blank = blank_length(&bytes[at..]).ok_or_else(|| fail(line, "open comment"))?;
        line += bytes[at..at + blank].iter().filter(|&&b| b == b'\n').count() as u32;
        at += blank;
        let Some(&first) = bytes.get(at) else {
            out.push(Token { kind: Kind::End, text: "", line });
            return Ok(out);
        };
        let (kind, from, length, skip) = match first {
            b'0'..=b'9' => (Kind::Number, at, word_length(&bytes[at..]), 0),
            b'"' => {
                let end = bytes[at + 1..].iter().position(|&b| b == b'"');
                (Kind::Text, at + 1, end.ok_or_else(|| fail(line, "open quote"))?, 1)
            }
            b if in_word(b) => (Kind::Word, at, word_length(&bytes[at..]), 0),
            b if b.is_ascii() => (Kind::Mark(b), at, 1, 0),
            _ => return Err(fail(line, "a character that is not ASCII")),
        };
        let text = &text[from..from + length];
        line += text.bytes().filter(|&b| b == b'\n').count() as u32;
        out.push(Token { kind, text, line });
        at = from + length + skip;
    }
}

/// A number in a register's terms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Number {
    Int(u64),
    F32(u32),
    F64(u64),
}

/// Reads a number token.
pub(crate) fn number(text: &str) -> Option<Number> {
    let digits = text.strip_suffix(['U', 'u']).unwrap_or(text);
    let lower = text.to_ascii_lowercase();
    if let Some(hex) = lower.strip_prefix("0f").filter(|h| h.len() == 8) {
        return u32::from_str_radix(hex, 16).ok().map(Number::F32);
    }
    if let Some(hex) = lower.strip_prefix("0d").filter(|h| h.len() == 16) {
        return u64::from_str_radix(hex, 16).ok().map(Number::F64);
    }
    let (radix, body) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] if !digits.contains('.') => (8, &digits[1..]),
        _ => (10, digits),
    };
    if let Ok(int) = u64::from_str_radix(body, radix) {
        return Some(Number::Int(int));
    }
    digits.parse::<f64>().ok().map(|f| Number::F64(f.to_bits()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_marks() {
        let text = "@!%p1 ld.global.L2::128B.f32 %f1, [%rd2+-4]; // c\n$L_1: /* x\n */ {\"a b\"}";
        let list = tokens(text).unwrap();
        let texts: Vec<&str> = list.iter().map(|t| t.text).collect();
        let want = [
            "@",
            "!",
            "%p1",
            "ld.global.L2::128B.f32",
            "%f1",
            ",",
            "[",
            "%rd2",
            "+",
            "-",
            "4",
            "]",
            ";",
            "$L_1",
            ":",
            "{",
            "a b",
            "}",
            "",
        ];
        assert_eq!(texts, want);
        assert_eq!(list[13].line, 2);
        assert_eq!(list[15].line, 3);
        assert!(tokens("/* open").is_err());
    }

    #[test]
    fn numbers_of_every_form() {
        assert_eq!(number("0f3F800000"), Some(Number::F32(0x3f80_0000)));
        assert_eq!(number("0d3FF0000000000000"), Some(Number::F64(1f64.to_bits())));
        assert_eq!(number("0xffU"), Some(Number::Int(255)));
        assert_eq!(number("017"), Some(Number::Int(15)));
        assert_eq!(number("1.5"), Some(Number::F64(1.5f64.to_bits())));
        assert_eq!(number("0"), Some(Number::Int(0)));
        assert_eq!(number("12z"), None);
    }
}
