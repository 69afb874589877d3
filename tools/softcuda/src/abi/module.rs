//! Modules: PTX text, read and loaded. Machine code is refused, because there is no machine for it.

use super::call::{abi, current, lock};
use super::code::{Code, Result};
use super::driver::{Driver, driver};
use super::function::{Function, function};
use super::jit::Jit;
use super::raw::{Host, In, Out, Text};
use super::report::say;
use crate::exec::Program;
use crate::ptx::Module;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Once};

/// A loaded module.
pub(super) struct Loaded {
    pub(super) context: usize,
    pub(super) handle: usize,
    pub(super) text: Module,
    program: Option<Program>,
    /// Handles of the functions that were asked for, by name.
    pub(super) functions: Mutex<HashMap<String, usize>>,
}

impl Loaded {
    /// The module's variables and code.
    pub(super) fn program(&self) -> Option<&Program> {
        self.program.as_ref()
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        if let (Some(program), Ok(driver)) = (self.program.take(), driver()) {
            // The variables can only be missing if something else already gave them back.
            let _ = program.unload(&driver.memory);
        }
    }
}

/// What the first bytes of an image say that it is.
fn machine_code(image: [u8; 4]) -> Option<&'static str> {
    match image {
        [0x7f, b'E', b'L', b'F'] => Some("a cubin"),
        [0x50, 0xed, 0x55, 0xba] | [0xb1, 0x43, 0x62, 0x46] => Some("a fatbin"),
        _ => None,
    }
}

/// The text of an image in memory, whose end only its content tells.
fn text_of(image: Host) -> Result<String> {
    if image.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    let mut start = [0; 4];
    for (index, byte) in start.iter_mut().enumerate() {
        // One byte at a time: a text may end before the fourth.
        *byte = image.values::<u8>().at(index)?;
        if *byte == 0 {
            break;
        }
    }
    if let Some(kind) = machine_code(start) {
        return Err(refuse(kind));
    }
    as_text(image.text().bytes()?)
}

/// Says so once: programs that have both kinds try machine code first, module after module.
fn refuse(kind: &str) -> Code {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        say(&format!(
            "{kind} holds code of a real card and cannot be run; load the PTX of the module instead"
        ));
    });
    Code::NO_BINARY_FOR_GPU
}

fn as_text(bytes: &[u8]) -> Result<String> {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.contains(".version") => Ok(text.to_owned()),
        _ => {
            say("the image is neither PTX, which begins with .version, nor a cubin or fatbin");
            Err(Code::INVALID_IMAGE)
        }
    }
}

/// The text of an image in a file.
fn text_in(path: &Text) -> Result<String> {
    let path = path.get()?;
    let bytes = std::fs::read(path).map_err(|_| Code::FILE_NOT_FOUND)?;
    if let Some(kind) = bytes.first_chunk().and_then(|start| machine_code(*start)) {
        return Err(refuse(kind));
    }
    as_text(bytes.strip_suffix(&[0]).unwrap_or(&bytes))
}

/// Reads and loads a text; what was wrong with it goes to the caller's log and to stderr.
pub(super) fn load(text: &str, jit: &Jit) -> Result<usize> {
    let (driver, context) = current()?;
    let module = Module::parse(text).map_err(|error| {
        say(&format!("module refused: {error}"));
        jit.error(&error.to_string());
        Code::INVALID_PTX
    })?;
    let program = Program::load(&module, &driver.memory).map_err(|error| {
        say(&format!("no room for the variables of a module: {error}"));
        jit.error(&error.to_string());
        Code::OUT_OF_MEMORY
    })?;
    jit.info(&format!("{} kernels read by softcuda", module.entries().count()));
    let (handle, _) = driver.modules.insert(|handle| Loaded {
        context: context.handle,
        handle,
        text: module,
        program: Some(program),
        functions: Mutex::default(),
    });
    Ok(handle)
}

/// Loads a module from memory.
pub(super) fn load_image(out: Out<usize>, image: Host, jit: &Jit) -> Result {
    current()?;
    if out.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    out.set(load(&text_of(image)?, jit)?)
}

/// Loads a module from a file.
pub(super) fn load_file(out: Out<usize>, path: &Text, jit: &Jit) -> Result {
    current()?;
    if out.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    out.set(load(&text_in(path)?, jit)?)
}

/// Forgets a module once the work that uses it is done.
pub(super) fn unload(module: usize) -> Result {
    let (driver, context) = super::call::bound()?;
    let module = driver.modules.remove(module)?;
    context.drain();
    driver.functions.retain(|function| !Arc::ptr_eq(&function.module, &module));
    context.check()
}

/// Address and size of a module's variable.
pub(super) fn global(address: Out<u64>, bytes: Out<usize>, module: usize, name: &Text) -> Result {
    let (driver, _context) = current()?;
    let module = driver.modules.get(module)?;
    let name = name.get()?;
    let found = module.program().and_then(|program| program.global(name));
    let found = found.ok_or(Code::NOT_FOUND)?;
    address.offer(found.0);
    bytes.offer(found.1 as usize);
    Ok(())
}

/// The handle of one of a module's kernels: the same each time it is asked for.
pub(super) fn kernel(driver: &Driver, module: usize, name: &str) -> Result<usize> {
    let module = driver.modules.get(module)?;
    let entry = module.text.entry(name).cloned().ok_or_else(|| {
        let known: Vec<_> = module.text.entries().map(|entry| entry.name.as_str()).collect();
        say(&format!("no kernel {name} in the module, which has: {}", known.join(", ")));
        Code::NOT_FOUND
    })?;
    let mut functions = lock(&module.functions);
    if let Some(known) = functions.get(name) {
        return Ok(*known);
    }
    let (handle, _) = driver.functions.insert(|_| Function::new(module.clone(), entry));
    functions.insert(name.to_owned(), handle);
    Ok(handle)
}

/// Handles of a module's kernels, as many as there is room for.
pub(super) fn enumerate(out: Out<usize>, room: u32, module: usize) -> Result {
    let (driver, _context) = current()?;
    let loaded = driver.modules.get(module)?;
    for (index, entry) in loaded.text.entries().take(room as usize).enumerate() {
        out.set_at(index, kernel(driver, module, &entry.name)?)?;
    }
    Ok(())
}

abi! {
    /// Loads a module from a file.
    fn cuModuleLoad(module: Out<usize>, path: Text) {
        load_file(module, &path, &Jit::none())
    }

    /// Loads a module from memory.
    fn cuModuleLoadData(module: Out<usize>, image: Host) {
        load_image(module, image, &Jit::none())
    }

    /// Loads a module from memory, with options for the compiler, of which only the logs mean
    /// something here.
    fn cuModuleLoadDataEx(
        module: Out<usize>,
        image: Host,
        count: u32,
        options: In<u32>,
        values: Out<Host>,
    ) {
        load_image(module, image, &Jit::read(count, options, values)?)
    }

    /// Loads a module of machine code: refused.
    fn cuModuleLoadFatBinary(_module: Out<usize>, _image: Host) {
        current()?;
        Err(refuse("a fatbin"))
    }

    /// Forgets a module.
    fn cuModuleUnload(module: usize) {
        unload(module)
    }

    /// One of a module's kernels.
    fn cuModuleGetFunction(function: Out<usize>, module: usize, name: Text) {
        let (driver, _context) = current()?;
        function.set(kernel(driver, module, name.get()?)?)
    }

    /// How many kernels a module has.
    fn cuModuleGetFunctionCount(count: Out<u32>, module: usize) {
        let (driver, _context) = current()?;
        count.set(driver.modules.get(module)?.text.entries().count() as u32)
    }

    /// A module's kernels.
    fn cuModuleEnumerateFunctions(functions: Out<usize>, room: u32, module: usize) {
        enumerate(functions, room, module)
    }

    /// One of a module's variables.
    fn cuModuleGetGlobal_v2(address: Out<u64>, bytes: Out<usize>, module: usize, name: Text) {
        global(address, bytes, module, &name)
    }

    /// Whether modules are loaded at once or at first use: at once.
    fn cuModuleGetLoadingMode(mode: Out<u32>) {
        driver()?;
        mode.set(1)
    }

    /// The module of a kernel.
    fn cuFuncGetModule(module: Out<usize>, kernel: usize) {
        module.set(function(kernel)?.module.handle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_code_is_told_from_text() {
        assert_eq!(machine_code(*b"\x7fELF"), Some("a cubin"));
        assert_eq!(machine_code(0xba55_ed50_u32.to_le_bytes()), Some("a fatbin"));
        assert_eq!(machine_code(*b".ver"), None);
    }
}
