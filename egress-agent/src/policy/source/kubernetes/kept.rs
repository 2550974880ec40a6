//! The last documents that the API server had, in the state directory, so that
//! policy is in force at a start while the server is down. One file for each
//! document; the first line says which it is and holds a checksum, since what
//! is half written in a crash must not count.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::object::hash;

/// Before the head of a file.
const MARK: &str = "# egress-agent: document of the API server, as it was last seen: ";
/// Begins the names of files that are being written.
const UNFINISHED: &str = ".new-";
/// Documents that are read at most.
const LIMIT: usize = 100_000;

#[derive(Serialize, Deserialize)]
struct Head {
    name: String,
    /// Seconds since 1970.
    modified: u64,
    xxh64: String,
}

/// A document that was kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptDocument {
    /// When it was changed, by the server's account.
    pub modified: SystemTime,
    /// Its text.
    pub text: String,
}

/// The directory.
#[derive(Clone, Debug)]
pub struct Kept {
    directory: PathBuf,
}

impl Kept {
    /// Below the state directory, which is made for the agent alone.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(state: &Path) -> io::Result<Self> {
        let directory = state.join("kubernetes");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)?;
        Ok(Self { directory })
    }

    fn path(&self, name: &str) -> PathBuf {
        let kind = name.split('/').next().unwrap_or_default();
        let file = format!("{}.{:016x}.yaml", kind.to_ascii_lowercase(), hash(name));
        self.directory.join(file)
    }

    /// Every document that is whole, by name, and the age of the newest
    /// contact with the server.
    pub fn load(&self) -> BTreeMap<Arc<str>, KeptDocument> {
        let mut found = BTreeMap::new();
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) => {
                tracing::warn!("kept documents cannot be read: {error}");
                return found;
            }
        };
        for entry in entries.flatten().take(LIMIT) {
            let path = entry.path();
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(UNFINISHED) {
                // What a crash left.
                let _ = fs::remove_file(&path);
                continue;
            }
            if !name.ends_with(".yaml") {
                continue;
            }
            match read(&path) {
                Some((name, document)) if self.path(&name) == path => {
                    found.insert(name, document);
                }
                _ => {
                    tracing::warn!("{} is damaged; it is passed over", path.display());
                    let _ = fs::remove_file(&path);
                }
            }
        }
        found
    }

    /// Keeps a document, or with `None` forgets it. It need not survive a crash
    /// of the machine: then the server is asked.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set(&self, name: &str, document: Option<(SystemTime, &str)>) -> io::Result<()> {
        let path = self.path(name);
        let Some((modified, text)) = document else {
            return match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        };
        let head = Head {
            name: name.to_owned(),
            modified: modified
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs(),
            xxh64: format!("{:016x}", hash(text)),
        };
        let head = serde_json::to_string(&head)?;
        let mut file = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempfile_in(&self.directory)?;
        file.write_all(format!("{MARK}{head}\n{text}").as_bytes())?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }

    /// Notes that the server was in step now.
    pub fn touch(&self) {
        // Only an age that is shown.
        let _ = fs::write(self.directory.join("contact"), "");
    }

    /// How long ago the server was in step.
    pub fn age(&self) -> Duration {
        fs::metadata(self.directory.join("contact"))
            .and_then(|meta| meta.modified())
            .ok()
            .and_then(|at| at.elapsed().ok())
            .unwrap_or_default()
    }

    /// Reads a value that was kept as JSON.
    pub fn value<T: serde::de::DeserializeOwned>(&self, name: &str) -> Option<T> {
        let bytes = fs::read(self.directory.join(name)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Keeps a value as JSON.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_value<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempfile_in(&self.directory)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        file.persist(self.directory.join(name))
            .map_err(|error| error.error)?;
        Ok(())
    }
}

fn read(path: &Path) -> Option<(Arc<str>, KeptDocument)> {
    let content = fs::read_to_string(path).ok()?;
    let (head, text) = content.strip_prefix(MARK)?.split_once('\n')?;
    let head: Head = serde_json::from_str(head).ok()?;
    (head.xxh64 == format!("{:016x}", hash(text))).then(|| {
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(head.modified);
        let text = text.to_owned();
        (head.name.into(), KeptDocument { modified, text })
    })
}
