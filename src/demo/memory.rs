//! How much memory a process took at most, where the system tells (Linux's /proc).

use std::fs;

/// Largest resident size of this process so far, in bytes.
pub fn own_peak() -> Option<u64> {
    line(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Resident size of this process now, in bytes.
pub fn own_now() -> Option<u64> {
    line(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// Largest resident size so far of another process that still runs, in bytes.
pub fn peak_of(pid: u32) -> Option<u64> {
    line(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmHWM:")
}

/// The number of kilobytes on the line that begins with `name`, in bytes.
fn line(status: &str, name: &str) -> Option<u64> {
    let rest = status.lines().find_map(|l| l.strip_prefix(name))?;
    let kilobytes: u64 = rest.split_whitespace().next()?.parse().ok()?;
    Some(1024 * kilobytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_bytes() {
        let status = "Name:\tgenevar\nVmHWM:\t  123456 kB\nVmRSS:\t   1024 kB\n";
        assert_eq!(line(status, "VmHWM:"), Some(123_456 * 1024));
        assert_eq!(line(status, "VmRSS:"), Some(1 << 20));
        assert_eq!(line(status, "VmSwap:"), None);
    }
}
