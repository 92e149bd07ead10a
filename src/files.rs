//! Files that are either complete or absent.
//!
//! Everything this crate writes goes to a temporary name in the target's own directory, is synced
//! to the disk and renamed over the target. A reader, or a process killed at any moment, sees
//! either the old file or the new one, never a part.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{File, Permissions, TryLockError};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tempfile::{NamedTempFile, TempDir};

use crate::{Error, Result, fault};

/// The file of a directory that is locked while a process works in it.
pub const LOCK: &str = ".lock";

/// The beginning of the names of unfinished files, followed by six letters and digits. The
/// safetensors crate uses the same names.
const TEMPORARY_PREFIX: &str = ".tmp";

/// Whether a file of this name is left over from a process that was killed while writing it.
pub(crate) fn is_temporary(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(TEMPORARY_PREFIX) else { return false };
    rest.len() == 6 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Writes `path` through `fill`, atomically: temporary file, sync, rename, sync of the directory.
///
/// # Errors
/// [`Error::Io`] for `path` if any of these steps fails; errors of `fill` are passed on. In both
/// cases `path` is as it was before and the temporary file is gone.
pub fn write_atomic(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&mut File>) -> Result<()>,
) -> Result<()> {
    replace(path, |temporary| {
        let mut writer = BufWriter::with_capacity(1 << 20, temporary.as_file_mut());
        fill(&mut writer)?;
        writer.flush().map_err(|error| Error::io(path, "write", error))
    })
}

/// [`write_atomic`] for a writer that needs the name of a file instead of an open file.
///
/// # Errors
/// The errors of [`write_atomic`].
pub fn write_atomic_by_name(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    replace(path, |temporary| fill(temporary.path()))
}

/// The first `length` bytes of a file, or all if it has fewer; `None` if there is no such file.
///
/// # Errors
/// [`Error::Io`] when it cannot be read.
pub fn beginning(path: &Path, length: usize) -> Result<Option<Vec<u8>>> {
    let wrong = |error| Error::io(path, "read", error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(error)),
    };
    let mut bytes = Vec::new();
    file.take(length as u64).read_to_end(&mut bytes).map_err(wrong)?;
    Ok(Some(bytes))
}

/// Fills a temporary file beside `path`, syncs it and renames it over `path`.
fn replace(path: &Path, fill: impl FnOnce(&mut NamedTempFile) -> Result<()>) -> Result<()> {
    let directory = directory_of(path);
    let make = || create_temporary(directory).map(|file| (file.path().to_owned(), file));
    let (mut temporary, _unfinished) = fault::point()
        .and_then(|()| Unfinished::create(make))
        .map_err(|error| Error::io(path, "create", error))?;
    let permissions = permissions_of(path, temporary.as_file())
        .map_err(|error| Error::io(path, "create", error))?;
    fault::point().map_err(|error| Error::io(path, "write", error))?;
    fill(&mut temporary)?;
    // Opened by name, since a writer that was given the name may have replaced the file. Opened for
    // writing, since Windows refuses to sync a file otherwise.
    let written = File::options().read(true).write(true).open(temporary.path());
    let written = written.map_err(|error| Error::io(path, "open", error))?;
    written.set_permissions(permissions).map_err(|error| Error::io(path, "write", error))?;
    fault::point()
        .and_then(|()| written.sync_all())
        .map_err(|error| Error::io(path, "sync", error))?;
    fault::point().map_err(|error| Error::io(path, "rename into", error))?;
    temporary.persist(path).map_err(|error| Error::io(path, "rename into", error.error))?;
    made_durable(directory)
}

/// The temporary files and folders that this process is writing.
static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// An entry in [`UNFINISHED`].
#[derive(Debug)]
struct Unfinished(PathBuf);

impl Unfinished {
    fn create<T>(make: impl FnOnce() -> io::Result<(PathBuf, T)>) -> io::Result<(T, Self)> {
        // Created and entered at once, for those who end the process meanwhile.
        let mut unfinished = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
        let (path, made) = make()?;
        unfinished.insert(path.clone());
        Ok((made, Self(path)))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Files that get their places in a directory together, once all of them are written: until then they
/// lie in a temporary folder in it.
#[derive(Debug)]
pub(crate) struct Together {
    directory: PathBuf,
    /// Released before the folder is removed, as some systems demand.
    _lock: File,
    folder: TempDir,
    _unfinished: Unfinished,
}

impl Together {
    /// The beginning of the temporary folder's name.
    const PREFIX: &str = ".bm3-unfinished-";

    /// Makes the directory, if need be, and the temporary folder; removes those of processes that
    /// were killed.
    ///
    /// # Errors
    /// [`Error::Io`] with the directory.
    pub fn begin(directory: &Path) -> Result<Self> {
        let make = || {
            std::fs::create_dir_all(directory)?;
            Self::remove_abandoned(directory);
            let folder = tempfile::Builder::new().prefix(Self::PREFIX).tempdir_in(directory)?;
            // Locked before it has its name, so that a folder with an unlocked one is abandoned.
            let (new, lock) = (folder.path().join("lock"), folder.path().join(LOCK));
            let file = File::create(&new)?;
            file.lock()?;
            std::fs::rename(&new, &lock)?;
            Ok((folder.path().to_owned(), (folder, file)))
        };
        let ((folder, _lock), _unfinished) = fault::point()
            .and_then(|()| Unfinished::create(make))
            .map_err(|error| Error::io(directory, "create", error))?;
        Ok(Self { directory: directory.to_owned(), _lock, folder, _unfinished })
    }

    /// Best effort: what cannot be removed does no harm.
    fn remove_abandoned(directory: &Path) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if !entry.file_name().to_string_lossy().starts_with(Self::PREFIX) {
                continue;
            }
            let lock = File::open(entry.path().join(LOCK));
            if lock.is_ok_and(|lock| lock.try_lock().is_ok()) {
                std::fs::remove_dir_all(entry.path()).ok();
            }
        }
    }

    /// Gives `write` the folder to write into; its errors name the places that files are to get.
    ///
    /// # Errors
    /// Those of `write`.
    pub fn write<T>(&self, write: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        write(self.folder.path()).map_err(|error| match error {
            Error::Io { path, action, source } => {
                let place = path.strip_prefix(self.folder.path());
                let path = place.map_or(path.clone(), |name| self.directory.join(name));
                Error::Io { path, action, source }
            }
            other => other,
        })
    }

    /// Moves the files of these names to their places, in this order, each with the permissions of
    /// the file that it replaces.
    ///
    /// # Errors
    /// [`Error::Io`] with the first place that fails; the files before have theirs.
    pub fn finish<'a>(self, names: impl IntoIterator<Item = &'a OsStr>) -> Result<()> {
        for name in names {
            let (from, to) = (self.folder.path().join(name), self.directory.join(name));
            if let Ok(replaced) = std::fs::metadata(&to) {
                std::fs::set_permissions(&from, replaced.permissions())
                    .map_err(|error| Error::io(&to, "write", error))?;
            }
            rename(&from, &to)?;
        }
        Ok(())
    }
}

/// Removes the temporary files of this process, which is about to end: from here on, it can begin
/// and finish no file.
pub fn abandon_unfinished() {
    let unfinished = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
    for path in &*unfinished {
        match path.is_dir() {
            true => std::fs::remove_dir_all(path).ok(),
            false => std::fs::remove_file(path).ok(),
        };
    }
    std::mem::forget(unfinished);
}

/// Renames a file within its directory, replacing any file of the new name, durably.
///
/// # Errors
/// [`Error::Io`] with the path that fails.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fault::point()
        .and_then(|()| std::fs::rename(from, to))
        .map_err(|error| Error::io(to, "rename into", error))?;
    made_durable(directory_of(to))
}

/// Removes a file if it exists.
///
/// # Errors
/// [`Error::Io`] with the path.
pub fn remove(path: &Path) -> Result<()> {
    match fault::point().and_then(|()| std::fs::remove_file(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io(path, "remove", error))
        }
        _ => Ok(()),
    }
}

/// Locks a directory against other processes until the returned file is closed, by the system too
/// when the process dies.
///
/// # Errors
/// [`Error::RunFile`] with `busy` if another process holds the lock; [`Error::Io`] with the lock
/// file.
pub fn lock(directory: &Path, busy: &str) -> Result<File> {
    let path = directory.join(LOCK);
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| Error::io(&path, "create", error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            let problem = format!("{busy}; wait for it, or give another --out");
            Err(Error::run_file(directory, problem))
        }
        Err(TryLockError::Error(error)) => Err(Error::io(&path, "lock", error)),
    }
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Waits until a directory's file names are on the disk.
fn made_durable(directory: &Path) -> Result<()> {
    fault::point()
        .and_then(|()| sync_directory(directory))
        .and_then(|()| fault::point())
        .map_err(|error| Error::io(directory, "sync", error))
}

/// [`write_atomic`] for bytes that are already in memory.
pub fn write_bytes_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |writer| {
        writer.write_all(bytes).map_err(|error| Error::io(path, "write", error))
    })
}

/// Refuses to continue if one of `paths` exists.
///
/// # Errors
/// [`Error::Setting`] for `--out`, naming the file.
pub fn refuse_existing<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Result<()> {
    match paths.into_iter().find(|path| path.as_ref().exists()) {
        None => Ok(()),
        Some(path) => {
            let path = path.as_ref().display();
            let problem = format!("{path} exists; add --overwrite, or give another folder");
            Err(Error::setting("--out", problem))
        }
    }
}

/// Creates a temporary file with the permissions of any new file, as set by the user's mask.
fn create_temporary(directory: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY_PREFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(directory)
}

/// The permissions of the file to be replaced or, if there is none, of a new file.
fn permissions_of(replaced: &Path, new: &File) -> io::Result<Permissions> {
    match std::fs::metadata(replaced) {
        Ok(metadata) if metadata.is_file() => Ok(metadata.permissions()),
        _ => Ok(new.metadata()?.permissions()),
    }
}

#[cfg(unix)]
fn sync_directory(directory: &Path) -> std::io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(not(unix))]
fn sync_directory(_: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_or_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.txt");
        write_bytes_atomic(&path, b"first").unwrap();
        let error = write_atomic(&path, |writer| {
            writer.write_all(b"half").unwrap();
            Err(Error::setting("x", "broken"))
        });
        assert!(error.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        write_atomic_by_name(&path, |temporary| {
            // Like writers that replace a file themselves.
            std::fs::remove_file(temporary).unwrap();
            std::fs::write(temporary, b"second").unwrap();
            Ok(())
        })
        .unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_has_the_permissions_of_the_one_it_replaces_or_of_a_new_one() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.txt");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        // The permissions that this process's mask leaves to a new file.
        let other = directory.path().join("b.txt");
        std::fs::write(&other, b"x").unwrap();
        let by_name = |temporary: &Path| {
            // Like writers that replace a file themselves.
            std::fs::remove_file(temporary).unwrap();
            std::fs::write(temporary, b"y").unwrap();
            Ok(())
        };
        write_bytes_atomic(&path, b"x").unwrap();
        assert_eq!(mode(&path), mode(&other));
        for private in [0o600, 0o640] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(private)).unwrap();
            write_bytes_atomic(&path, b"x").unwrap();
            assert_eq!(mode(&path), private);
            write_atomic_by_name(&path, by_name).unwrap();
            assert_eq!(mode(&path), private);
        }
    }

    #[test]
    fn files_get_their_places_together() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let names = || {
            let entries = std::fs::read_dir(directory.path()).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        std::fs::write(path("a"), "old").unwrap();
        let begun = Together::begin(directory.path()).unwrap();
        let error = begun.write(|folder| write_bytes_atomic(&folder.join("no/b"), b"x"));
        assert!(error.unwrap_err().to_string().starts_with(&path("no/b").display().to_string()));
        begun.write(|folder| write_bytes_atomic(&folder.join("a"), b"new")).unwrap();
        drop(begun);
        assert_eq!((names(), std::fs::read(path("a")).unwrap()), (vec!["a".into()], b"old".into()));
        let begun = Together::begin(directory.path()).unwrap();
        for name in ["a", "b"] {
            begun.write(|folder| write_bytes_atomic(&folder.join(name), b"new")).unwrap();
        }
        begun.finish(["b", "a"].map(OsStr::new)).unwrap();
        assert_eq!(names(), ["a", "b"]);
        assert_eq!(std::fs::read(path("a")).unwrap(), b"new");
        // Another that is at work stays; that of a process that was killed goes.
        let other = Together::begin(directory.path()).unwrap();
        let killed = path(&format!("{}x", Together::PREFIX));
        std::fs::create_dir(&killed).unwrap();
        std::fs::write(killed.join(LOCK), "").unwrap();
        drop(Together::begin(directory.path()).unwrap());
        assert!(other.folder.path().exists() && !killed.exists());
        drop(other);
        assert_eq!(names(), ["a", "b"]);
    }

    #[test]
    fn only_names_of_unfinished_files_are_temporary() {
        let directory = tempfile::tempdir().unwrap();
        let temporary = create_temporary(directory.path()).unwrap();
        assert!(is_temporary(&temporary.path().file_name().unwrap().to_string_lossy()));
        for name in [".tmp", ".tmp_notes", ".tmpabcde", ".tmpabcdefg", "tmpabcdef", ".tmpabc.ef"] {
            assert!(!is_temporary(name), "{name}");
        }
    }
}
