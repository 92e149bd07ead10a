//! Files mapped into memory, and the file that an address belongs to.
//!
//! If another program truncates a mapped file, the next read beyond its new end raises SIGBUS,
//! which ends this process. No length checked before can prevent that, so the program handles the
//! signal and asks here which file it was (`src/cli/signals.rs`). Within the file's last page the
//! missing part reads as zeros instead; [`MappedFile::is_unchanged`] detects that.

use std::fs::{File, Metadata};
use std::io;
use std::ops::{Deref, Range};
use std::os::raw::c_char;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::time::SystemTime;

use memmap2::Mmap;

/// A file mapped for reading.
#[derive(Debug)]
pub struct MappedFile {
    /// First, so that the address is forgotten before it is unmapped.
    _registered: Registered,
    map: Mmap,
    path: PathBuf,
    file: File,
    modified: Option<SystemTime>,
}

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// The system's errors; [`io::ErrorKind::IsADirectory`] for a directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        let is_regular = |metadata: &Metadata| {
            if metadata.is_dir() {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            let problem = "it is no regular file, and cannot be mapped";
            let refused = || io::Error::new(io::ErrorKind::InvalidInput, problem);
            metadata.is_file().then_some(()).ok_or_else(refused)
        };
        // Before it is opened: a pipe would wait for its writer.
        is_regular(&std::fs::metadata(path)?)?;
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        is_regular(&metadata)?;
        // SAFETY: the map is read-only, and its bytes are only ever taken as plain numbers. Our own
        // files are replaced by renaming, never changed in place; the module's comment says what
        // happens if another program changes a file nonetheless.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self {
            _registered: Registered::new(&map, path),
            map,
            path: path.to_owned(),
            modified: metadata.modified().ok(),
            file,
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells the system that some pages have been read and are not needed soon. They no longer
    /// count as memory of this process; the system may keep them in its page cache.
    #[cfg(unix)]
    pub fn release(&self, bytes: Range<usize>) {
        let advice = memmap2::UncheckedAdvice::DontNeed;
        // SAFETY: the map is read-only and of a file, so a dropped page is read from the file again
        // when it is next accessed.
        let released = unsafe { self.map.unchecked_advise_range(advice, bytes.start, bytes.len()) };
        // Advice that the system ignores changes no result.
        released.ok();
    }

    /// Does nothing: this system has no such advice.
    #[cfg(not(unix))]
    pub fn release(&self, _: Range<usize>) {}

    /// Whether the file has the length it had when mapped, and has not been written to since.
    pub fn is_unchanged(&self) -> bool {
        self.file.metadata().is_ok_and(|now| {
            now.len() == self.map.len() as u64 && now.modified().ok() == self.modified
        })
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// Maps that are known by their addresses. A run has one for each modality, and a few more.
const SLOTS: usize = 64;

/// A map's address range and its file's path; free if `path` is null.
struct Slot {
    path: AtomicPtr<c_char>,
    path_length: AtomicUsize,
    start: AtomicUsize,
    /// 0 until all other fields are set.
    end: AtomicUsize,
}

static KNOWN: [Slot; SLOTS] = [const {
    Slot {
        path: AtomicPtr::new(std::ptr::null_mut()),
        path_length: AtomicUsize::new(0),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
    }
}; SLOTS];

/// A map's slot, if one was free, and the path that the slot points to.
#[derive(Debug)]
struct Registered {
    slot: Option<usize>,
    path: Box<[u8]>,
}

impl Registered {
    fn new(map: &Mmap, path: &Path) -> Self {
        let mut path: Box<[u8]> = path.to_string_lossy().as_bytes().into();
        let pointer = path.as_mut_ptr().cast();
        let free = |slot: &Slot| {
            let null = std::ptr::null_mut();
            slot.path.compare_exchange(null, pointer, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let slot = KNOWN.iter().position(free);
        if let Some(slot) = slot.map(|index| &KNOWN[index]) {
            let start = map.as_ptr() as usize;
            slot.path_length.store(path.len(), Ordering::Relaxed);
            slot.start.store(start, Ordering::Relaxed);
            // The system maps whole pages, so the last one counts to its end.
            slot.end.store(start + map.len().next_multiple_of(4096), Ordering::Release);
        }
        Self { slot, path }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.map(|index| &KNOWN[index]) {
            slot.end.store(0, Ordering::Release);
            slot.path.store(std::ptr::null_mut(), Ordering::Release);
        }
        // Freed only now: the slot has pointed to it until here.
        drop(std::mem::take(&mut self.path));
    }
}

/// Calls `tell` with the path of the mapped file that contains the address, if any.
///
/// It takes no lock and allocates nothing, so a signal handler may call it.
///
/// # Safety
/// A thread must be reading the address through a [`MappedFile`], so that the map stays alive.
pub unsafe fn with_path_at(address: usize, tell: impl FnOnce(&[u8])) {
    for slot in &KNOWN {
        let end = slot.end.load(Ordering::Acquire);
        let start = slot.start.load(Ordering::Relaxed);
        if address < start || address >= end {
            continue;
        }
        let path = slot.path.load(Ordering::Relaxed).cast::<u8>();
        let length = slot.path_length.load(Ordering::Relaxed);
        // SAFETY: the map at this address is being read, so its slot is set and the path that the
        // slot points to is alive.
        return tell(unsafe { std::slice::from_raw_parts(path, length) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_at(address: usize) -> Option<String> {
        let mut found = None;
        // SAFETY: the maps of these tests stay alive during the call.
        unsafe {
            with_path_at(address, |path| found = Some(String::from_utf8_lossy(path).into_owned()));
        }
        found
    }

    #[test]
    fn an_address_leads_to_its_file_as_long_as_that_is_mapped() {
        let directory = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> =
            (0..2 * SLOTS).map(|index| directory.path().join(index.to_string())).collect();
        paths.iter().for_each(|path| std::fs::write(path, [7; 5000]).unwrap());
        let map = |path: &PathBuf| MappedFile::open(path).unwrap();
        let first = map(&paths[0]);
        let address = first.as_ptr() as usize;
        for offset in [0, 4999, 8191] {
            assert_eq!(path_at(address + offset).as_deref(), paths[0].to_str());
        }
        assert_eq!(path_at(&raw const address as usize), None);
        assert_eq!(&first[4998..], [7, 7]);
        drop(first);
        assert_eq!(path_at(address), None);

        // With more maps than slots, no path is wrong, and slots are used again.
        for _ in 0..2 {
            let maps: Vec<MappedFile> = paths.iter().map(map).collect();
            let told = maps.iter().filter(|map| {
                let told = path_at(map.as_ptr() as usize);
                assert!(told.is_none() || told.as_deref() == map.path().to_str());
                told.is_some()
            });
            assert!(told.count() > SLOTS / 2);
        }
    }

    #[test]
    fn changes_are_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        std::fs::write(&path, [7; 5000]).unwrap();
        let map = MappedFile::open(&path).unwrap();
        assert!(map.is_unchanged());
        // A renamed file is unchanged, even if another takes its name.
        std::fs::rename(&path, directory.path().join("b")).unwrap();
        std::fs::write(&path, [8; 10]).unwrap();
        assert!(map.is_unchanged());
        let file = File::options().write(true).open(directory.path().join("b")).unwrap();
        file.set_len(4999).unwrap();
        assert!(!map.is_unchanged());
        file.set_len(5000).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(!map.is_unchanged());
    }
}
