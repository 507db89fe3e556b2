//! Reading and writing large amounts without taking the page cache away from whoever else needs it.
//!
//! Linux 6.14 has uncached buffered I/O (`RWF_DONTCACHE`): pages that were not there before go away when they have been read
//! or written back, and those that were there stay. So a backup does not push a live database's pages out of memory, and a
//! target that writes terabytes reuses a few pages instead of filling its memory first, which also is several times faster
//! where fresh memory is slow to come by. Where kernel or file system do not have it, the calls are ordinary ones, and
//! readers ask for the pages not to be kept ([`read_once`]): `POSIX_FADV_DONTNEED` is not used, because it would throw out
//! pages of the live server as well.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    fs::{Advice, OFlags},
    io::{Errno, ReadWriteFlags},
};

/// `RWF_DONTCACHE` of linux/fs.h; rustix does not name it yet.
const DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// Whether the kernel has been found not to know the flag. A file system may refuse it while others take it, so only
/// the file at hand is tried again without; this saves the attempts where the kernel is too old for all of them.
static UNKNOWN_TO_KERNEL: AtomicBool = AtomicBool::new(false);

/// Kernels before 6.14 refuse an unknown flag with `EOPNOTSUPP`, as do file systems that cannot do it.
fn refused(error: Errno) -> bool {
    error == Errno::OPNOTSUPP || error == Errno::INVAL
}

fn flags(enabled: bool) -> ReadWriteFlags {
    if enabled && !UNKNOWN_TO_KERNEL.load(Ordering::Relaxed) { DONTCACHE } else { ReadWriteFlags::empty() }
}

/// Says that `file` will be read once, from front to end. A hint: failing does no harm.
pub fn read_once(file: &File) {
    if flags(true).is_empty() {
        rustix::fs::fadvise(file, 0, None, Advice::NoReuse).ok();
        rustix::fs::fadvise(file, 0, None, Advice::Sequential).ok();
    }
}

/// Reads at `offset` until `buffer` is full or the file ends. Returns how much was read.
///
/// # Errors
/// As the kernel says.
pub fn read_full_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let (mut filled, mut enabled) = (0, true);
    while filled < buffer.len() {
        let at = offset + filled as u64;
        let used = flags(enabled);
        match rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut buffer[filled..])], at, used) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(error) if refused(error) && !used.is_empty() => enabled = fall_back(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(filled)
}

/// Writes all of `bytes` at `offset`. Writing back starts at once.
///
/// # Errors
/// As the kernel says.
pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let (mut written, mut enabled) = (0, true);
    while written < bytes.len() {
        let at = offset + written as u64;
        let used = flags(enabled);
        match rustix::io::pwritev2(file, &[IoSlice::new(&bytes[written..])], at, used) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(Errno::INTR) => {}
            Err(error) if refused(error) && !used.is_empty() => enabled = fall_back(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What direct I/O wants of an address, an offset and a length: to be a multiple of this, in bytes. File systems want 512 or 4096.
pub const BLOCK_BYTES: usize = 4096;
/// Shorter runs of blocks are not worth the calls.
const DIRECT_BYTES: usize = 256 * 1024;

/// Writes all of `bytes` at `offset`. Its whole blocks go from here to the disk without a copy, when `bytes` lies in memory as it will in
/// the file: its address and `offset` leave the same remainder when divided by [`BLOCK_BYTES`]. Nobody else may write through this
/// descriptor meanwhile: its flags change.
///
/// # Errors
/// As the kernel says.
pub fn write_blocks_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let head = (offset.next_multiple_of(BLOCK_BYTES as u64) - offset) as usize;
    let blocks = bytes.len().saturating_sub(head) / BLOCK_BYTES * BLOCK_BYTES;
    if blocks < DIRECT_BYTES || !bytes[head..].as_ptr().addr().is_multiple_of(BLOCK_BYTES) {
        return write_all_at(file, bytes, offset);
    }
    write_all_at(file, &bytes[..head], offset)?;
    let done = head + write_direct(file, &bytes[head..head + blocks], offset + head as u64)?;
    write_all_at(file, &bytes[done..], offset + done as u64)
}

/// Writes as many blocks as this file system takes directly. Returns how many bytes.
fn write_direct(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    if rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT).is_err() {
        return Ok(0);
    }
    let mut written = 0;
    let result = loop {
        if written == bytes.len() {
            break Ok(written);
        }
        match rustix::io::pwrite(file, &bytes[written..], offset + written as u64) {
            Ok(count) if count > 0 && count.is_multiple_of(BLOCK_BYTES) => written += count,
            // The rest, from the last whole block on, is written as ever.
            Ok(_) => break Ok(written),
            Err(Errno::INTR) => {}
            Err(error) if refused(error) => break Ok(written),
            Err(error) => break Err(error.into()),
        }
    };
    rustix::fs::fcntl_setfl(file, flags)?;
    result
}

/// The next attempt goes without the flag; so do all when this kernel cannot know it.
fn fall_back() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (6, 14) {
        UNKNOWN_TO_KERNEL.store(true, Ordering::Relaxed);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_up_to_the_end() {
        let file = tempfile::tempfile().expect("temp");
        let bytes: Vec<u8> = (0..300_000u32).map(|number| (number % 251) as u8).collect();
        write_all_at(&file, &bytes, 10).expect("write");
        let mut read = vec![0; 400_000];
        assert_eq!(read_full_at(&file, &mut read, 10).expect("read"), bytes.len());
        assert_eq!(read[..bytes.len()], bytes);
        assert_eq!(read_full_at(&file, &mut read, 1 << 40).expect("beyond the end"), 0);
    }

    /// Wherever the bytes lie in memory and go in the file, and wherever their blocks are.
    #[test]
    fn blocks_are_written_beside_what_is_around_them() {
        let folders = [Some(tempfile::tempdir().expect("temp")), tempfile::tempdir_in("/dev/shm").ok()];
        for folder in folders.into_iter().flatten() {
            let file = File::create_new(folder.path().join("file")).expect("create");
            let size = DIRECT_BYTES + 3 * BLOCK_BYTES;
            let memory: Vec<u8> = (0..size as u32 + 2 * 4096).map(|number| (number % 251) as u8).collect();
            let aligned = memory.as_ptr().align_offset(BLOCK_BYTES);
            let mut expected = Vec::new();
            for (at, shift, length) in
                [(0, 0, size), (100, 100, size), (5000, 904, size - 1), (7, 8, size), (3, 3, 10)]
            {
                let bytes = &memory[aligned + shift..][..length];
                write_blocks_at(&file, bytes, at as u64).expect("write");
                expected.resize(expected.len().max(at + length), 0);
                expected[at..at + length].copy_from_slice(bytes);
                assert_eq!(
                    std::fs::read(folder.path().join("file")).expect("read"),
                    expected,
                    "{at} {shift} {length}"
                );
            }
            let flags = rustix::fs::fcntl_getfl(&file).expect("flags");
            assert!(!flags.contains(OFlags::DIRECT), "the descriptor is as it was");
        }
    }

    /// Where the flag is refused, the bytes arrive all the same: memory files know no uncached writing.
    #[test]
    fn a_file_system_without_it_is_used_as_ever() {
        let folder = tempfile::tempdir_in("/dev/shm").expect("a memory file system");
        let file = File::create_new(folder.path().join("file")).expect("create");
        write_all_at(&file, b"bytes", 0).expect("write");
        assert_eq!(std::fs::read(folder.path().join("file")).expect("read"), b"bytes");
    }
}
