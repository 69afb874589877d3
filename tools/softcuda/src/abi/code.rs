//! The driver's result codes, their names and a sentence for each, from one table.

use super::call::abi;
use super::raw::Out;
use std::ffi::c_char;

/// A result code other than success.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub(super) struct Code(pub(super) u32);

/// What almost every function here returns.
pub(super) type Result<T = ()> = std::result::Result<T, Code>;

/// `CUresult` as it crosses the C interface.
pub(super) type CUresult = u32;

/// The code of success.
pub(super) const SUCCESS: CUresult = 0;

macro_rules! codes {
    (
        returned { $($name:ident = $value:literal, $text:literal;)* }
        known { $($other:ident = $number:literal, $sentence:literal;)* }
    ) => {
        /// Each code: number, name, sentence; names and sentences end in zero for the C side.
        const TABLE: &[(u32, &str, &str)] = &[
            (SUCCESS, "CUDA_SUCCESS\0", "no error\0"),
            $(($value, concat!("CUDA_ERROR_", stringify!($name), "\0"), concat!($text, "\0")),)*
            $((
                $number,
                concat!("CUDA_ERROR_", stringify!($other), "\0"),
                concat!($sentence, "\0"),
            ),)*
        ];

        impl Code {
            $(#[doc = $text] pub(super) const $name: Code = Code($value);)*
        }
    };
}

// The codes that something here returns, and those that only have to be explained.
codes! {
    returned {
        INVALID_VALUE = 1, "invalid argument";
        OUT_OF_MEMORY = 2, "out of memory";
        NOT_INITIALIZED = 3, "the driver is not initialized: call cuInit first";
        INVALID_DEVICE = 101, "invalid device ordinal";
        INVALID_IMAGE = 200, "the image is not a module that can be loaded";
        INVALID_CONTEXT = 201, "invalid device context";
        NO_BINARY_FOR_GPU = 209, "no code in the module can run on this device";
        UNSUPPORTED_LIMIT = 215, "this limit is not supported by the device";
        INVALID_PTX = 218, "the PTX text was not understood";
        UNSUPPORTED_EXEC_AFFINITY = 224, "this execution affinity is not supported";
        FILE_NOT_FOUND = 301, "file not found";
        OPERATING_SYSTEM = 304, "a call to the operating system failed";
        INVALID_HANDLE = 400, "invalid resource handle";
        ILLEGAL_STATE = 401, "the resource is not in a state that permits this operation";
        NOT_FOUND = 500, "named symbol not found";
        NOT_READY = 600, "the work is not finished yet";
        ILLEGAL_ADDRESS = 700, "an illegal memory access was encountered";
        LAUNCH_TIMEOUT = 702, "the launch timed out and was ended";
        CONTEXT_IS_DESTROYED = 709, "the context is destroyed";
        ASSERT = 710, "a device-side assertion failed";
        HOST_MEMORY_ALREADY_REGISTERED = 712, "this host memory is already registered";
        HOST_MEMORY_NOT_REGISTERED = 713, "this host memory is not registered";
        ILLEGAL_INSTRUCTION = 715, "an illegal instruction was encountered";
        MISALIGNED_ADDRESS = 716, "a misaligned address was used";
        LAUNCH_FAILED = 719, "unspecified launch failure";
        COOPERATIVE_LAUNCH_TOO_LARGE = 720, "too many blocks in a cooperative launch";
        NOT_SUPPORTED = 801, "operation not supported";
        STREAM_CAPTURE_UNSUPPORTED = 900, "operation not permitted when a stream is capturing";
        STREAM_CAPTURE_INVALIDATED = 901, "the capture failed at an earlier call";
        STREAM_CAPTURE_MERGE = 902, "the operation would merge two captures";
        STREAM_CAPTURE_UNMATCHED = 903, "the capture was begun in another stream";
        STREAM_CAPTURE_UNJOINED = 904, "the capture has forked work that was not joined again";
        STREAM_CAPTURE_ISOLATION = 905, "a dependency would cross the border of the capture";
        STREAM_CAPTURE_IMPLICIT = 906, "the legacy stream would depend on a capturing stream";
        CAPTURED_EVENT = 907, "the event was last recorded in a capturing stream";
        STREAM_CAPTURE_WRONG_THREAD = 908, "the capture was begun by another thread";
        GRAPH_EXEC_UPDATE_FAILURE = 910, "the changes do not fit the instantiated graph";
        INVALID_CLUSTER_SIZE = 912, "invalid cluster size";
        UNKNOWN = 999, "unknown error";
    }
    known {
        LAUNCH_OUT_OF_RESOURCES = 701, "too many resources requested for launch";
        DEINITIALIZED = 4, "the driver is shutting down";
        PROFILER_DISABLED = 5, "the profiler is disabled while an external one runs";
        STUB_LIBRARY = 34, "the library is a stub";
        CALL_REQUIRES_NEWER_DRIVER = 36, "this call needs a newer driver";
        DEVICE_UNAVAILABLE = 46, "the device is busy or unavailable";
        NO_DEVICE = 100, "no device of this kind was found";
        DEVICE_NOT_LICENSED = 102, "the device is not licensed";
        MAP_FAILED = 205, "mapping of a buffer failed";
        UNMAP_FAILED = 206, "unmapping of a buffer failed";
        ARRAY_IS_MAPPED = 207, "the array is mapped";
        ALREADY_MAPPED = 208, "the resource is already mapped";
        ALREADY_ACQUIRED = 210, "the resource is already acquired";
        NOT_MAPPED = 211, "the resource is not mapped";
        NOT_MAPPED_AS_ARRAY = 212, "the resource is not mapped as an array";
        NOT_MAPPED_AS_POINTER = 213, "the resource is not mapped as a pointer";
        ECC_UNCORRECTABLE = 214, "an uncorrectable memory error was met";
        CONTEXT_ALREADY_IN_USE = 216, "the context is in use by another thread";
        PEER_ACCESS_UNSUPPORTED = 217, "peer access is not supported between these devices";
        INVALID_GRAPHICS_CONTEXT = 219, "invalid graphics context";
        NVLINK_UNCORRECTABLE = 220, "an uncorrectable NVLink error was met";
        JIT_COMPILER_NOT_FOUND = 221, "the PTX compiler library was not found";
        UNSUPPORTED_PTX_VERSION = 222, "the PTX is of a version newer than this driver";
        JIT_COMPILATION_DISABLED = 223, "compilation of PTX is disabled";
        UNSUPPORTED_DEVSIDE_SYNC = 225, "this way to synchronize on the device is not supported";
        INVALID_SOURCE = 300, "the kernel source is invalid";
        SHARED_OBJECT_SYMBOL_NOT_FOUND = 302, "a symbol of a shared library was not found";
        SHARED_OBJECT_INIT_FAILED = 303, "a shared library did not initialize";
        LOSSY_QUERY = 402, "the query would lose information";
        LAUNCH_INCOMPATIBLE_TEXTURING = 703, "the launch uses an incompatible texturing mode";
        PEER_ACCESS_ALREADY_ENABLED = 704, "peer access is already enabled";
        PEER_ACCESS_NOT_ENABLED = 705, "peer access has not been enabled";
        PRIMARY_CONTEXT_ACTIVE = 708, "the primary context is already active";
        TOO_MANY_PEERS = 711, "peer access resources are exhausted";
        HARDWARE_STACK_ERROR = 714, "the call stack of a kernel is corrupt";
        INVALID_ADDRESS_SPACE = 717, "an operation does not work in this address space";
        INVALID_PC = 718, "the program counter is invalid";
        TENSOR_MEMORY_LEAK = 721, "tensor memory was not released";
        NOT_PERMITTED = 800, "operation not permitted";
        SYSTEM_NOT_READY = 802, "the system is not yet initialized";
        SYSTEM_DRIVER_MISMATCH = 803, "driver and library versions do not match";
        COMPAT_NOT_SUPPORTED_ON_DEVICE = 804, "forward compatibility is not supported here";
        CDP_NOT_SUPPORTED = 811, "launches from the device are not supported";
        CDP_VERSION_MISMATCH = 812, "versions of device-side launching do not match";
        TIMEOUT = 909, "the wait timed out";
        EXTERNAL_DEVICE = 911, "an external device failed";
        FUNCTION_NOT_LOADED = 913, "the function is not loaded";
        INVALID_RESOURCE_TYPE = 914, "invalid resource type";
        INVALID_RESOURCE_CONFIGURATION = 915, "invalid resource configuration";
    }
}

impl Code {
    /// Whether the context that met this error is lost: these say that a kernel went wrong while it
    /// ran.
    pub(super) fn is_sticky(self) -> bool {
        matches!(self.0, 214 | 220 | 700 | 702 | 710 | 714..=719 | 721)
    }

    /// The code's name as the headers spell it.
    pub(super) fn name(self) -> &'static str {
        find(self.0).map_or("an unknown code", |(_, name, _)| name.trim_end_matches('\0'))
    }
}

fn find(code: u32) -> Option<&'static (u32, &'static str, &'static str)> {
    TABLE.iter().find(|row| row.0 == code)
}

/// The text as C sees it, or null with the error that an unknown code asks for.
fn give(text: Option<&'static str>, out: Out<*const c_char>) -> Result {
    match text {
        Some(text) => out.set(text.as_ptr().cast()),
        None => {
            out.set(std::ptr::null())?;
            Err(Code::INVALID_VALUE)
        }
    }
}

abi! {
    /// The name of a code, `CUDA_ERROR_...`.
    fn cuGetErrorName(error: CUresult, text: Out<*const c_char>) {
        give(find(error).map(|row| row.1), text)
    }

    /// A sentence about a code.
    fn cuGetErrorString(error: CUresult, text: Out<*const c_char>) {
        give(find(error).map(|row| row.2), text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_differ_and_every_text_ends_in_one_zero() {
        let codes: std::collections::BTreeSet<_> = TABLE.iter().map(|row| row.0).collect();
        assert_eq!(codes.len(), TABLE.len());
        for (_, name, text) in TABLE {
            for text in [name, text] {
                assert_eq!(text.find('\0'), Some(text.len() - 1), "{text:?}");
            }
        }
    }

    #[test]
    fn only_faults_of_running_kernels_are_sticky() {
        assert!(Code::ILLEGAL_ADDRESS.is_sticky() && Code::ASSERT.is_sticky());
        for code in [Code::OUT_OF_MEMORY, Code::NOT_FOUND, Code::NOT_SUPPORTED] {
            assert!(!code.is_sticky(), "{}", code.name());
        }
    }
}
