//! A loaded module: kernels with the addresses of their variables filled in.

use super::class::{Classified, classes};
use super::code::{Code, Init};
use super::fault::Fault;
use crate::mem::{MemError, Memory};
use crate::ptx::ast::{Space, VarId};
use crate::ptx::{Entry, Module};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A kernel ready to launch.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) entry: Entry,
    pub(super) code: Code,
    pub(super) classes: Vec<Classified>,
}

/// A module whose variables have addresses.
#[derive(Debug, Default)]
pub struct Program {
    kernels: HashMap<String, Kernel>,
    /// Name, address and size.
    variables: BTreeMap<String, (u64, u64)>,
    placed: Vec<u64>,
    text: Arc<Vec<String>>,
    files: HashMap<u32, String>,
}

impl Program {
    /// Places the module's variables in device memory.
    ///
    /// # Errors
    /// No memory left for them.
    pub fn load(module: &Module, memory: &Memory) -> Result<Self, MemError> {
        let unit = module.unit();
        let mut out = Self { text: module.text(), files: unit.files.clone(), ..Self::default() };
        let mut addresses: HashMap<VarId, u64> = HashMap::new();
        for (id, var) in unit.vars.iter().enumerate() {
            if !matches!(var.space, Space::Global | Space::Const) {
                continue;
            }
            let address = match memory.alloc(u64::from(var.bytes), Some(&var.name)) {
                Ok(address) => address,
                Err(error) => {
                    out.unload(memory)?;
                    return Err(error);
                }
            };
            out.placed.push(address);
            addresses.insert(id as VarId, address);
            let size = u64::from(var.bytes);
            out.variables.insert(var.name.clone(), (address, size));
            memory.fill(address, &[0], size)?;
            let kept = var.init.len().min(size as usize);
            memory.write(address, &var.init[..kept])?;
        }
        for (id, var) in unit.vars.iter().enumerate() {
            let Some(base) = addresses.get(&(id as VarId)) else { continue };
            for (at, of, add) in &var.relocations {
                let to = addresses.get(of).copied().unwrap_or(0).wrapping_add_signed(*add);
                memory.write(base + u64::from(*at), &to.to_le_bytes())?;
            }
        }
        for (entry, code) in module.codes() {
            let mut code = code.clone();
            for (_, init) in code.init32.iter_mut().chain(&mut code.init64) {
                if let Init::Global(id, add) = *init {
                    let address = addresses.get(&id).copied().unwrap_or(0);
                    *init = Init::Value(address.wrapping_add_signed(add));
                }
            }
            let classes = classes(&code);
            let kernel = Kernel { entry: entry.clone(), code, classes };
            out.kernels.insert(entry.name.clone(), kernel);
        }
        Ok(out)
    }

    /// Address and size of a module variable.
    pub fn global(&self, name: &str) -> Option<(u64, u64)> {
        self.variables.get(name).copied()
    }

    /// What is known of a kernel.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.kernels.get(name).map(|k| &k.entry)
    }

    pub(super) fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.get(name)
    }

    /// Adds the instruction's text and source line to a fault.
    pub(super) fn locate(&self, fault: &mut Fault) {
        fault.source = crate::ptx::source(&self.files, fault.place);
        let line = fault.ptx_line.wrapping_sub(1) as usize;
        if let Some(text) = self.text.get(line) {
            fault.instruction.clone_from(text);
        }
    }

    /// Frees the module's variables.
    ///
    /// # Errors
    /// One of them was freed already.
    pub fn unload(self, memory: &Memory) -> Result<(), MemError> {
        self.placed.iter().try_for_each(|address| memory.free(*address))
    }
}
