//! Changes of good files, for the tests that feed readers with bad ones.

use proptest::prelude::*;

/// The most memory that this process ever held, where the system tells.
pub fn memory_is_in_bounds() -> Result<(), TestCaseError> {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return Ok(()) };
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    let kb: u64 = peak.trim().trim_end_matches(" kB").trim().parse().unwrap();
    prop_assert!(kb < 2 << 20, "{} kB", kb);
    Ok(())
}

/// A change of a good file.
#[derive(Clone, Debug)]
pub enum Bend {
    Cut(prop::sample::Index),
    Set(prop::sample::Index, u8),
    /// Eight bytes of a header turned into a huge or odd number.
    Number(prop::sample::Index, u64),
    Repeat(prop::sample::Index, prop::sample::Index),
}

/// Some change.
pub fn bend() -> impl Strategy<Value = Bend> {
    let at = any::<prop::sample::Index>;
    let number = prop::sample::select(vec![0, 1, u64::MAX, u64::MAX / 2, 1 << 32, 1 << 48, 7]);
    prop_oneof![
        1 => at().prop_map(Bend::Cut),
        4 => (at(), any::<u8>()).prop_map(|(i, v)| Bend::Set(i, v)),
        2 => (at(), number).prop_map(|(i, v)| Bend::Number(i, v)),
        1 => (at(), at()).prop_map(|(a, b)| Bend::Repeat(a, b)),
    ]
}

/// The file after these changes.
pub fn bent(good: &[u8], bends: &[Bend]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for bend in bends {
        if bytes.is_empty() {
            break;
        }
        let n = bytes.len();
        match bend {
            Bend::Cut(at) => bytes.truncate(at.index(n)),
            Bend::Set(at, v) => bytes[at.index(n)] = *v,
            Bend::Number(at, v) => {
                let at = at.index(n);
                let end = (at + 8).min(n);
                bytes[at..end].copy_from_slice(&v.to_le_bytes()[..end - at]);
            }
            Bend::Repeat(a, b) => {
                let (a, b) = (a.index(n), b.index(n));
                let part = bytes[a.min(b)..a.max(b)].to_vec();
                bytes.splice(a..a, part);
            }
        }
    }
    bytes
}
