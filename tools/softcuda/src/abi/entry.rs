//! `cuGetProcAddress`: functions by name, in the form that a program of some CUDA version expects.

use super::call::abi;
use super::code::{Code, Result};
use super::raw::{Out, Text};
use super::table::address;

/// `CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM`.
const PER_THREAD: u64 = 2;
/// Suffixes of a function's forms, newest first.
const FORMS: [&str; 4] = ["_v4", "_v3", "_v2", ""];
/// CUDA versions that brought a form which older programs must not get; the other forms are older
/// than this table.
const SINCE: &[(&str, i32)] = &[
    ("cuCtxCreate_v3", 11040),
    ("cuCtxCreate_v4", 12050),
    ("cuCtxGetDevice_v2", 13000),
    ("cuCtxSynchronize_v2", 13000),
    ("cuDeviceGetUuid_v2", 11040),
    ("cuEventElapsedTime_v2", 12080),
    ("cuGetProcAddress_v2", 12000),
    ("cuGraphAddKernelNode_v2", 12000),
    ("cuGraphAddNode_v2", 12030),
    ("cuGraphExecKernelNodeSetParams_v2", 12000),
    ("cuGraphExecUpdate_v2", 12000),
    ("cuGraphGetEdges_v2", 12030),
    ("cuGraphKernelNodeGetParams_v2", 12000),
    ("cuGraphKernelNodeSetParams_v2", 12000),
    ("cuMemAdvise_v2", 12020),
    ("cuMemPrefetchAsync_v2", 12020),
    ("cuStreamGetCaptureInfo_v2", 11030),
    ("cuStreamGetCaptureInfo_v3", 12030),
    ("cuStreamGetCtx_v2", 12050),
];

/// What came of a search, `CU_GET_PROC_ADDRESS_...`.
#[derive(PartialEq, Eq, Debug)]
enum Found {
    Here(*const ()),
    Nowhere,
    TooNew,
}

fn search(name: &str, version: i32, flags: u64) -> Found {
    // The headers of CUDA 12 gave this old name to another function.
    let name = match name {
        "cuGraphInstantiate" if version >= 12000 => "cuGraphInstantiateWithFlags",
        name => name,
    };
    let mut answer = Found::Nowhere;
    for form in FORMS {
        let full = format!("{name}{form}");
        let Some(found) = address(&full) else { continue };
        if SINCE.iter().any(|(name, since)| *name == full && *since > version) {
            answer = Found::TooNew;
            continue;
        }
        let own = ["_ptsz", "_ptds"].iter().find_map(|suffix| address(&format!("{full}{suffix}")));
        return Found::Here(own.filter(|_| flags & PER_THREAD != 0).unwrap_or(found));
    }
    answer
}

fn get(symbol: &Text, out: Out<*const ()>, version: i32, flags: u64) -> Result<u32> {
    if flags > 3 {
        return Err(Code::INVALID_VALUE);
    }
    let (pointer, status) = match search(symbol.get()?, version, flags) {
        Found::Here(pointer) => (pointer, 0),
        Found::Nowhere => (std::ptr::null(), 1),
        Found::TooNew => (std::ptr::null(), 2),
    };
    out.set(pointer)?;
    Ok(status)
}

abi! {
    /// A function by name.
    fn cuGetProcAddress(symbol: Text, out: Out<*const ()>, version: i32, flags: u64) {
        if get(&symbol, out, version, flags)? == 0 { Ok(()) } else { Err(Code::NOT_FOUND) }
    }

    /// A function by name, with the reason if there is none.
    fn cuGetProcAddress_v2(
        symbol: Text,
        out: Out<*const ()>,
        version: i32,
        flags: u64,
        status: Out<u32>,
    ) {
        let found = get(&symbol, out, version, flags)?;
        status.offer(found);
        if found != 0 && status.is_null() { Err(Code::NOT_FOUND) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here(name: &str) -> Found {
        address(name).map_or(Found::Nowhere, Found::Here)
    }

    #[test]
    fn a_program_gets_the_form_of_its_version() {
        assert_eq!(search("cuMemAlloc", 13000, 0), here("cuMemAlloc_v2"));
        assert_eq!(search("cuCtxCreate", 13000, 0), here("cuCtxCreate_v4"));
        assert_eq!(search("cuCtxCreate", 11040, 0), here("cuCtxCreate_v3"));
        assert_eq!(search("cuCtxCreate", 10000, 0), here("cuCtxCreate_v2"));
        assert_eq!(search("cuNoSuchThing", 13000, 0), Found::Nowhere);
    }

    #[test]
    fn per_thread_forms_are_given_when_asked_for() {
        assert_eq!(search("cuMemcpyHtoD", 13000, PER_THREAD), here("cuMemcpyHtoD_v2_ptds"));
        assert_eq!(search("cuLaunchKernel", 13000, PER_THREAD), here("cuLaunchKernel_ptsz"));
        assert_eq!(search("cuMemAlloc", 13000, PER_THREAD), here("cuMemAlloc_v2"));
    }

    #[test]
    fn names_with_a_version_exist() {
        for (name, _) in SINCE {
            assert!(address(name).is_some(), "{name}");
        }
    }
}
