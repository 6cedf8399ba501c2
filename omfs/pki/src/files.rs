//! Reading and replacing the small files of the store.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::error::PkiError;

/// No file of the store is anywhere near this long.
const FILE_BYTES_MAX: u64 = 1 << 20;

fn at(path: &Path) -> impl FnOnce(io::Error) -> PkiError + '_ {
    |source| PkiError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Makes a directory that only its owner can enter.
///
/// # Errors
/// [`PkiError::Io`].
pub fn make_private_dir(dir: &Path) -> Result<(), PkiError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(at(dir))
}

/// Replaces a file as a whole, readable by its owner only: after a crash the old or the new
/// content is there, never a part.
///
/// # Errors
/// [`PkiError::Io`].
pub fn replace(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    let fresh = path.with_extension("new");
    write_synced(&fresh, content).map_err(at(&fresh))?;
    fs::rename(&fresh, path).map_err(at(path))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(at(dir))
}

fn write_synced(path: &Path, content: &[u8]) -> io::Result<()> {
    // A left-over of a crash might have other permissions: never write a key into it.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Reads a whole file as text; `None` when it does not exist.
///
/// # Errors
/// [`PkiError::Io`], also when it is not UTF-8 or unreasonably long.
pub fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match read_limited(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(path)(error)),
    }
}

fn read_limited(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(FILE_BYTES_MAX)
        .read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_replaced_file_is_private_even_over_a_readable_left_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        fs::write(dir.path().join("key.new"), "left over").unwrap();
        assert_eq!(read(&path).unwrap(), None);
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("two"));
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
