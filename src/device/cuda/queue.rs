//! A queue: commands that run on the GPU one after the other.

use std::ffi::c_void;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaStream, DriverError, result, sys};

use super::clock::Timing;
use super::constants::Constants;
use super::launch::put;
use super::plan::Planning;
use super::staging::Staging;
use super::tensor_map::tensor_map;
use super::{Gpu, failed};
use crate::device::kernel::{Arg, Entry, Grid, Span};
use crate::device::span::{self, Place};
use crate::error::{Error, Result};

/// Launches that are remembered for the message of a failed one.
const REMEMBERED: usize = 4;
/// Where an imagined GPU's memory begins, and what its buffers are aligned to, as the driver's are.
const IMAGINED: u64 = 1 << 20;
const GRAIN: u64 = 512;

/// Commands in order; clones are the same queue.
#[derive(Clone)]
pub struct Queue(Arc<Inner>);

/// A launch as a queue remembers it.
#[derive(Clone, Debug)]
pub struct Launch {
    /// What was launched.
    pub entry: &'static Entry,
    /// Its blocks and threads.
    pub grid: Grid,
    /// Its arguments in the order of the entry's parameters.
    pub args: Vec<Arg>,
    /// Where the thread was that launched it, while somebody listens to that.
    pub place: Place,
    /// Whether it may begin before the launch before has ended.
    pub overlaps: bool,
}

impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: Vec<String> = self.entry.params.iter().zip(&self.args).map(shown).collect();
        write!(f, "{}, {}, {}", self.entry, self.grid, shown.join(", "))
    }
}

struct Inner {
    staging: Mutex<Staging>,
    gpu: Gpu,
    /// None on an imagined GPU.
    stream: Option<Arc<CudaStream>>,
    id: u64,
    launches: AtomicUsize,
    constants: Constants,
    planning: Mutex<Planning>,
    allocations: AtomicUsize,
    uploads: AtomicUsize,
    fetches: AtomicUsize,
    /// The newest launches, oldest first.
    recent: Mutex<Vec<Launch>>,
    /// All launches while somebody listens.
    traced: Mutex<Option<Vec<Launch>>>,
    /// Moments before and after all launches while somebody measures.
    timed: Mutex<Option<Vec<Timing>>>,
    /// Where an imagined GPU has memory left.
    imagined: AtomicU64,
    /// Whether every kernel's results are looked at before the next.
    checked: AtomicBool,
    /// Whether every op's results are held against its reference.
    verified: AtomicBool,
    /// Whether launches may begin beside those before.
    overlapped: AtomicBool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A failed context has nothing to give back.
        if let (Some(stream), Ok(())) = (&self.stream, self.gpu.bind()) {
            for address in self.constants.addresses() {
                // SAFETY: the address came from `allocate` and nobody else releases it; buffers of
                // it keep the queue.
                let _ = unsafe { result::free_async(address, stream.cu_stream()) };
            }
        }
    }
}

impl Gpu {
    /// A new queue. With GENEVAR_CHECK_FINITE=1 in the environment it is [`Queue::checked`], with
    /// GENEVAR_CHECK_ROUNDING=1 [`Queue::verified`]; with
    /// GENEVAR_OVERLAP=0 not [`Queue::overlapped`].
    ///
    /// # Errors
    /// Those of the driver.
    pub fn queue(&self) -> Result<Queue> {
        static IDS: AtomicU64 = AtomicU64::new(0);
        self.bind()?;
        let fix = "the GPU may have failed; look at `nvidia-smi`";
        let stream = self.0.context.as_ref().map(|context| context.new_stream()).transpose();
        let stream = stream.map_err(|e| failed(e, "making a stream".into(), fix))?;
        let real = !self.is_imagined();
        let asked = |name| AtomicBool::new(real && std::env::var(name).is_ok_and(|v| v == "1"));
        Ok(Queue(Arc::new(Inner {
            staging: Mutex::default(),
            gpu: self.clone(),
            stream,
            id: IDS.fetch_add(1, Ordering::Relaxed),
            launches: AtomicUsize::new(0),
            constants: Constants::default(),
            planning: Mutex::default(),
            allocations: AtomicUsize::new(0),
            uploads: AtomicUsize::new(0),
            fetches: AtomicUsize::new(0),
            recent: Mutex::default(),
            traced: Mutex::default(),
            timed: Mutex::default(),
            imagined: AtomicU64::new(IMAGINED),
            checked: asked("GENEVAR_CHECK_FINITE"),
            verified: asked("GENEVAR_CHECK_ROUNDING"),
            overlapped: AtomicBool::new(std::env::var("GENEVAR_OVERLAP").as_deref() != Ok("0")),
        })))
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue {} of cuda:{}", self.id(), self.gpu().facts().ordinal)
    }
}

impl Queue {
    /// The GPU it runs on.
    pub fn gpu(&self) -> &Gpu {
        &self.0.gpu
    }

    /// Waits after every kernel and fails, naming it, at the first result that is not finite.
    pub fn checked(self, on: bool) -> Self {
        self.0.checked.store(on, Ordering::Relaxed);
        self
    }

    /// Runs every op's reference beside its kernels, on the CPU, and fails, naming op and element,
    /// at the first result that rounding does not explain. Slow: for finding a wrong kernel.
    pub fn verified(self, on: bool) -> Self {
        self.0.verified.store(on, Ordering::Relaxed);
        self
    }

    /// Whether the blocks of a launch may come before the launch before has ended, on GPUs that can
    /// do that; they wait for it by themselves.
    pub fn overlapped(self, on: bool) -> Self {
        self.0.overlapped.store(on, Ordering::Relaxed);
        self
    }

    /// Whether it is [`Queue::verified`].
    pub fn verifies(&self) -> bool {
        self.0.verified.load(Ordering::Relaxed)
    }

    /// Whether it is [`Queue::checked`].
    pub fn checks(&self) -> bool {
        self.0.checked.load(Ordering::Relaxed)
    }

    /// Kernels launched so far.
    pub fn launches(&self) -> usize {
        self.0.launches.load(Ordering::Relaxed)
    }

    /// How often something was copied from the GPU so far: each time the CPU waited for it.
    pub fn fetches(&self) -> usize {
        self.0.fetches.load(Ordering::Relaxed)
    }

    /// How often something was copied to the GPU so far.
    pub fn uploads(&self) -> usize {
        self.0.uploads.load(Ordering::Relaxed)
    }

    pub(super) fn count_upload(&self) {
        self.0.uploads.fetch_add(1, Ordering::Relaxed);
    }

    /// How often memory was asked of the driver so far.
    pub fn allocations(&self) -> usize {
        self.0.allocations.load(Ordering::Relaxed)
    }

    pub(super) fn planning(&self) -> &Mutex<Planning> {
        &self.0.planning
    }

    pub(super) fn constants(&self) -> &Constants {
        &self.0.constants
    }

    pub(super) fn count_fetch(&self) {
        self.0.fetches.fetch_add(1, Ordering::Relaxed);
    }

    /// Runs `f` and returns with its result what was launched meanwhile, in order.
    pub fn trace<T>(&self, f: impl FnOnce() -> T) -> (T, Vec<Launch>) {
        let before = self.0.traced.lock().unwrap_or_else(PoisonError::into_inner).replace(vec![]);
        let done = f();
        let mut traced = self.0.traced.lock().unwrap_or_else(PoisonError::into_inner);
        let launches = traced.take().unwrap_or_default();
        // A trace around this one has heard these too.
        *traced = before.map(|mut outer| {
            outer.extend(launches.iter().cloned());
            outer
        });
        (done, launches)
    }

    /// Puts a kernel into the queue. Generated launchers call it: they have checked the extents.
    ///
    /// # Errors
    /// A buffer of another queue; those of the driver, naming entry, grid and buffers.
    pub fn launch(&self, entry: &'static Entry, grid: Grid, args: &[Arg]) -> Result<()> {
        if let Some(foreign) = args.iter().filter_map(Arg::span).find(|s| s.queue() != self.id()) {
            let what = format!(
                "{entry}: a buffer of {} {} belongs to another queue",
                foreign.len(),
                foreign.element()
            );
            return Err(Error::Shape { op: entry.name, what });
        }
        let gpu = &self.0.gpu;
        let function = (!gpu.is_imagined()).then(|| gpu.function(entry)).transpose()?;
        let able = function.map_or_else(|| gpu.overlaps(entry), |function| function.overlaps);
        let overlaps = able && !grid.together && self.0.overlapped.load(Ordering::Relaxed);
        let launch = Launch { entry, grid, args: args.to_vec(), place: span::here(), overlaps };
        self.note(&launch);
        let Some(function) = function else {
            self.0.launches.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        };
        self.bind()?;
        let mut values = args.iter().map(|arg| value(entry, arg)).collect::<Result<Vec<_>>>()?;
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(Value::pointer).collect();
        // SAFETY: the arguments are in the order and of the types that the entry declares, as the
        // generated launcher made them; buffers are live, and their release is ordered after.
        let mut launched =
            || unsafe { put(function.handle, grid, self.stream(), overlaps, &mut pointers) };
        self.between(|| launched().map_err(|e| failed(e, launch.to_string(), self.advice())))?;
        self.0.launches.fetch_add(1, Ordering::Relaxed);
        match self.0.checked.load(Ordering::Relaxed) {
            true => self.look_at(entry, args),
            false => Ok(()),
        }
    }

    /// Waits until everything before has run.
    ///
    /// # Errors
    /// What went wrong in it.
    pub fn synchronize(&self) -> Result<()> {
        let Some(stream) = &self.0.stream else { return Ok(()) };
        self.bind()?;
        stream.synchronize().map_err(|e| self.late(e))
    }

    /// The error of commands before, with the launches among which the culprit is.
    pub(super) fn late(&self, error: DriverError) -> Error {
        let recent = self.0.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let what = match recent.is_empty() {
            true => "waiting for the GPU".to_string(),
            false => {
                let recent: Vec<String> = recent.iter().map(Launch::to_string).collect();
                format!("waiting for the GPU; the newest launches: {}", recent.join("; "))
            }
        };
        failed(error, what, self.advice())
    }

    pub(super) fn staging(&self) -> &Mutex<Staging> {
        &self.0.staging
    }

    pub(in crate::device) fn id(&self) -> u64 {
        self.0.id
    }

    /// The driver's stream; null on an imagined GPU, where nothing may be put into it.
    pub(super) fn stream(&self) -> sys::CUstream {
        self.0.stream.as_ref().map_or(std::ptr::null_mut(), |stream| stream.cu_stream())
    }

    pub(super) fn cuda_stream(&self) -> Result<&Arc<CudaStream>> {
        let none = || Error::Internal("an imagined GPU records nothing".into());
        self.0.stream.as_ref().ok_or_else(none)
    }

    pub(super) fn timed(&self) -> &Mutex<Option<Vec<Timing>>> {
        &self.0.timed
    }

    pub(super) fn bind(&self) -> Result<()> {
        self.0.gpu.bind()
    }

    pub(super) fn advice(&self) -> &'static str {
        "GENEVAR_CHECK_FINITE=1 waits after each kernel, compute-sanitizer finds bad accesses"
    }

    /// That `wanted` elements fit into a buffer of `len`.
    pub(super) fn holds(&self, what: &'static str, wanted: usize, len: usize) -> Result<()> {
        match wanted <= len {
            true => Ok(()),
            false => {
                let what = format!("{what}: {wanted} elements do not fit into {len}");
                Err(Error::Shape { op: "buffer", what })
            }
        }
    }

    pub(super) fn allocate(&self, bytes: usize) -> Result<u64> {
        self.bind()?;
        self.0.allocations.fetch_add(1, Ordering::Relaxed);
        if self.0.gpu.is_imagined() {
            let size = (bytes as u64).next_multiple_of(GRAIN);
            return Ok(self.0.imagined.fetch_add(size, Ordering::Relaxed));
        }
        // SAFETY: the stream is this queue's own.
        unsafe { result::malloc_async(self.stream(), bytes) }.map_err(|e| {
            let mib = |n: usize| n as f64 / f64::from(1 << 20);
            let gpu = &self.0.gpu;
            let mut what = format!("allocating {:.1} MiB on the GPU", mib(bytes));
            if let Ok((free, all)) = gpu.memory() {
                what += &format!("; {:.0} of {:.0} MiB are free", mib(free), mib(all));
            }
            if let Ok(most) = gpu.high_water() {
                let most = mib(usize::try_from(most).unwrap_or(usize::MAX));
                what += &format!("; genevar held {most:.0} MiB at most");
            }
            failed(e, what, "use a smaller batch, or stop what else runs there")
        })
    }

    /// Gives memory back when the commands before are done. A failed context has nothing to give.
    pub(super) fn release(&self, address: u64) {
        if !self.0.gpu.is_imagined() && self.bind().is_ok() {
            // SAFETY: the address came from `allocate` of this queue and is released once.
            let _ = unsafe { result::free_async(address, self.stream()) };
        }
    }

    fn note(&self, launch: &Launch) {
        let mut recent = self.0.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == REMEMBERED {
            recent.remove(0);
        }
        if let Some(all) = &mut *self.0.traced.lock().unwrap_or_else(PoisonError::into_inner) {
            all.push(launch.clone());
        }
        recent.push(launch.clone());
    }

    /// Fails if a result of the newest launch is not finite.
    fn look_at(&self, entry: &'static Entry, args: &[Arg]) -> Result<()> {
        self.synchronize()?;
        for (param, arg) in entry.params.iter().zip(args) {
            let Arg::Output(span) = arg else { continue };
            let values: Vec<f32> = match span.element() {
                "f32" => self.peek::<f32>(span)?,
                "bf16" => self.peek::<half::bf16>(span)?.iter().map(|v| v.to_f32()).collect(),
                _ => continue,
            };
            let bad = |v: &f32| !v.is_finite();
            if let Some(first) = values.iter().position(bad) {
                return Err(Error::NotFinite {
                    place: format!("{entry}, `{}`", param.name),
                    count: values.iter().filter(|v| bad(v)).count(),
                    len: values.len(),
                    first,
                });
            }
        }
        Ok(())
    }

    fn peek<T: bytemuck::Pod>(&self, span: &Span) -> Result<Vec<T>> {
        let mut data = vec![T::zeroed(); span.len()];
        if data.is_empty() {
            return Ok(data);
        }
        self.download(span.address(), bytemuck::cast_slice_mut(&mut data))?;
        Ok(data)
    }
}

/// An argument as the driver reads it.
enum Value {
    /// The low bytes hold it.
    Bits(u64),
    Map(Box<sys::CUtensorMap>),
}

impl Value {
    fn pointer(&mut self) -> *mut c_void {
        match self {
            Self::Bits(bits) => std::ptr::from_mut(bits).cast(),
            Self::Map(map) => std::ptr::from_mut(&mut **map).cast(),
        }
    }
}

fn value(entry: &'static Entry, arg: &Arg) -> Result<Value> {
    match arg {
        Arg::Map(boxes) => Ok(Value::Map(Box::new(tensor_map(entry, boxes)?))),
        _ => Ok(Value::Bits(bits(arg))),
    }
}

/// An argument's low bytes.
fn bits(arg: &Arg) -> u64 {
    match *arg {
        Arg::Input(s) | Arg::Output(s) => s.address(),
        Arg::Map(boxes) => boxes.span().address(),
        Arg::F32(v) => u64::from(v.to_bits()),
        Arg::F64(v) => v.to_bits(),
        Arg::I32(v) => u64::from(v.cast_unsigned()),
        Arg::U32(v) => u64::from(v),
        Arg::I64(v) => v.cast_unsigned(),
        Arg::U64(v) => v,
        Arg::Bool(v) => u64::from(v),
    }
}

fn shown((param, arg): (&crate::device::kernel::Param, &Arg)) -> String {
    let name = param.name;
    match arg {
        Arg::Input(s) | Arg::Output(s) => format!("{name} {}[{}]", s.element(), s.len()),
        Arg::Map(boxes) => format!("{name} {}{:?}", boxes.span().element(), boxes.extents()),
        Arg::F32(v) => format!("{name} {v}"),
        Arg::F64(v) => format!("{name} {v}"),
        Arg::I32(v) => format!("{name} {v}"),
        Arg::U32(v) => format!("{name} {v}"),
        Arg::I64(v) => format!("{name} {v}"),
        Arg::U64(v) => format!("{name} {v}"),
        Arg::Bool(v) => format!("{name} {v}"),
    }
}
