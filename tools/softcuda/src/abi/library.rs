//! Libraries: the newer face of modules. A library is its module and a kernel its function, handle
//! for handle.

use super::call::{abi, current};
use super::code::Result;
use super::device::known;
use super::function::{function, parameter};
use super::jit::Jit;
use super::module::{enumerate, global, kernel, load_file, load_image, unload};
use super::raw::{Host, In, Out, Text};
use std::ffi::c_char;

/// Checks that the handle is a library's and returns it.
fn library(handle: usize) -> Result<usize> {
    let (driver, _context) = current()?;
    driver.modules.get(handle).map(|module| module.handle)
}

abi! {
    /// Loads a library from memory.
    fn cuLibraryLoadData(
        library: Out<usize>,
        image: Host,
        options: In<u32>,
        values: Out<Host>,
        count: u32,
        _library_options: In<u32>,
        _library_values: In<Host>,
        _library_count: u32,
    ) {
        load_image(library, image, &Jit::read(count, options, values)?)
    }

    /// Loads a library from a file.
    fn cuLibraryLoadFromFile(
        library: Out<usize>,
        path: Text,
        options: In<u32>,
        values: Out<Host>,
        count: u32,
        _library_options: In<u32>,
        _library_values: In<Host>,
        _library_count: u32,
    ) {
        load_file(library, &path, &Jit::read(count, options, values)?)
    }

    /// Forgets a library.
    fn cuLibraryUnload(library: usize) {
        unload(library)
    }

    /// One of a library's kernels.
    fn cuLibraryGetKernel(out: Out<usize>, library: usize, name: Text) {
        let (driver, _context) = current()?;
        out.set(kernel(driver, library, name.get()?)?)
    }

    /// How many kernels a library has.
    fn cuLibraryGetKernelCount(count: Out<u32>, library: usize) {
        let (driver, _context) = current()?;
        count.set(driver.modules.get(library)?.text.entries().count() as u32)
    }

    /// A library's kernels.
    fn cuLibraryEnumerateKernels(kernels: Out<usize>, room: u32, library: usize) {
        enumerate(kernels, room, library)
    }

    /// The module of a library.
    fn cuLibraryGetModule(module: Out<usize>, handle: usize) {
        module.set(library(handle)?)
    }

    /// One of a library's variables.
    fn cuLibraryGetGlobal(address: Out<u64>, bytes: Out<usize>, library: usize, name: Text) {
        global(address, bytes, library, &name)
    }

    /// The function of a kernel.
    fn cuKernelGetFunction(out: Out<usize>, kernel: usize) {
        function(kernel)?;
        out.set(kernel)
    }

    /// The library of a kernel.
    fn cuKernelGetLibrary(out: Out<usize>, kernel: usize) {
        out.set(function(kernel)?.module.handle)
    }

    /// A kernel's name.
    fn cuKernelGetName(name: Out<*const c_char>, kernel: usize) {
        name.set(function(kernel)?.c_name())
    }

    /// Offset and size of one of a kernel's parameters.
    fn cuKernelGetParamInfo(kernel: usize, index: usize, offset: Out<usize>, bytes: Out<usize>) {
        parameter(kernel, index, offset, bytes)
    }

    /// One of a kernel's attributes.
    fn cuKernelGetAttribute(value: Out<i32>, attribute: u32, kernel: usize, device: i32) {
        known(device)?;
        value.set(function(kernel)?.attribute(attribute)?)
    }

    /// Sets one of a kernel's attributes.
    fn cuKernelSetAttribute(attribute: u32, value: i32, kernel: usize, device: i32) {
        known(device)?;
        function(kernel)?.set_attribute(attribute, value)
    }
}
