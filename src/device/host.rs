//! What the machine around the GPU has: processor, memory, room on its disks.

use std::path::Path;

/// Bytes: all of them, and those that can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Room {
    /// All there are.
    pub total: u64,
    /// Those that can be had now.
    pub free: u64,
}

/// The processor's name, where the system tells it.
pub fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let name = text.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
    name.map(|(_, name)| name.trim().to_string())
}

/// Those of the processor's features that matter to loops over numbers.
pub fn features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        let all = [
            ("sse4.2", has!("sse4.2")),
            ("avx", has!("avx")),
            ("avx2", has!("avx2")),
            ("fma", has!("fma")),
            ("f16c", has!("f16c")),
            ("avx512f", has!("avx512f")),
            ("avx512bw", has!("avx512bw")),
            ("avx512vl", has!("avx512vl")),
            ("avx512bf16", has!("avx512bf16")),
        ];
        all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        vec![std::env::consts::ARCH]
    }
}

/// Memory, where the system tells it: no more than the group of processes is allowed.
pub fn memory() -> Option<Room> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let allowed = read_number("/sys/fs/cgroup/memory.max");
    let used = read_number("/sys/fs/cgroup/memory.current");
    room(&text, allowed.zip(used))
}

fn read_number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// What `/proc/meminfo` says, within what a group is allowed and has used of it.
fn room(text: &str, group: Option<(u64, u64)>) -> Option<Room> {
    let kib = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    let all = Room { total: kib("MemTotal")?, free: kib("MemAvailable")? };
    Some(match group.filter(|(allowed, _)| *allowed < all.total) {
        None => all,
        Some((total, used)) => Room { total, free: all.free.min(total.saturating_sub(used)) },
    })
}

/// Room in the file system of a folder, where the system tells it.
#[cfg(unix)]
#[allow(unsafe_code)]
pub fn disk(folder: &Path) -> Option<Room> {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::CString::new(folder.as_os_str().as_bytes()).ok()?;
    // SAFETY: a structure of integers, for which zeros are values.
    let mut told: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the name ends in a zero byte, and the structure is written at most.
    if unsafe { libc::statvfs(name.as_ptr(), &raw mut told) } != 0 {
        return None;
    }
    #[allow(clippy::unnecessary_cast, reason = "the widths differ from system to system")]
    let bytes = |blocks| (blocks as u64).saturating_mul(told.f_frsize as u64);
    Some(Room { total: bytes(told.f_blocks), free: bytes(told.f_bavail) })
}

/// Room in the file system of a folder: nobody asks it here.
#[cfg(not(unix))]
pub fn disk(_: &Path) -> Option<Room> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_within_what_is_allowed() {
        let text = "MemTotal:   1000 kB\nMemFree: 1 kB\nMemAvailable:    600 kB\n";
        let k = |n: u64| n * 1024;
        let room = |group| room(text, group).unwrap();
        assert_eq!(room(None), Room { total: k(1000), free: k(600) });
        assert_eq!(room(Some((u64::MAX, 5))), room(None), "no limit");
        assert_eq!(room(Some((k(500), k(100)))), Room { total: k(500), free: k(400) });
        assert_eq!(room(Some((k(500), k(700)))).free, 0);
        assert!(super::room("MemTotal: lots", None).is_none());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_some() {
        let disk = disk(Path::new(".")).unwrap();
        assert!(disk.total > 0 && disk.free <= disk.total, "{disk:?}");
        assert!(super::disk(Path::new("/no/such/folder")).is_none());
        let memory = memory().unwrap();
        assert!(memory.total > 0 && memory.free <= memory.total, "{memory:?}");
    }
}
