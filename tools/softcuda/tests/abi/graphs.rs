//! Capture, what loses it, and the graphs that come of it.

use crate::support::{
    Code, begin_capture, bell_in_stream, blocking_stream, call_in_stream, code, context,
    end_capture, event, new_stream, record, wait,
};
use cudarc::driver::{DevicePtrMut, result, sys};
use std::sync::mpsc::{TryRecvError, channel};

#[test]
fn a_captured_graph_runs_at_each_launch_and_not_before() {
    let context = context();
    let stream = new_stream(&context);
    let mut from = stream.alloc_zeros::<u8>(64).expect("memory");
    let mut to = stream.clone_htod(&[9_u8; 64]).expect("memory");
    begin_capture(stream.cu_stream());
    stream.memcpy_dtod(&from, &mut to).expect("a captured copy");
    stream.memset_zeros(&mut from).expect("a captured memset");
    let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    let asked = unsafe { sys::cuStreamIsCapturing(stream.cu_stream(), &mut status) };
    assert_eq!(asked, Code::CUDA_SUCCESS);
    assert_eq!(status, sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE);
    let graph = stream.end_capture(sys::CUgraphInstantiate_flags_enum(0));
    let graph = graph.expect("a graph").expect("a graph with nodes");
    assert_eq!(stream.clone_dtoh(&to).expect("bytes"), [9; 64], "capture must not run work");
    for value in [1_u8, 2] {
        stream.memcpy_htod(&[value; 64], &mut from).expect("a copy");
        graph.launch().expect("a launch");
        assert_eq!(stream.clone_dtoh(&to).expect("bytes"), [value; 64]);
        assert_eq!(stream.clone_dtoh(&from).expect("bytes"), [0; 64]);
    }
    let (mut count, mut edges) = (0, 0);
    let none = std::ptr::null_mut();
    unsafe {
        assert_eq!(sys::cuGraphGetNodes(graph.cu_graph(), none, &mut count), Code::CUDA_SUCCESS);
        let asked = sys::cuGraphGetEdges_v2(graph.cu_graph(), none, none, none.cast(), &mut edges);
        assert_eq!(asked, Code::CUDA_SUCCESS);
    }
    assert_eq!((count, edges), (2, 1));
}

#[test]
fn capture_follows_events_into_other_streams_and_back() {
    let context = context();
    let (home, side) = (new_stream(&context), new_stream(&context));
    let (fork, join) = (event(), event());
    let (sender, bell) = channel();
    begin_capture(home.cu_stream());
    record(&home, fork);
    wait(&side, fork).expect("a fork");
    call_in_stream(side.cu_stream(), move || {
        let _ = sender.send(());
    });
    record(&side, join);
    wait(&home, join).expect("a join");
    let graph = end_capture(&home).expect("a graph");
    let mut executable = std::ptr::null_mut();
    unsafe {
        let made = sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0);
        assert_eq!(made, Code::CUDA_SUCCESS);
        assert_eq!(bell.try_recv(), Err(TryRecvError::Empty));
        result::graph::launch(executable, home.cu_stream()).expect("a launch");
    }
    assert_eq!(bell.recv(), Ok(()));
    side.synchronize().expect("the side stream does real work again");
}

#[test]
fn what_waits_for_a_capturing_stream_loses_the_capture() {
    let context = context();
    let stream = new_stream(&context);
    begin_capture(stream.cu_stream());
    assert_eq!(code(stream.synchronize()), Code::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    let asked = unsafe { sys::cuStreamIsCapturing(stream.cu_stream(), &mut status) };
    assert_eq!(asked, Code::CUDA_SUCCESS);
    assert_eq!(status, sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_INVALIDATED);
    assert_eq!(code(end_capture(&stream)), Code::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    stream.synchronize().expect("the stream does real work again");
    assert_eq!(code(end_capture(&stream)), Code::CUDA_ERROR_ILLEGAL_STATE);
}

#[test]
fn allocation_is_prohibited_while_the_thread_captures_unless_relaxed() {
    let context = context();
    let stream = new_stream(&context);
    begin_capture(stream.cu_stream());
    let refused = unsafe { result::malloc_sync(16) };
    assert_eq!(code(refused), Code::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    assert_eq!(code(end_capture(&stream)), Code::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    let relaxed = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    unsafe {
        result::stream::begin_capture(stream.cu_stream(), relaxed).expect("a capture");
        let memory = result::malloc_sync(16).expect("memory during a relaxed capture");
        assert!(end_capture(&stream).is_ok());
        result::free_sync(memory).expect("a free");
    }
}

#[test]
fn a_captured_event_cannot_be_asked() {
    let context = context();
    let stream = new_stream(&context);
    let mark = event();
    begin_capture(stream.cu_stream());
    record(&stream, mark);
    let asked = unsafe { result::event::query(mark) };
    assert_eq!(code(asked), Code::CUDA_ERROR_CAPTURED_EVENT);
    assert_eq!(code(end_capture(&stream)), Code::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
}

#[test]
fn a_capture_does_not_depend_on_work_outside() {
    let context = context();
    let (one, two) = (new_stream(&context), new_stream(&context));
    let outside = event();
    record(&two, outside);
    begin_capture(one.cu_stream());
    assert_eq!(code(wait(&one, outside)), Code::CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    assert_eq!(code(end_capture(&one)), Code::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
}

#[test]
fn two_captures_do_not_merge() {
    let context = context();
    let (one, two) = (new_stream(&context), new_stream(&context));
    let mark = event();
    begin_capture(one.cu_stream());
    begin_capture(two.cu_stream());
    record(&one, mark);
    assert_eq!(code(wait(&two, mark)), Code::CUDA_ERROR_STREAM_CAPTURE_MERGE);
    for stream in [&one, &two] {
        assert_eq!(code(end_capture(stream)), Code::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    }
}

#[test]
fn a_capture_ends_where_it_began_with_all_forks_joined() {
    let context = context();
    let (home, side) = (new_stream(&context), new_stream(&context));
    let fork = event();
    begin_capture(home.cu_stream());
    record(&home, fork);
    wait(&side, fork).expect("a fork");
    bell_in_stream(side.cu_stream(), "never");
    assert_eq!(code(end_capture(&home)), Code::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);

    begin_capture(home.cu_stream());
    record(&home, fork);
    wait(&side, fork).expect("a fork");
    assert_eq!(code(end_capture(&side)), Code::CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
    assert_eq!(code(end_capture(&home)), Code::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
}

#[test]
fn the_legacy_stream_takes_no_part_in_a_capture() {
    let context = context();
    context.bind_to_thread().expect("the context");
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    let legacy = std::ptr::null_mut();
    let refused = unsafe { result::stream::begin_capture(legacy, mode) };
    assert_eq!(code(refused), Code::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    let blocking = blocking_stream();
    begin_capture(blocking);
    let mark = event();
    let implicit = unsafe { result::event::record(mark, legacy) };
    assert_eq!(code(implicit), Code::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    let ended = unsafe { result::stream::end_capture(blocking) };
    assert_eq!(code(ended), Code::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
}

#[test]
fn an_instance_takes_the_work_of_a_graph_of_the_same_shape() {
    let context = context();
    let stream = new_stream(&context);
    let mut memory = stream.alloc_zeros::<u8>(8).expect("memory");
    let raw = stream.cu_stream();
    let (address, _keep) = memory.device_ptr_mut(&stream);
    let capture = |values: &[u8]| {
        begin_capture(raw);
        for value in values {
            unsafe { result::memset_d8_async(address, *value, 8, raw) }.expect("a memset");
        }
        end_capture(&stream).expect("a graph")
    };
    let (old, new, longer) = (capture(&[1]), capture(&[2]), capture(&[3, 4]));
    let mut back = [0_u8; 8];
    unsafe {
        let (mut executable, mut info) = (std::ptr::null_mut(), std::mem::zeroed());
        let made = sys::cuGraphInstantiateWithFlags(&mut executable, old, 0);
        assert_eq!(made, Code::CUDA_SUCCESS);
        let updated = sys::cuGraphExecUpdate_v2(executable, new, &mut info);
        assert_eq!(updated, Code::CUDA_SUCCESS);
        let refused = sys::cuGraphExecUpdate_v2(executable, longer, &mut info);
        assert_eq!(refused, Code::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE);
        result::graph::launch(executable, raw).expect("a launch");
        result::memcpy_dtoh_async(&mut back, address, raw).expect("a copy back");
        for graph in [old, new, longer] {
            result::graph::destroy(graph).expect("the end of a graph");
        }
        result::graph::exec_destroy(executable).expect("the end of the instance");
    }
    assert_eq!(back, [2; 8]);
}

#[test]
fn memory_taken_in_a_capture_belongs_to_the_graph() {
    let context = context();
    let stream = new_stream(&context);
    let raw = stream.cu_stream();
    unsafe {
        let outside = result::malloc_async(raw, 64).expect("memory");
        begin_capture(raw);
        let inside = result::malloc_async(raw, 64).expect("memory of the graph");
        result::memset_d8_async(inside, 5, 64, raw).expect("a memset");
        let foreign = result::free_async(outside, raw);
        assert_eq!(code(foreign), Code::CUDA_ERROR_INVALID_VALUE);
        result::memcpy_dtod_async(outside, inside, 64, raw).expect("a copy");
        result::free_async(inside, raw).expect("the free of the graph's memory");
        let graph = end_capture(&stream).expect("a graph");
        let mut executable = std::ptr::null_mut();
        let made = sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0);
        assert_eq!(made, Code::CUDA_SUCCESS);
        result::graph::launch(executable, raw).expect("a launch");
        let mut back = [0_u8; 64];
        result::memcpy_dtoh_async(&mut back, outside, raw).expect("a copy back");
        assert_eq!(back, [5; 64]);
        result::graph::exec_destroy(executable).expect("the end of the instance");
        result::graph::destroy(graph).expect("the end of the graph");
    }
}

#[test]
fn nodes_say_what_they_are_and_an_event_can_be_recorded_by_one() {
    let context = context();
    let stream = new_stream(&context);
    let raw = stream.cu_stream();
    let mut memory = stream.alloc_zeros::<u8>(8).expect("memory");
    let (address, _keep) = memory.device_ptr_mut(&stream);
    let mark = event();
    begin_capture(raw);
    unsafe {
        result::memset_d8_async(address, 1, 8, raw).expect("a memset");
        result::memcpy_dtod_async(address, address + 4, 4, raw).expect("a copy");
        assert_eq!(sys::cuEventRecordWithFlags(mark, raw, 1), Code::CUDA_SUCCESS);
    }
    let graph = end_capture(&stream).expect("a graph");
    let mut clone = std::ptr::null_mut();
    assert_eq!(unsafe { sys::cuGraphClone(&mut clone, graph) }, Code::CUDA_SUCCESS);
    unsafe { result::graph::destroy(graph) }.expect("the end of the first graph");
    let (mut nodes, mut count) = ([std::ptr::null_mut(); 5], 5);
    let asked = unsafe { sys::cuGraphGetNodes(clone, nodes.as_mut_ptr(), &mut count) };
    assert_eq!((asked, count), (Code::CUDA_SUCCESS, 3));
    let kinds = nodes[..3].iter().map(|node| {
        let mut kind = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
        assert_eq!(unsafe { sys::cuGraphNodeGetType(*node, &mut kind) }, Code::CUDA_SUCCESS);
        kind as u32
    });
    assert_eq!(kinds.collect::<Vec<_>>(), [2, 1, 7], "memset, memcpy, event record");
    let mut executable = std::ptr::null_mut();
    unsafe {
        let made = sys::cuGraphInstantiateWithFlags(&mut executable, clone, 0);
        assert_eq!(made, Code::CUDA_SUCCESS);
        result::graph::launch(executable, raw).expect("a launch");
        stream.synchronize().expect("the end of the stream");
        let other = event();
        record(&stream, other);
        result::event::synchronize(other).expect("the other event");
        assert!(result::event::elapsed(mark, other).expect("a time") >= 0.0);
    }
}
