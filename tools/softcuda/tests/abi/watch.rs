//! What tests may ask beyond the driver's interface: counts and schedules of a thread's launches.

use crate::kernels::{blocks, launch, scale};
use crate::support::{context, library};
use cudarc::driver::DevicePtr;
use softcuda::count::Counts;

fn count(on: bool) {
    let found = unsafe { library().get::<extern "C" fn(bool)>(b"cuxCountLaunches\0") };
    found.expect("cuxCountLaunches")(on);
}

/// The counts of the calling thread's launches.
fn counts() -> Vec<Counts> {
    type Ask = unsafe extern "C" fn(*mut u8, usize) -> usize;
    let ask = unsafe { library().get::<Ask>(b"cuxLaunchCounts\0") }.expect("cuxLaunchCounts");
    let mut text = vec![0; unsafe { ask(std::ptr::null_mut(), 0) }];
    assert_eq!(unsafe { ask(text.as_mut_ptr(), text.len()) }, text.len());
    let text = String::from_utf8(text).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn a_thread_hears_of_its_own_launches_only() {
    let context = context();
    let hear = |numbers: u32| {
        context.bind_to_thread().expect("the context");
        let stream = context.new_stream().expect("a stream");
        let kernel = scale(&context);
        let memory = stream.clone_htod(&[1.0_f32; 256]).expect("memory");
        let (address, _keep) = memory.device_ptr(&stream);
        count(true);
        launch(&stream, &kernel, (address, 2.0, numbers), blocks(1, 256, 0)).expect("a launch");
        launch(&stream, &kernel, (address, 2.0, 1), blocks(1, 256, 0)).expect("a launch");
        stream.synchronize().expect("the end of the launches");
        let heard: Vec<u64> = counts().iter().map(|c| c.scalar_flops).collect();
        assert_eq!(heard, [u64::from(numbers), 1]);
        count(false);
        assert!(counts().is_empty());
    };
    let hear = &hear;
    std::thread::scope(|threads| {
        for numbers in [8, 64, 256] {
            threads.spawn(move || hear(numbers));
        }
    });
}

#[test]
fn a_schedule_changes_no_count() {
    type Set = extern "C" fn(u64);
    let set = unsafe { library().get::<Set>(b"softcudaSchedule\0") }.expect("softcudaSchedule");
    let context = context();
    let stream = context.new_stream().expect("a stream");
    let kernel = scale(&context);
    let memory = stream.clone_htod(&[1.0_f32; 4096]).expect("memory");
    let (address, _keep) = memory.device_ptr(&stream);
    count(true);
    for seed in [0, 7] {
        set(seed);
        launch(&stream, &kernel, (address, 2.0, 4000), blocks(16, 256, 0)).expect("a launch");
    }
    set(0);
    stream.synchronize().expect("the end of the launches");
    let heard = counts();
    assert_eq!(heard[0], heard[1]);
    let Counts { global_reads, global_read_sectors, unique_write_sectors, .. } = heard[0];
    assert_eq!((global_reads, global_read_sectors, unique_write_sectors), (125, 500, 500));
}
