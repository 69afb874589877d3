//! The machine code of a cubin, read far enough to count what a card may claim of it, tensor-core
//! instructions and loads of 16 bytes, and to see that nothing is touched before the launches
//! before are waited for.
//!
//! From sm_70 on an instruction is 16 bytes; its low 9 bits name the operation whatever the forms
//! of its operands, and loads hold their width in bits 73 to 75. NVIDIA does not document this:
//! the numbers were read off cuobjdump's listings of sm_80 and sm_90a.

use std::fmt;

/// Bytes of an instruction.
const BYTES: usize = 16;
/// Bits of the first word that name the operation.
const OPERATION: u64 = 0x1ff;
/// HMMA and HGMMA, the products of tensor cores.
const TENSOR: [u64; 2] = [0x03c, 0x1f0];
/// LDG and LDGSTS: loads from global memory to registers and to shared memory.
const LOADS: [u64; 2] = [0x181, 0x1ae];
/// UBLKCP and UTMALDG: bulk copies to shared memory.
const BULK: [u64; 2] = [0x1ba, 0x1b4];
/// ACQBULK: the wait for the launches before.
const WAIT: u64 = 0x02e;
/// What reads or writes global memory: LD, LDG, ST, STG, ATOM, RED, REDG, ATOMG with and without a
/// comparison, LDGSTS, UTMALDG, UTMASTG and UBLKCP. Prefetches (CCTL, UBLKPF) are none of them.
const TOUCH: [u64; 14] = [
    0x180, 0x181, 0x185, 0x186, 0x18a, 0x18b, 0x18e, 0x1a6, 0x1a8, 0x1a9, 0x1ae, 0x1b4, 0x1b5,
    0x1ba,
];
/// The width of 16 bytes.
const WIDE: u64 = 6;

/// Instructions of an entry, as they stand in its code: a loop's body counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Code {
    /// Those of the tensor cores.
    pub tensor: u32,
    /// Loads of 16 bytes a thread from global memory, and bulk copies.
    pub wide: u32,
}

/// What a card may claim of its entry's machine code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It computes on the tensor cores.
    TensorCores,
    /// It loads 16 bytes at a time.
    WideLoads,
}

/// All claims, with the words for them.
const CLAIMS: [(&str, Claim); 2] =
    [("tensor cores", Claim::TensorCores), ("16-byte loads", Claim::WideLoads)];

impl Claim {
    /// Reads a list of claims, joined by commas; the first that is none comes back as an error.
    pub(crate) fn list(text: &str) -> Result<Vec<Self>, String> {
        let claim = |words: &str| CLAIMS.iter().find(|(name, _)| *name == words).map(|c| c.1);
        text.split(',').map(str::trim).map(|w| claim(w).ok_or_else(|| w.to_string())).collect()
    }

    /// Whether it is true of this code.
    pub(crate) fn holds(self, code: Code) -> bool {
        match self {
            Self::TensorCores => code.tensor > 0,
            Self::WideLoads => code.wide > 0,
        }
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = CLAIMS.iter().find(|(_, c)| c == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

/// The code of the entry `symbol` in a cubin; none where that is no ELF file or has no such entry.
pub(crate) fn code(cubin: &[u8], symbol: &str) -> Option<Code> {
    let mut code = Code::default();
    for (operation, high) in instructions(cubin, symbol)? {
        let wide = LOADS.contains(&operation) && (high >> 9) & 7 == WIDE;
        code.tensor += u32::from(TENSOR.contains(&operation));
        code.wide += u32::from(wide || BULK.contains(&operation));
    }
    Some(code)
}

/// Whether the entry waits for the launches before it and touches no memory until then, in so far
/// as the order of its instructions tells; none as for [`code`].
pub(crate) fn waits(cubin: &[u8], symbol: &str) -> Option<bool> {
    let mut found = instructions(cubin, symbol)?.map(|(operation, _)| operation);
    Some(found.find(|o| *o == WAIT || TOUCH.contains(o)) == Some(WAIT))
}

/// The operations of an entry with the second word of each instruction.
fn instructions(cubin: &[u8], symbol: &str) -> Option<impl Iterator<Item = (u64, u64)>> {
    let text = section(cubin, &format!(".text.{symbol}"))?;
    Some(text.chunks_exact(BYTES).filter_map(|i| Some((word(i, 0)? & OPERATION, word(i, 8)?))))
}

/// A little-endian number of eight bytes.
fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// The bytes of a section of an ELF64 file.
fn section<'a>(elf: &'a [u8], name: &str) -> Option<&'a [u8]> {
    elf.starts_with(b"\x7fELF\x02\x01").then_some(())?;
    let index = |n: u64| usize::try_from(n).ok();
    let half =
        |at: usize| Some(usize::from(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?)));
    let (table, size, count, names) =
        (index(word(elf, 0x28)?)?, half(0x3a)?, half(0x3c)?, half(0x3e)?);
    let header = |i: usize| elf.get(table.checked_add(i * size)?..)?.get(..size);
    let body = |header: &[u8]| {
        let (start, length) = (index(word(header, 0x18)?)?, index(word(header, 0x20)?)?);
        elf.get(start..start.checked_add(length)?)
    };
    let strings = body(header(names)?)?;
    let named = |header: &[u8]| {
        let at = usize::try_from(u32::from_le_bytes(header.get(..4)?.try_into().ok()?)).ok()?;
        let rest = strings.get(at..)?.strip_prefix(name.as_bytes())?;
        (rest.first() == Some(&0)).then_some(())
    };
    (0..count).filter_map(header).find(|h| named(h).is_some()).and_then(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with one section of code, in so far as [`section`] reads it.
    fn elf(symbol: &str, instructions: &[[u64; 2]]) -> Vec<u8> {
        let code: Vec<u8> = instructions.iter().flatten().flat_map(|w| w.to_le_bytes()).collect();
        let names = format!("\0.shstrtab\0.text.{symbol}x\0.text.{symbol}\0");
        let (names_at, code_at) = (64, 64 + names.len());
        let table = code_at + code.len();
        let mut file = vec![0; table + 3 * 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
        for (at, n) in [(0x3a, 64u16), (0x3c, 3), (0x3e, 0)] {
            file[at..at + 2].copy_from_slice(&n.to_le_bytes());
        }
        file[names_at..code_at].copy_from_slice(names.as_bytes());
        file[code_at..table].copy_from_slice(&code);
        let last = names.rfind(".text").unwrap();
        let rows = [(1, names_at, names.len()), (11, code_at, 0), (last, code_at, code.len())];
        for (i, (name, start, length)) in rows.into_iter().enumerate() {
            let row = &mut file[table + 64 * i..table + 64 * (i + 1)];
            row[..4].copy_from_slice(&(name as u32).to_le_bytes());
            row[0x18..0x20].copy_from_slice(&(start as u64).to_le_bytes());
            row[0x20..0x28].copy_from_slice(&(length as u64).to_le_bytes());
        }
        file
    }

    #[test]
    fn instructions_are_told_apart() {
        // As cuobjdump prints them for sm_90a: HGMMA, UBLKCP, UTMALDG, LDG.E.128, LDG.E (a width
        // of 4 bytes), and REDG, which is none of them.
        let listed = [
            [0x0000_0000_0418_79f0, 0x000f_e600_0c00_18ff],
            [0x0000_0004_0800_73ba, 0x0001_d800_0800_0206],
            [0x0000_0004_0800_75b4, 0x0001_d800_0800_8000],
            [0x0000_000a_0a08_7981, 0x000e_e200_0c1e_9d00],
            [0x0000_000a_0a08_7981, 0x000e_e200_0c1e_9900],
            [0x0000_000f_0200_79a6, 0x000f_e200_0c10_f38a],
        ];
        let file = elf("f", &listed);
        assert_eq!(code(&file, "f"), Some(Code { tensor: 1, wide: 3 }));
        assert_eq!(code(&file, "fx"), Some(Code::default()));
        assert_eq!(code(&file, "g"), None);
    }

    #[test]
    fn memory_is_touched_after_the_wait() {
        // CCTL (a prefetch), ACQBULK, LDG.E and STG.E.
        let [ahead, wait, load, store] = [
            [0x0000_0000_0200_798f, 0x0001_e200_0080_0100],
            [0x0000_0000_0000_782e, 0x000f_e200_0000_0000],
            [0x0000_0004_0405_7981, 0x000e_ae00_0c1e_1900],
            [0x0000_0009_0600_7986, 0x000f_e200_0c10_1904],
        ];
        let waits = |listed: &[[u64; 2]]| super::waits(&elf("f", listed), "f").unwrap();
        assert!(waits(&[ahead, wait, load, store]));
        assert!(!waits(&[load, wait, store]));
        assert!(!waits(&[store, wait, load, wait]));
        assert!(!waits(&[load, store]));
    }

    #[test]
    fn a_damaged_file_has_no_code() {
        let file = elf("f", &[[0x79f0, 0]]);
        for end in 0..file.len() {
            assert!(code(&file[..end], "f").is_none_or(|c| c.tensor <= 1));
        }
        let mut far = file.clone();
        far[0x28..0x30].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(code(&far, "f"), None);
        assert_eq!(code(b"PTX", "f"), None);
    }

    #[test]
    fn claims_are_read_and_judged() {
        let both = vec![Claim::TensorCores, Claim::WideLoads];
        assert_eq!(Claim::list("tensor cores, 16-byte loads"), Ok(both));
        assert_eq!(Claim::list("tensor cores, speed"), Err("speed".to_string()));
        let code = Code { tensor: 2, wide: 0 };
        assert!(Claim::TensorCores.holds(code) && !Claim::WideLoads.holds(code));
    }
}
