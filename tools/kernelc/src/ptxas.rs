//! The report that ptxas writes into NVRTC's log with `--ptxas-options=-v`.

use crate::sass::Code;

/// What a compiled entry uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Registers a thread.
    pub registers: u32,
    /// Bytes of stack a thread.
    pub stack: u32,
    /// Bytes written to memory for want of registers.
    pub spill_stores: u32,
    /// Bytes read back.
    pub spill_loads: u32,
    /// Bytes of static shared memory a block.
    pub shared: u32,
    /// What its machine code has; ptxas does not report it.
    pub code: Code,
}

/// The number before `what` on a line.
fn number(line: &str, what: &str) -> Option<u32> {
    let before = line[..line.find(what)?].trim_end();
    let digits = before.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |i| i + 1);
    before[digits..].parse().ok()
}

/// What each entry of a log uses, by symbol. Functions that an entry calls count towards its stack
/// and spills.
pub fn resources(log: &str) -> Vec<(String, Resources)> {
    let mut found: Vec<(String, Resources)> = Vec::new();
    for line in log.lines().filter(|l| l.starts_with("ptxas ")) {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let symbol = rest.split('\'').next().unwrap_or(rest);
            found.push((symbol.to_string(), Resources::default()));
            continue;
        }
        let Some((_, entry)) = found.last_mut() else { continue };
        if let Some(stack) = number(line, " bytes stack frame") {
            entry.stack = entry.stack.max(stack);
            entry.spill_stores += number(line, " bytes spill stores").unwrap_or(0);
            entry.spill_loads += number(line, " bytes spill loads").unwrap_or(0);
        }
        if let Some(registers) = number(line, " registers") {
            entry.registers = registers;
            entry.shared = number(line, " bytes smem").unwrap_or(0);
            let stack = number(line, " bytes cumulative stack size").unwrap_or(0);
            entry.stack = entry.stack.max(stack);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
kernels/x.cu(11): warning #177-D: variable \"unused\" was declared but never referenced
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3addIfEvPT_PKS0_i' for 'sm_80'
ptxas info    : Function properties for _Z3addIfEvPT_PKS0_i
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 14 registers, used 1 barriers, 256 bytes smem, 372 bytes cmem[0]
ptxas info    : Compile time = 2.680 ms
ptxas info    : Compiling entry function '_Z3dynPfi' for 'sm_80'
ptxas info    : Function properties for _Z3dynPfi
ptxas         .     1072 bytes stack frame, 908 bytes spill stores, 1036 bytes spill loads
ptxas info    : Function properties for _Z6calledPf
ptxas         .     16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 1088 bytes cumulative stack size
ptxas info    : Compile time = 32.861 ms
";

    #[test]
    fn every_entry_is_found_with_its_numbers() {
        let found = resources(LOG);
        let want = |registers, stack, spill_stores, spill_loads, shared| Resources {
            registers,
            stack,
            spill_stores,
            spill_loads,
            shared,
            code: Code::default(),
        };
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], ("_Z3addIfEvPT_PKS0_i".to_string(), want(14, 0, 0, 0, 256)));
        assert_eq!(found[1], ("_Z3dynPfi".to_string(), want(32, 1088, 916, 1040, 0)));
        assert_eq!(resources("no report"), []);
    }
}
