//! What the tests of the driver share: loading the library, contexts of their own, a stream that
//! waits until it is told to go on, and reading errors.
//!
//! Tests run on threads of one process with one driver. Each makes a context of its own, so that a
//! fault stays in it, and captures in the thread-local mode, so that it forbids nothing to others.

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::ffi::c_void;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};

pub use sys::CUresult as Code;

/// Where cargo put the library: beside the test's own program.
pub fn path() -> PathBuf {
    let mut path = std::env::current_exe().expect("the test's own path");
    path.set_file_name("libsoftcuda.so");
    path
}

/// Loads the library by its path, once, so that `libcuda.so` means it from then on.
pub fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        // SAFETY: the library has no code that runs when it is loaded.
        let opened = unsafe { Library::open(Some(path()), RTLD_NOW | RTLD_GLOBAL) };
        opened.expect("libsoftcuda.so beside the test")
    })
}

/// A context of the test's own, without cudarc's event tracking, which captures do not like.
pub fn context() -> Arc<CudaContext> {
    library();
    let context = CudaContext::new_non_primary(0, 0).expect("a context");
    // SAFETY: each test orders its work by streams and events of its own.
    unsafe { context.disable_event_tracking() };
    context
}

/// The code of a failed call.
#[track_caller]
pub fn code<T>(result: Result<T, DriverError>) -> Code {
    match result {
        Ok(_) => panic!("the call succeeded"),
        Err(error) => error.0,
    }
}

/// A stream's work that goes no further until this is dropped or opened.
pub struct Hold(Sender<()>);

impl Hold {
    /// Puts the hold into a stream.
    pub fn in_stream(stream: sys::CUstream) -> Self {
        let (sender, receiver) = channel::<()>();
        call_in_stream(stream, move || {
            // An error means that the test dropped the sender, which opens the hold as well.
            let _ = receiver.recv();
        });
        Self(sender)
    }

    /// Lets the stream go on.
    pub fn open(self) {
        drop(self.0);
    }
}

/// Puts a function into a stream.
pub fn call_in_stream(stream: sys::CUstream, function: impl FnOnce() + Send + 'static) {
    unsafe extern "C" fn call(data: *mut c_void) {
        // SAFETY: the pointer came from `into_raw` below, and the function runs once.
        let function = unsafe { Box::from_raw(data.cast::<Box<dyn FnOnce() + Send>>()) };
        function();
    }
    let function: Box<dyn FnOnce() + Send> = Box::new(function);
    let data = Box::into_raw(Box::new(function)).cast();
    // SAFETY: `call` takes what `data` is, and the box lives until then.
    let put = unsafe { result::stream::launch_host_function(stream, call, data) };
    put.expect("a host function in a stream");
}

/// A function in a stream that tells when it has run.
pub fn bell_in_stream(stream: sys::CUstream, name: &'static str) -> Receiver<&'static str> {
    let (sender, receiver) = channel();
    call_in_stream(stream, move || {
        let _ = sender.send(name);
    });
    receiver
}

/// Begins a capture that forbids nothing to other threads.
pub fn begin_capture(stream: sys::CUstream) {
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    // SAFETY: the stream belongs to the test.
    unsafe { result::stream::begin_capture(stream, mode) }.expect("the begin of a capture");
}

/// An event.
pub fn event() -> sys::CUevent {
    result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).expect("an event")
}

/// Makes a stream wait for an event.
pub fn wait(stream: &CudaStream, event: sys::CUevent) -> Result<(), DriverError> {
    let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
    unsafe { result::stream::wait_event(stream.cu_stream(), event, flags) }
}

/// Records an event in a stream.
pub fn record(stream: &CudaStream, event: sys::CUevent) {
    unsafe { result::event::record(event, stream.cu_stream()) }.expect("a record");
}

/// Ends a capture.
pub fn end_capture(stream: &CudaStream) -> Result<sys::CUgraph, DriverError> {
    unsafe { result::stream::end_capture(stream.cu_stream()) }
}

/// A stream that waits for no other.
pub fn new_stream(context: &Arc<CudaContext>) -> Arc<CudaStream> {
    context.new_stream().expect("a stream")
}

/// A stream that stands in the legacy default stream's order.
pub fn blocking_stream() -> sys::CUstream {
    result::stream::create(result::stream::StreamKind::Default).expect("a stream")
}
