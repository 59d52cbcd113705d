//! The GPU of a Mac: all kernels compile for it, and it shares the host's memory. Where there is none that counts as passed.

use std::time::Duration;

use bytes::Bytes;
use tbshard::gpu::Device;
use tbshard::gpu::apple::{Apple, system};

/// A machine that rents out its CPU alone has none.
fn gpu() -> Option<Apple> {
    match system() {
        Ok(gpu) => Some(gpu),
        Err(error) if error.to_string().contains("shows this process no GPU") => {
            println!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn every_kernel_compiles() {
    let Some(gpu) = gpu() else { return };
    let kernels = gpu.kernels();
    println!("{}: {} kernels, {} bytes of working set", gpu.name(), kernels.len(), gpu.working_set());
    assert!(!kernels.is_empty());
    for name in &kernels {
        assert_eq!(gpu.kernel(name).unwrap(), gpu.kernel(name).unwrap());
    }
    assert!(gpu.kernel("no_such_kernel").unwrap_err().to_string().contains("no_such_kernel"));
}

#[test]
fn buffers_are_pages_that_the_host_sees() {
    let Some(gpu) = gpu() else { return };
    let page = rustix::param::page_size();
    for bytes in [0, 1, page, page + 1] {
        let buffer = gpu.allocate(bytes).unwrap();
        assert_eq!((buffer.len(), buffer.start().as_ptr().addr() % page), (bytes, 0));
        assert_ne!(buffer.address(), 0);
    }
    let bytes = Bytes::from((0..=255).cycle().take(3 * page).collect::<Vec<u8>>()).slice(page / 2 + 1..2 * page);
    let (buffer, start) = gpu.adopt(&bytes).unwrap();
    assert_eq!(buffer.start().as_ptr().wrapping_add(start).cast_const(), bytes.as_ptr());
    assert!(start + bytes.len() <= buffer.len() && buffer.len() % page == 0);
    let filled = gpu.constant(page + 1, &mut |to| to.fill(7)).unwrap();
    // SAFETY: so many bytes, which nobody writes
    let seen = unsafe { std::slice::from_raw_parts(filled.start().as_ptr(), filled.len()) };
    assert_eq!(seen, vec![7; page + 1]);
}

#[test]
fn nothing_runs_at_once() {
    let Some(gpu) = gpu() else { return };
    drop(gpu.commands().unwrap());
    let first = gpu.commands().unwrap().commit().unwrap();
    let mut second = gpu.commands().unwrap();
    second.barrier();
    second.commit().unwrap().wait().unwrap();
    first.wait().unwrap();
    assert!(first.done());
}

#[test]
fn kernels_that_meet_the_host_compile() {
    let Some(gpu) = gpu() else { return };
    for name in ["fence_publish", "fence_signal", "fence_wait", "fence_take"] {
        gpu.kernel(name).unwrap();
    }
}

#[test]
fn commands_raise_an_event() {
    let Some(gpu) = gpu() else { return };
    let event = gpu.event().unwrap();
    assert!(!event.wait(1, Duration::from_millis(10)));
    let mut commands = gpu.commands().unwrap();
    commands.signal(&event, 7).unwrap();
    let pending = commands.commit().unwrap();
    assert!(event.wait(7, Duration::from_secs(5)) && event.wait(3, Duration::ZERO));
    assert!(!event.wait(8, Duration::from_millis(10)));
    pending.wait().unwrap();
}
