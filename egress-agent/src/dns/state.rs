//! The file that keeps virtual addresses across restarts.
//!
//! JSON, written to a temporary file beside it, synced, and renamed over it.
//! It holds every name with the number of its address, released ones included.
//! Losing it costs little: a name's address follows from a hash of the name,
//! and only where two names met on one number does the order decide.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::DnsError;

/// Name of the file in the state directory.
pub const FILE_NAME: &str = "virtual-addresses.json";

/// Version of the format. A file of another version is set aside.
pub const VERSION: u32 = 1;

/// Largest file that is read, in bytes: 65,536 names of 255 bytes fit.
const SIZE_LIMIT: u64 = 64 << 20;

/// One name.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Record {
    /// Host, lower case, no trailing dot.
    pub name: Box<str>,
    /// Number of the address: its last sixteen bits.
    pub index: u16,
    /// It was made for a name under a wildcard host.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub derived: bool,
    /// Unix time in seconds of the last answer that named it; 0: none.
    #[serde(default)]
    pub used: u64,
    /// Unix time in seconds at which no policy named it any more; 0: in use.
    #[serde(default)]
    pub released: u64,
}

#[derive(Serialize, Deserialize)]
struct Contents {
    version: u32,
    names: Vec<Record>,
}

/// The version alone, readable whatever else a later format holds.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// Reads the records of a state directory. A missing file is an empty one; one
/// that cannot be used is renamed to `….unusable`, with a warning, and counts
/// as missing.
pub fn load(directory: &Path) -> Vec<Record> {
    let path = directory.join(FILE_NAME);
    match read(&path) {
        Ok(records) => records,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            let aside = path.with_extension("json.unusable");
            let kept = match fs::rename(&path, &aside) {
                Ok(()) => format!("kept as {}", aside.display()),
                Err(error) => format!("cannot set it aside: {error}"),
            };
            tracing::warn!(
                file = %path.display(),
                "cannot use the record of virtual addresses ({error}; {kept}); \
                 addresses follow from the names' hashes again, and a client that still \
                 remembers one from before may have to look its name up again"
            );
            Vec::new()
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<Record>> {
    let size = fs::metadata(path)?.len();
    if size > SIZE_LIMIT {
        let text = format!("{size} bytes, more than the limit of {SIZE_LIMIT}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let bytes = fs::read(path)?;
    let Version { version } = serde_json::from_slice(&bytes)?;
    if version != VERSION {
        let text = format!("format version {version}, this program writes {VERSION}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(serde_json::from_slice::<Contents>(&bytes)?.names)
}

/// Replaces the file, durably and as a whole. Blocks.
///
/// # Errors
/// [`DnsError::State`]; the old file then stands.
pub fn save(directory: &Path, names: Vec<Record>) -> Result<(), DnsError> {
    let path = directory.join(FILE_NAME);
    write(directory, &path, names).map_err(|source| DnsError::State { path, source })
}

fn write(directory: &Path, path: &PathBuf, names: Vec<Record>) -> io::Result<()> {
    let mut file = tempfile::Builder::new()
        .prefix(FILE_NAME)
        .tempfile_in(directory)?;
    let mut writer = io::BufWriter::new(file.as_file_mut());
    let contents = Contents {
        version: VERSION,
        names,
    };
    serde_json::to_writer(&mut writer, &contents)?;
    writer.flush()?;
    drop(writer);
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    // Only a synced directory keeps the new name through a power failure.
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn record(name: &str, index: u16) -> Record {
        Record {
            name: name.into(),
            index,
            derived: false,
            used: 7,
            released: 0,
        }
    }

    #[test]
    fn gives_back_what_was_saved() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(load(directory.path()), Vec::new());
        let records = vec![record("a.example", 1), record("b.example", 65_000)];
        save(directory.path(), records.clone()).unwrap();
        assert_eq!(load(directory.path()), records);
        save(directory.path(), Vec::new()).unwrap();
        assert_eq!(load(directory.path()), Vec::new());
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "no temporary file stays behind");
    }

    #[test]
    fn sets_an_unusable_file_aside() {
        for content in ["{\"version\":1,\"na", "{\"version\":2}", "[]", ""] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join(FILE_NAME);
            fs::write(&path, content).unwrap();
            assert_eq!(load(directory.path()), Vec::new());
            assert!(!path.exists());
            let aside = path.with_extension("json.unusable");
            assert_eq!(fs::read_to_string(aside).unwrap(), content);
        }
    }

    #[test]
    fn says_which_file_cannot_be_written() {
        let missing = Path::new("/nonexistent-state-directory");
        let error = save(missing, Vec::new()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("/nonexistent-state-directory/virtual-addresses.json")
        );
    }
}
