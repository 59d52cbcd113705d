//! Brings parts of mapped files into memory before they are needed, in the order of the files, and lets them go.

use std::io;

use bytes::Bytes;

/// Bytes that are asked for at a time.
const STEP: usize = 16 << 20;

/// Smallest hole between two ranges that is left out.
pub const HOLE: u64 = 64 << 10;

/// A range of a mapped tensor.
pub struct Mapped {
    /// The tensor.
    pub name: String,
    /// The bytes.
    pub bytes: Bytes,
}

/// Joins ranges whose holes are not worth a seek; they come in order.
pub fn joined(ranges: impl IntoIterator<Item = std::ops::Range<u64>>) -> Vec<std::ops::Range<u64>> {
    let mut joined: Vec<std::ops::Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start < last.end + HOLE => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// Reads all `parts`, telling `progress` after each step how many bytes are there, which says whether to go on.
///
/// # Errors
/// The tensor that could not be read, and why.
pub fn read(mut parts: Vec<Mapped>, progress: &dyn Fn(u64) -> bool) -> Result<(), (String, io::Error)> {
    parts.sort_by_key(|part| part.bytes.as_ptr());
    let steps = |part: &Mapped| {
        let bytes = part.bytes.clone();
        (0..bytes.len()).step_by(STEP).map(move |at| bytes.slice(at..(at + STEP).min(bytes.len())))
    };
    let mut ahead = parts.iter().flat_map(steps);
    ahead.next();
    let mut done = 0;
    for part in &parts {
        for step in steps(part) {
            // the next step is on its way while this one is waited for
            ahead.next().iter().for_each(|next| announce(next));
            fetch(&step).map_err(|error| (part.name.clone(), error))?;
            done += step.len() as u64;
            if !progress(done) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Gives the memory back that whole pages of `bytes`, which must be of a mapped file, take of this process. They are read
/// again if somebody looks at them after all.
pub fn let_go(bytes: &Bytes) {
    let page = rustix::param::page_size();
    let start = bytes.as_ptr().addr().next_multiple_of(page) - bytes.as_ptr().addr();
    let Some(len) = bytes.len().checked_sub(start).map(|len| len / page * page).filter(|len| *len > 0) else { return };
    // SAFETY: the pages are of a private mapping that nobody writes, so they have in the file what they have here
    unsafe { libc::madvise(bytes.as_ptr().wrapping_add(start).cast_mut().cast(), len, libc::MADV_DONTNEED) };
}

/// Where the pages of `bytes` start, and how long they are.
#[cfg(target_os = "linux")]
fn pages(bytes: &[u8]) -> (*mut libc::c_void, usize) {
    // SAFETY: asks for a number
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    let into = bytes.as_ptr().addr() % page;
    (bytes.as_ptr().wrapping_sub(into).cast_mut().cast(), bytes.len() + into)
}

#[cfg(target_os = "linux")]
fn announce(bytes: &[u8]) {
    let (start, len) = pages(bytes);
    // SAFETY: the pages are mapped as long as `bytes` lives; the advice changes nothing that is seen
    unsafe { libc::madvise(start, len, libc::MADV_WILLNEED) };
}

#[cfg(target_os = "linux")]
fn fetch(bytes: &[u8]) -> io::Result<()> {
    let (start, len) = pages(bytes);
    // SAFETY: as in `announce`
    if unsafe { libc::madvise(start, len, libc::MADV_POPULATE_READ) } == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        // Linux before 5.14
        error if error.raw_os_error() == Some(libc::EINVAL) => {
            touch(bytes);
            Ok(())
        }
        error => Err(error),
    }
}

#[cfg(not(target_os = "linux"))]
fn announce(_bytes: &[u8]) {}

#[cfg(not(target_os = "linux"))]
fn fetch(bytes: &[u8]) -> io::Result<()> {
    touch(bytes);
    Ok(())
}

/// Reads a byte of every page.
fn touch(bytes: &[u8]) {
    bytes.iter().step_by(4096).for_each(|byte| {
        std::hint::black_box(*byte);
    });
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn small_holes_are_read_over() {
        assert_eq!(joined([0..10, 20..30, (HOLE + 40)..(HOLE + 50)]), vec![0..30, (HOLE + 40)..(HOLE + 50)]);
        assert_eq!(joined([0..10, 5..7]), vec![0..10; 1]);
    }

    /// Bytes of memory that the mapping at `start` takes of this process.
    #[cfg(target_os = "linux")]
    fn resident(start: *const u8) -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (_, own) = maps.split_once(&format!("{:x}-", start.addr())).unwrap();
        let (_, rss) = own.split_once("Rss:").unwrap();
        rss.split_whitespace().next().unwrap().parse::<usize>().unwrap() << 10
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_let_go_takes_no_memory_until_it_is_looked_at() {
        let (mut file, page) = (tempfile::tempfile().unwrap(), rustix::param::page_size());
        let written: Vec<u8> = (0..64 * page).map(|i| (i / 7) as u8).collect();
        io::Write::write_all(&mut file, &written).unwrap();
        // SAFETY: nobody else has the file
        let map = Bytes::from_owner(unsafe { memmap2::Mmap::map(&file) }.unwrap());
        touch(&map);
        assert_eq!(resident(map.as_ptr()), 64 * page);
        let_go(&map.slice(10..page));
        let_go(&map.slice(page + 1..2 * page + 5));
        assert_eq!(resident(map.as_ptr()), 64 * page);
        // the page at either end belongs to others, too
        let_go(&map.slice(1..64 * page - 1));
        assert_eq!(resident(map.as_ptr()), 2 * page);
        assert!(map == written);
    }

    #[test]
    fn everything_is_read_in_steps() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(3 * STEP as u64 + 5).unwrap();
        // SAFETY: nobody else has the file
        let map = Bytes::from_owner(unsafe { memmap2::Mmap::map(&file) }.unwrap());
        let part = |range: std::ops::Range<usize>| Mapped { name: "a".to_owned(), bytes: map.slice(range) };
        let told = RefCell::new(Vec::new());
        read(vec![part(2 * STEP + 1..3 * STEP + 5), part(3..STEP + 4)], &|done| {
            told.borrow_mut().push(done);
            true
        })
        .unwrap();
        let step = STEP as u64;
        assert_eq!(told.into_inner(), [step, step + 1, 2 * step + 1, 2 * step + 5]);
    }
}
