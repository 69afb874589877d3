//! Pointers that a caller hands to the driver, wrapped so that everything else here is safe code.
//!
//! The C interface gives bare pointers with promises attached: "writable, one handle wide", "a
//! string that ends in zero". Each wrapper below stands for one such promise; its field is private
//! and nothing in the crate makes one out of thin air, so a value of these types exists only
//! because a caller of an exported function passed it. A null pointer is the one broken promise
//! that can be seen, and becomes `CUDA_ERROR_INVALID_VALUE`.

use super::code::{Code, Result};
use std::ffi::{CStr, c_char, c_void};

/// Where the caller wants one value of `T`.
#[repr(transparent)]
pub(super) struct Out<T>(*mut T);

/// Where the caller keeps one value of `T` or the first of several.
#[repr(transparent)]
pub(super) struct In<T>(*const T);

/// A string of the caller that ends in zero.
#[repr(transparent)]
pub(super) struct Text(*const c_char);

/// The first byte of a range in host memory, whose length comes with the call.
#[repr(transparent)]
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Host(*mut c_void);

impl<T> Clone for Out<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Out<T> {}
impl<T> Clone for In<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for In<T> {}
impl Clone for Host {
    fn clone(&self) -> Self {
        *self
    }
}
impl Copy for Host {}

// SAFETY: a stream's worker reads and writes the range for the caller, who promised with the
// asynchronous call to leave it alone and alive until that work is done; the address itself is
// plain data.
unsafe impl Send for Host {}
// SAFETY: as above; sharing the wrapper shares an address, and only the worker that runs the copy
// follows it.
unsafe impl Sync for Host {}

impl<T: Copy> Out<T> {
    /// Writes the value; a null pointer is an error.
    pub(super) fn set(self, value: T) -> Result {
        self.set_at(0, value)
    }

    /// Writes the `index`th of several values.
    pub(super) fn set_at(self, index: usize, value: T) -> Result {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller promised room for every value the call is documented to write, and it
        // is not null.
        unsafe { self.0.add(index).write_unaligned(value) };
        Ok(())
    }

    /// Writes the value unless the caller passed null to say that it is not wanted.
    pub(super) fn offer(self, value: T) {
        if !self.0.is_null() {
            // SAFETY: not null, so the caller promised room for one value.
            unsafe { self.0.write_unaligned(value) };
        }
    }

    /// Reads what the caller put there, for arguments that go both ways.
    pub(super) fn get(self) -> Result<T> {
        In(self.0.cast_const()).get()
    }

    /// Reads the `index`th of what the caller put there.
    pub(super) fn at(self, index: usize) -> Result<T> {
        In(self.0.cast_const()).at(index)
    }

    /// Whether the caller passed null.
    pub(super) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The same place, seen as another type, where an attribute's number decides the width.
    pub(super) fn cast<U>(self) -> Out<U> {
        Out(self.0.cast())
    }
}

impl<T: Copy> In<T> {
    /// What a caller passes who has nothing to say.
    pub(super) fn none() -> Self {
        In(std::ptr::null())
    }

    /// Reads the value; a null pointer is an error.
    pub(super) fn get(self) -> Result<T> {
        self.at(0)
    }

    /// Reads the `index`th of several values.
    pub(super) fn at(self, index: usize) -> Result<T> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: not null, and the caller promised as many values as the call says; structures of
        // newer headers only ever grow at the end.
        Ok(unsafe { self.0.add(index).read_unaligned() })
    }

    /// Whether the caller passed null.
    pub(super) fn is_null(self) -> bool {
        self.0.is_null()
    }
}

impl Text {
    /// The bytes before the closing zero.
    pub(super) fn bytes(&self) -> Result<&[u8]> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: not null, and the caller promised a closing zero and that the text stays put
        // during the call.
        Ok(unsafe { CStr::from_ptr(self.0) }.to_bytes())
    }

    /// The text, which has to be UTF-8; names in PTX are ASCII.
    pub(super) fn get(&self) -> Result<&str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Code::INVALID_VALUE)
    }
}

impl Host {
    /// The address as a number, by which pinned ranges are looked up.
    pub(super) fn address(self) -> usize {
        self.0.addr()
    }

    /// The place `bytes` further on.
    pub(super) fn offset(self, bytes: usize) -> Host {
        Host(self.0.wrapping_byte_add(bytes))
    }

    /// Whether the caller passed null.
    pub(super) fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The same place as a string that ends in zero.
    pub(super) fn text(self) -> Text {
        Text(self.0.cast_const().cast())
    }

    /// The same place as values to read.
    pub(super) fn values<T>(self) -> In<T> {
        In(self.0.cast_const().cast())
    }

    /// The same place as values to write.
    pub(super) fn places<T>(self) -> Out<T> {
        Out(self.0.cast())
    }

    /// A host address that the caller passed where the interface has a number for "host or device".
    pub(super) fn from_address(address: u64) -> Host {
        Host(std::ptr::with_exposed_provenance_mut(address as usize))
    }

    /// A copy of `len` bytes.
    pub(super) fn read(self, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read_into(&mut bytes)?;
        Ok(bytes)
    }

    /// Fills `into` from here.
    pub(super) fn read_into(self, into: &mut [u8]) -> Result {
        if into.is_empty() {
            return Ok(());
        }
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller promised that this many bytes can be read; `into` is memory of our
        // own, so they are apart. A copy, not a borrowed slice, because another thread of the
        // caller may write there meanwhile.
        unsafe { into.as_mut_ptr().copy_from_nonoverlapping(self.0.cast(), into.len()) };
        Ok(())
    }

    /// Writes `bytes` here.
    pub(super) fn write(self, bytes: &[u8]) -> Result {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller promised room for this many bytes, and `bytes` is memory of our own,
        // so they are apart.
        unsafe { self.0.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }
}

/// A function of the caller and what it wants to be called with.
pub(super) struct HostCall {
    function: unsafe extern "C" fn(*mut c_void),
    data: Host,
}

impl HostCall {
    /// Takes the pair; a null function is an error.
    pub(super) fn new(
        function: Option<unsafe extern "C" fn(*mut c_void)>,
        data: Host,
    ) -> Result<Self> {
        Ok(Self { function: function.ok_or(Code::INVALID_VALUE)?, data })
    }

    /// Calls it, on the thread of the stream's worker.
    pub(super) fn call(&self) {
        // SAFETY: the caller passed the two for exactly this call, and promised that both stay
        // valid until then.
        unsafe { (self.function)(self.data.0) }
    }
}

/// The older form of a host function, which is told the stream and its state.
pub(super) struct StreamCall {
    function: unsafe extern "C" fn(usize, u32, *mut c_void),
    stream: usize,
    data: Host,
}

impl StreamCall {
    /// Takes the three; a null function is an error.
    pub(super) fn new(
        function: Option<unsafe extern "C" fn(usize, u32, *mut c_void)>,
        stream: usize,
        data: Host,
    ) -> Result<Self> {
        Ok(Self { function: function.ok_or(Code::INVALID_VALUE)?, stream, data })
    }

    /// Calls it with the state of the stream's context.
    pub(super) fn call(&self, status: u32) {
        // SAFETY: as for `HostCall::call`.
        unsafe { (self.function)(self.stream, status, self.data.0) }
    }
}

/// A function of the caller that gives the dynamic shared memory for a block size.
#[repr(transparent)]
pub(super) struct SharedOf(Option<unsafe extern "C" fn(i32) -> usize>);

impl SharedOf {
    /// The bytes for a block of this many threads, or `otherwise` if the caller passed no function.
    pub(super) fn bytes(&self, threads: i32, otherwise: usize) -> usize {
        match self.0 {
            // SAFETY: the caller passed the function for this call, which happens before the caller
            // goes on.
            Some(function) => unsafe { function(threads) },
            None => otherwise,
        }
    }
}
