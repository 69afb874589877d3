//! The order of work: streams, events and host functions. Host functions that wait for the test
//! make each order certain, without clocks.

use crate::support::{
    Code, Hold, bell_in_stream, blocking_stream, code, context, event, library, new_stream, record,
    wait,
};
use cudarc::driver::{CudaStream, result, sys};
use std::sync::mpsc::TryRecvError;

#[test]
fn a_stream_runs_in_order_and_beside_others() {
    let context = context();
    let (one, two) = (new_stream(&context), new_stream(&context));
    let hold = Hold::in_stream(one.cu_stream());
    let first = bell_in_stream(one.cu_stream(), "first");
    let other = bell_in_stream(two.cu_stream(), "other");
    assert_eq!(other.recv(), Ok("other"), "a held stream must not hold another");
    assert_eq!(first.try_recv(), Err(TryRecvError::Empty));
    let query = |stream: &CudaStream| unsafe { sys::cuStreamQuery(stream.cu_stream()) };
    assert_eq!(query(&one), Code::CUDA_ERROR_NOT_READY);
    hold.open();
    assert_eq!(first.recv(), Ok("first"));
    one.synchronize().expect("the end of the stream");
    assert_eq!(query(&one), Code::CUDA_SUCCESS);
}

#[test]
fn an_event_is_done_when_the_work_before_it_is() {
    let context = context();
    let (one, two) = (new_stream(&context), new_stream(&context));
    let (start, end) = (event(), event());
    assert_eq!(unsafe { result::event::query(start) }, Ok(()), "an event never recorded");
    let hold = Hold::in_stream(one.cu_stream());
    record(&one, start);
    assert_eq!(code(unsafe { result::event::query(start) }), Code::CUDA_ERROR_NOT_READY);
    let early = unsafe { result::event::elapsed(start, end) };
    assert_eq!(code(early), Code::CUDA_ERROR_INVALID_HANDLE, "the end was never recorded");
    wait(&two, start).expect("a wait");
    let after = bell_in_stream(two.cu_stream(), "after");
    assert_eq!(after.try_recv(), Err(TryRecvError::Empty));
    hold.open();
    assert_eq!(after.recv(), Ok("after"));
    record(&two, end);
    unsafe { result::event::synchronize(end) }.expect("the event");
    let time = unsafe { result::event::elapsed(start, end) }.expect("a time");
    let back = unsafe { result::event::elapsed(end, start) }.expect("a time");
    assert!(time >= 0.0 && back <= 0.0);
    unsafe { result::event::destroy(start) }.expect("the end of the event");
    let gone = unsafe { result::event::query(start) };
    assert_eq!(code(gone), Code::CUDA_ERROR_INVALID_HANDLE);
}

#[test]
fn the_legacy_stream_waits_for_blocking_streams_and_they_for_it() {
    let context = context();
    context.bind_to_thread().expect("the context");
    let (blocking, free) = (blocking_stream(), new_stream(&context));
    let hold = Hold::in_stream(blocking);
    let legacy = bell_in_stream(std::ptr::null_mut(), "legacy");
    let other = blocking_stream();
    let after = bell_in_stream(other, "after");
    let beside = bell_in_stream(free.cu_stream(), "beside");
    assert_eq!(beside.recv(), Ok("beside"), "a non-blocking stream waits for nobody");
    assert_eq!(legacy.try_recv(), Err(TryRecvError::Empty));
    assert_eq!(after.try_recv(), Err(TryRecvError::Empty));
    hold.open();
    assert_eq!((legacy.recv(), after.recv()), (Ok("legacy"), Ok("after")));
}

#[test]
fn a_thread_s_own_default_stream_is_another_thread_s_not() {
    let context = context();
    let own = context.per_thread_stream();
    let hold = Hold::in_stream(own.cu_stream());
    let theirs = {
        let context = context.clone();
        std::thread::spawn(move || {
            context.bind_to_thread().expect("the context");
            bell_in_stream(context.per_thread_stream().cu_stream(), "theirs").recv()
        })
    };
    assert_eq!(theirs.join().expect("the other thread"), Ok("theirs"));
    hold.open();
    own.synchronize().expect("the end of the stream");
}

#[test]
fn forms_with_a_suffix_mean_the_thread_s_own_default_stream() {
    type Query = unsafe extern "C" fn(sys::CUstream) -> Code;
    let context = context();
    let query = unsafe { library().get::<Query>(b"cuStreamQuery_ptsz\0") }.expect("a function");
    let own = context.per_thread_stream();
    let hold = Hold::in_stream(own.cu_stream());
    assert_eq!(unsafe { query(std::ptr::null_mut()) }, Code::CUDA_ERROR_NOT_READY);
    hold.open();
    own.synchronize().expect("the end of the stream");
    assert_eq!(unsafe { query(std::ptr::null_mut()) }, Code::CUDA_SUCCESS);
}

#[test]
fn a_destroyed_stream_still_does_its_work() {
    let context = context();
    context.bind_to_thread().expect("the context");
    let stream = blocking_stream();
    let hold = Hold::in_stream(stream);
    let bell = bell_in_stream(stream, "done");
    unsafe { result::stream::destroy(stream) }.expect("the end of the stream");
    hold.open();
    context.synchronize().expect("all work");
    assert_eq!(bell.try_recv(), Ok("done"), "the context waits for it as well");
    let gone = unsafe { result::stream::synchronize(stream) };
    assert_eq!(code(gone), Code::CUDA_ERROR_INVALID_HANDLE);
}

#[test]
fn priorities_are_kept_within_their_range() {
    let context = context();
    context.bind_to_thread().expect("the context");
    let (mut least, mut most) = (9, 9);
    let range = unsafe { sys::cuCtxGetStreamPriorityRange(&mut least, &mut most) };
    assert_eq!((range, least), (Code::CUDA_SUCCESS, 0));
    assert!(most < least);
    let (mut stream, mut priority) = (std::ptr::null_mut(), 0);
    let made = unsafe { sys::cuStreamCreateWithPriority(&mut stream, 1, most - 10) };
    assert_eq!(made, Code::CUDA_SUCCESS);
    let asked = unsafe { sys::cuStreamGetPriority(stream, &mut priority) };
    assert_eq!((asked, priority), (Code::CUDA_SUCCESS, most));
}
