//! Memory, pools, modules that are refused, and faults that stay.

use crate::support::{Code, Hold, code, context};
use cudarc::driver::{DevicePtrMut, result, sys};
use std::ffi::c_void;

#[test]
fn bytes_go_to_the_device_around_it_and_back() {
    let context = context();
    let stream = context.new_stream().expect("a stream");
    let host: Vec<u32> = (0..100_000).map(|x| x * 3 + 1).collect();
    let there = stream.clone_htod(&host).expect("a copy to the device");
    let mut twin = stream.alloc_zeros::<u32>(host.len()).expect("zeros");
    assert_eq!(stream.clone_dtoh(&twin).expect("a copy back"), vec![0; host.len()]);
    stream.memcpy_dtod(&there, &mut twin).expect("a copy on the device");
    assert_eq!(stream.clone_dtoh(&twin).expect("a copy back"), host);
    let middle = stream.clone_dtoh(&there.slice(10..20)).expect("a part");
    assert_eq!(middle, host[10..20]);
}

#[test]
fn memsets_write_values_of_each_width_and_rows() {
    let context = context();
    context.bind_to_thread().expect("the context");
    let memory = unsafe { result::malloc_sync(64) }.expect("memory");
    let mut back = [0_u8; 64];
    unsafe {
        assert_eq!(sys::cuMemsetD8_v2(memory, 7, 64), Code::CUDA_SUCCESS);
        assert_eq!(sys::cuMemsetD16_v2(memory + 2, 0x0102, 2), Code::CUDA_SUCCESS);
        assert_eq!(sys::cuMemsetD32_v2(memory + 8, 0xa0b0_c0d0, 1), Code::CUDA_SUCCESS);
        assert_eq!(sys::cuMemsetD2D8_v2(memory + 32, 16, 1, 3, 2), Code::CUDA_SUCCESS);
        assert_eq!(sys::cuMemsetD32_v2(memory + 1, 0, 1), Code::CUDA_ERROR_INVALID_VALUE);
        result::memcpy_dtoh_sync(&mut back, memory).expect("a copy back");
        result::free_sync(memory).expect("a free");
    }
    assert_eq!(back[..12], [7, 7, 2, 1, 2, 1, 7, 7, 0xd0, 0xc0, 0xb0, 0xa0]);
    assert_eq!((&back[32..36], &back[48..52]), (&[1, 1, 1, 7][..], &[1, 1, 1, 7][..]));
}

#[test]
fn more_memory_than_there_is_is_refused_and_nothing_is_lost() {
    let context = context();
    let total = context.total_mem().expect("the size");
    context.bind_to_thread().expect("the context");
    let refused = unsafe { result::malloc_sync(total + 1) };
    assert_eq!(code(refused), Code::CUDA_ERROR_OUT_OF_MEMORY);
    let stream = context.new_stream().expect("a stream");
    let refused = unsafe { stream.alloc::<u8>(total + 1) };
    assert_eq!(code(refused), Code::CUDA_ERROR_OUT_OF_MEMORY);
    assert!(stream.alloc_zeros::<u8>(16).is_ok(), "the context goes on");
}

#[test]
fn addresses_that_are_nobody_s_are_refused() {
    let context = context();
    context.bind_to_thread().expect("the context");
    unsafe {
        let memory = result::malloc_sync(256).expect("memory");
        let beyond = result::memcpy_htod_sync(memory + 200, &[0_u8; 57]);
        assert_eq!(code(beyond), Code::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(code(result::memset_d8_sync(16, 0, 1)), Code::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(code(result::free_sync(memory + 1)), Code::CUDA_ERROR_INVALID_VALUE);
        result::free_sync(memory).expect("the one free");
        assert_eq!(code(result::free_sync(memory)), Code::CUDA_ERROR_INVALID_VALUE);
        let stream = context.new_stream().expect("a stream");
        let memory = result::malloc_async(stream.cu_stream(), 256).expect("memory");
        result::free_async(memory, stream.cu_stream()).expect("the one free");
        let twice = result::free_async(memory, stream.cu_stream());
        assert_eq!(code(twice), Code::CUDA_ERROR_INVALID_VALUE);
    }
}

#[test]
fn pinned_memory_is_known_and_freed_once() {
    let context = context();
    context.bind_to_thread().expect("the context");
    unsafe {
        let host = result::malloc_host(4096, 0).expect("pinned memory");
        let mut kind = 0_u32;
        let attribute = sys::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
        let out = std::ptr::from_mut(&mut kind).cast();
        let asked = sys::cuPointerGetAttribute(out, attribute, host as u64 + 100);
        assert_eq!((asked, kind), (Code::CUDA_SUCCESS, 1));
        result::free_host(host).expect("the one free");
        assert_eq!(code(result::free_host(host)), Code::CUDA_ERROR_INVALID_VALUE);

        let mut own = vec![0_u8; 100];
        let own = own.as_mut_ptr().cast();
        assert_eq!(sys::cuMemHostRegister_v2(own, 100, 0), Code::CUDA_SUCCESS);
        let twice = sys::cuMemHostRegister_v2(own, 100, 0);
        assert_eq!(twice, Code::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
        assert_eq!(sys::cuMemHostUnregister(own), Code::CUDA_SUCCESS);
        let twice = sys::cuMemHostUnregister(own);
        assert_eq!(twice, Code::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
    }
}

#[test]
fn a_copy_takes_pageable_bytes_at_once_and_pinned_ones_when_it_runs() {
    let context = context();
    let stream = context.new_stream().expect("a stream");
    let raw = stream.cu_stream();
    let mut there = stream.alloc_zeros::<u8>(2).expect("memory");
    let (address, _keep) = there.device_ptr_mut(&stream);
    let mut pageable = [1_u8];
    let pinned = unsafe { result::malloc_host(1, 0) }.expect("pinned memory").cast::<u8>();
    let mut back = [0_u8; 2];
    unsafe {
        pinned.write(2);
        let hold = Hold::in_stream(raw);
        result::memcpy_htod_async(address, &pageable, raw).expect("a copy");
        let range = std::slice::from_raw_parts(pinned, 1);
        result::memcpy_htod_async(address + 1, range, raw).expect("a copy");
        pageable[0] = 10;
        pinned.write(20);
        hold.open();
        result::memcpy_dtoh_async(&mut back, address, raw).expect("a copy back");
        result::free_host(pinned.cast()).expect("the free");
    }
    assert_eq!((back, pageable), ([1, 20], [10]));
}

/// A pool of the test's own, so that other tests do not move its numbers.
fn pool() -> sys::CUmemoryPool {
    let mut pool = std::ptr::null_mut();
    // SAFETY: the structure is plain data, and zero is a value of each of its fields.
    let mut properties: sys::CUmemPoolProps = unsafe { std::mem::zeroed() };
    properties.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    let made = unsafe { sys::cuMemPoolCreate(&mut pool, &properties) };
    assert_eq!(made, Code::CUDA_SUCCESS);
    pool
}

#[test]
fn a_pool_counts_what_it_holds_uses_and_ever_used() {
    use sys::CUmemPool_attribute as Attribute;
    let context = context();
    let stream = context.new_stream().expect("a stream");
    let pool = pool();
    let number = |attribute| {
        let mut value = 0_u64;
        let out = std::ptr::from_mut(&mut value).cast();
        let asked = unsafe { sys::cuMemPoolGetAttribute(pool, attribute, out) };
        assert_eq!(asked, Code::CUDA_SUCCESS);
        value
    };
    let mut memory = 0;
    let stream = stream.cu_stream();
    let taken = unsafe { sys::cuMemAllocFromPoolAsync(&mut memory, 1000, pool, stream) };
    assert_eq!(taken, Code::CUDA_SUCCESS);
    assert_eq!(number(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT), 1024);
    assert!(number(Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT) >= 1024);
    unsafe { result::free_async(memory, stream) }.expect("a free");
    unsafe { result::stream::synchronize(stream) }.expect("the end of the stream");
    assert_eq!(number(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT), 0);
    assert_eq!(number(Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH), 1024);
    assert_eq!(number(Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT), 0);
    let high = Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    let mut zero = 0_u64;
    let zero = std::ptr::from_mut(&mut zero).cast();
    assert_eq!(unsafe { sys::cuMemPoolSetAttribute(pool, high, zero) }, Code::CUDA_SUCCESS);
    assert_eq!(number(high), 0);
    assert_eq!(unsafe { sys::cuMemPoolDestroy(pool) }, Code::CUDA_SUCCESS);
    assert_eq!(
        unsafe { sys::cuMemPoolTrimTo(pool, 0) },
        Code::CUDA_ERROR_INVALID_HANDLE,
        "a pool that is gone"
    );
}

/// Three rows of four bytes from nowhere to nowhere.
fn rows(from: sys::CUmemorytype, to: sys::CUmemorytype) -> sys::CUDA_MEMCPY2D {
    sys::CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: from,
        srcHost: std::ptr::null(),
        srcDevice: 0,
        srcArray: std::ptr::null_mut(),
        srcPitch: 0,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: to,
        dstHost: std::ptr::null_mut(),
        dstDevice: 0,
        dstArray: std::ptr::null_mut(),
        dstPitch: 0,
        WidthInBytes: 4,
        Height: 3,
    }
}

#[test]
fn rows_are_copied_between_pitches() {
    let context = context();
    context.bind_to_thread().expect("the context");
    let host: Vec<u8> = (0..12).collect();
    let mut back = [0xff_u8; 12];
    unsafe {
        let (mut memory, mut pitch) = (0, 0);
        let taken = sys::cuMemAllocPitch_v2(&mut memory, &mut pitch, 4, 3, 4);
        assert_eq!((taken, pitch), (Code::CUDA_SUCCESS, 512));
        let there = sys::CUDA_MEMCPY2D {
            srcHost: host.as_ptr().cast(),
            dstDevice: memory,
            dstPitch: pitch,
            ..rows(sys::CUmemorytype::CU_MEMORYTYPE_HOST, sys::CUmemorytype::CU_MEMORYTYPE_DEVICE)
        };
        assert_eq!(sys::cuMemcpy2D_v2(&there), Code::CUDA_SUCCESS);
        let here = sys::CUDA_MEMCPY2D {
            srcDevice: memory,
            srcPitch: pitch,
            srcXInBytes: 1,
            srcY: 1,
            dstHost: back.as_mut_ptr().cast(),
            dstPitch: 6,
            WidthInBytes: 3,
            Height: 2,
            ..rows(sys::CUmemorytype::CU_MEMORYTYPE_DEVICE, sys::CUmemorytype::CU_MEMORYTYPE_HOST)
        };
        assert_eq!(sys::cuMemcpy2D_v2(&here), Code::CUDA_SUCCESS);
        result::free_sync(memory).expect("a free");
    }
    assert_eq!(back, [5, 6, 7, 255, 255, 255, 9, 10, 11, 255, 255, 255]);
}

#[test]
fn an_address_on_the_device_is_known_with_its_range() {
    use sys::CUpointer_attribute as Attribute;
    let context = context();
    context.bind_to_thread().expect("the context");
    let memory = unsafe { result::malloc_sync(100) }.expect("memory");
    let ask = |attribute, address| {
        let mut value = 0_u64;
        let out = std::ptr::from_mut(&mut value).cast();
        let asked = unsafe { sys::cuPointerGetAttribute(out, attribute, address) };
        (asked, value)
    };
    let start = Attribute::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR;
    assert_eq!(ask(start, memory + 99), (Code::CUDA_SUCCESS, memory));
    assert_eq!(ask(start, memory + 100).0, Code::CUDA_ERROR_INVALID_VALUE);
    let size = Attribute::CU_POINTER_ATTRIBUTE_RANGE_SIZE;
    assert_eq!(ask(size, memory), (Code::CUDA_SUCCESS, 100));
    let kind = Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
    assert_eq!(ask(kind, memory), (Code::CUDA_SUCCESS, 2));
    unsafe { result::free_sync(memory) }.expect("a free");
    assert_eq!(ask(kind, memory).0, Code::CUDA_ERROR_INVALID_VALUE, "memory that is gone");
}

#[test]
fn images_that_are_not_ptx_are_refused_by_kind() {
    use cudarc::nvrtc::Ptx;
    let context = context();
    let load = |image: &[u8]| code(context.load_module(Ptx::from_binary(image.to_vec())));
    assert_eq!(load(b"\x7fELF\x02\x01\x01\0"), Code::CUDA_ERROR_NO_BINARY_FOR_GPU);
    assert_eq!(load(b"\x50\xed\x55\xba\x01\0"), Code::CUDA_ERROR_NO_BINARY_FOR_GPU);
    assert_eq!(load(b"good morning\0"), Code::CUDA_ERROR_INVALID_IMAGE);
    let missing = context.load_module(Ptx::from_file("/no/such/file.ptx"));
    assert_eq!(code(missing), Code::CUDA_ERROR_FILE_NOT_FOUND);
}

#[test]
fn a_module_s_error_log_names_the_line() {
    use sys::CUjit_option as Option;
    let context = context();
    context.bind_to_thread().expect("the context");
    let text = c".version 8.0\n.target sm_80\n.address_size 64\n\nthis is no directive\n";
    let mut log = [0_u8; 512];
    let mut options = [Option::CU_JIT_ERROR_LOG_BUFFER, Option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut::<c_void>(512)];
    let mut module = std::ptr::null_mut();
    let answer = unsafe {
        sys::cuModuleLoadDataEx(
            &mut module,
            text.as_ptr().cast(),
            2,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    assert_eq!(answer, Code::CUDA_ERROR_INVALID_PTX);
    let written = values[1].addr();
    let log = std::str::from_utf8(&log[..written]).expect("text in the log");
    assert!(log.contains("line"), "{log:?}");
}

#[test]
fn a_fault_stays_in_its_context_and_every_later_call_there_fails_with_it() {
    let (bad, good) = (context(), context());
    let stream = bad.new_stream().expect("a stream");
    let raw = stream.cu_stream();
    bad.bind_to_thread().expect("the context");
    unsafe {
        let memory = result::malloc_async(raw, 1024).expect("memory");
        let twin = result::malloc_async(raw, 1024).expect("memory");
        let hold = Hold::in_stream(raw);
        result::free_async(memory, raw).expect("a free");
        // The address is still good now, and no longer when the stream comes to the copy.
        result::memcpy_dtod_async(twin, memory, 1024, raw).expect("a copy that will fail");
        hold.open();
        let illegal = Code::CUDA_ERROR_ILLEGAL_ADDRESS;
        assert_eq!(code(result::stream::synchronize(raw)), illegal);
        assert_eq!(code(result::malloc_sync(16)), illegal);
        assert_eq!(code(result::mem_get_info()), illegal);
        assert_eq!(code(result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)), illegal);
        assert_eq!(code(result::ctx::synchronize()), illegal);
    }
    let stream = good.new_stream().expect("the other context's stream");
    assert!(stream.alloc_zeros::<u8>(16).is_ok());
    assert_eq!(stream.synchronize(), Ok(()));
}
