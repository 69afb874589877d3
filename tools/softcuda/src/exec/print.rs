//! `assert` and `printf` of a kernel.

use super::fault::FaultKind;
use super::lanes::lanes;
use super::space::value_of;
use super::warp::{Machine, Step, Warp, trouble};

/// Longest text that is read from device memory.
const LONGEST: u64 = 4096;

/// A text of device memory up to its zero.
fn text(m: &Machine<'_>, address: u64) -> String {
    let mut bytes = Vec::new();
    let mut one = [0];
    while (bytes.len() as u64) < LONGEST
        && m.env.memory.read(address + bytes.len() as u64, &mut one).is_ok()
        && one[0] != 0
    {
        bytes.push(one[0]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn argument(m: &Machine<'_>, w: &Warp, lane: usize, at: u32, bytes: usize) -> u64 {
    let start = lane * m.env.code.frame_bytes as usize + at as usize;
    w.frame.get(start..start + bytes).map_or(0, value_of)
}

/// A failed `assert`.
pub(super) fn assertion(m: &Machine<'_>, w: &Warp, mask: u32, at: [u32; 3]) -> Step {
    let lane = mask.trailing_zeros() as usize & 31;
    let [message, file, line] = at;
    let message = text(m, argument(m, w, lane, message, 8));
    let file = text(m, argument(m, w, lane, file, 8));
    let line = argument(m, w, lane, line, 4);
    trouble(FaultKind::Assert, lane, format!("`{message}` does not hold, {file}:{line}"))
}

/// `printf`, lane after lane, to standard output.
pub(super) fn printf(m: &mut Machine<'_>, w: &Warp, mask: u32, format: u32, args: u32) -> Step {
    for lane in lanes(mask) {
        let format = text(m, argument(m, w, lane, format, 8));
        let address = argument(m, w, lane, args, 8);
        let mut buffer = |at: u64, bytes: u64| -> u64 {
            let (space, address) = super::space::window(crate::ptx::ast::Space::Generic, address);
            m.read(w, lane, (space, address + at), bytes, false).unwrap_or(0)
        };
        let (out, texts) = render(&format, &mut buffer);
        let mut done = 0;
        for (at, pointer) in texts {
            print!("{}{}", &out[done..at], text(m, pointer));
            done = at;
        }
        print!("{}", &out[done..]);
    }
    Ok(())
}

/// The text of a format without its `%s`, and where which of those belong. Arguments are read
/// from a buffer by offset and size.
fn render(format: &str, read: &mut dyn FnMut(u64, u64) -> u64) -> (String, Vec<(usize, u64)>) {
    let (mut out, mut at, mut strings) = (String::new(), 0u64, Vec::new());
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut spec = String::new();
        let kind = loop {
            match chars.next() {
                Some(k) if k.is_ascii_alphabetic() && !matches!(k, 'l' | 'h' | 'z') => break k,
                Some('%') => break '%',
                Some(other) => spec.push(other),
                None => return (out, strings),
            }
        };
        let wide = spec.contains(['l', 'z']) || matches!(kind, 'p' | 's' | 'f' | 'e' | 'g');
        let bytes = if wide { 8 } else { 4 };
        if kind == '%' {
            out.push('%');
            continue;
        }
        at = at.next_multiple_of(bytes);
        let value = read(at, bytes);
        at += bytes;
        let digits: String = spec.chars().filter(|c| c.is_ascii_digit() || *c == '.').collect();
        let places = digits.split('.').nth(1).and_then(|d| d.parse().ok()).unwrap_or(6);
        let signed = if wide { value as i64 } else { i64::from(value as i32) };
        match kind {
            'd' | 'i' => out.push_str(&signed.to_string()),
            'u' => out.push_str(&value.to_string()),
            'x' | 'X' | 'p' => out.push_str(&format!("{value:x}")),
            'c' => out.push(char::from(value as u8)),
            'f' => out.push_str(&format!("{:.places$}", f64::from_bits(value))),
            'e' | 'g' => out.push_str(&format!("{:e}", f64::from_bits(value))),
            's' => strings.push((out.len(), value)),
            other => out.push(other),
        }
    }
    (out, strings)
}

#[cfg(test)]
mod tests {
    #[test]
    fn formats() {
        let words = [7u64, 2.5f64.to_bits(), u64::from(u32::MAX)];
        let mut read = |at: u64, _: u64| words[(at / 8) as usize];
        let (out, _) = super::render("x %d %.2f %%\n", &mut read);
        assert_eq!(out, "x 7 2.50 %\n");
    }
}
