//! `STATE_DIR/applied`: one file for each applied document.
//!
//! A file is written beside its place, synced, renamed and its directory
//! synced, so that after a crash there is either the old version or the new
//! one. The first line says which document it is and has a checksum of the
//! rest, which is the text as it was applied.

use std::fs::{self, DirBuilder, File};
use std::hash::Hasher;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash64;

use crate::policy::Options;
use crate::policy::diagnostic::{Diagnostic, Severity, Source, Span};
use crate::policy::document::{Document, DocumentId, Outcome};
use crate::policy::load::read_limited;
use crate::policy::schema::meta::Kind;

use super::read_all;

const MARK: &str = "# egress-applied: ";
/// Files that were not finished before a crash.
const UNFINISHED: &str = ".new-";

/// What the first line says.
#[derive(Serialize, Deserialize)]
struct Head {
    kind: String,
    namespace: String,
    name: String,
    /// When it was applied, RFC 3339.
    at: String,
    /// XXH64 of what follows the line, in hexadecimal.
    xxh64: String,
}

/// The directory.
#[derive(Debug)]
pub(super) struct Applied {
    directory: PathBuf,
}

/// A document of the directory.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) id: DocumentId,
    pub(super) at: jiff::Timestamp,
    /// `None` when it is not valid any more.
    pub(super) document: Option<Arc<Document>>,
    pub(super) problems: Vec<Diagnostic>,
}

/// A document that is ready to be written.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) kept: Kept,
    path: PathBuf,
    content: String,
}

fn checksum(text: &str) -> String {
    let mut hasher = XxHash64::with_seed(0);
    hasher.write(text.as_bytes());
    format!("{:016x}", hasher.finish())
}

/// A file name that says what it is to a human, and is another for every other
/// document.
fn file_name(id: &DocumentId) -> String {
    let kind = id.kind.name().to_ascii_lowercase();
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    let name: String = id.name.chars().filter(|c| plain(*c)).take(100).collect();
    if *name == *id.name {
        return format!("{kind}.{}.{name}.yaml", id.namespace);
    }
    let sum = checksum(&id.name);
    // `_` cannot occur in the others.
    format!("{kind}.{}.{name}_{sum}.yaml", id.namespace)
}

impl Applied {
    pub(super) fn open(state: &Path) -> io::Result<Self> {
        let directory = state.join("applied");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)?;
        Ok(Self { directory })
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }

    /// Reads what is kept. What cannot be read is told, and costs the rest
    /// nothing.
    pub(super) fn load(&self, options: &Options) -> (Vec<Kept>, Vec<Diagnostic>) {
        let (mut kept, mut problems) = (Vec::new(), Vec::new());
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) => {
                problems.push(unusable(&self.directory, &error.to_string()));
                return (kept, problems);
            }
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(UNFINISHED) {
                // It was never promised to anyone.
                if let Err(error) = fs::remove_file(&path) {
                    problems.push(unusable(&path, &error.to_string()));
                }
                continue;
            }
            let read = read_limited(&path).map_err(|error| error.to_string());
            match read.and_then(|bytes| self.read(&path, bytes, options)) {
                Ok(one) => kept.push(one),
                Err(error) => problems.push(unusable(&path, &error)),
            }
        }
        (kept, problems)
    }

    fn read(&self, path: &Path, bytes: Vec<u8>, options: &Options) -> Result<Kept, String> {
        let text = std::str::from_utf8(&bytes).map_err(|error| error.to_string())?;
        let head = text.strip_prefix(MARK).and_then(|t| t.split_once('\n'));
        let (head, rest) = head.ok_or("its first line is not that of an applied document")?;
        let head: Head = serde_json::from_str(head).map_err(|error| error.to_string())?;
        if checksum(rest) != head.xxh64 {
            return Err("its checksum is wrong".to_owned());
        }
        let kind = Kind::parse(&head.kind).ok_or("it is of an unknown kind")?;
        let id = DocumentId {
            kind,
            namespace: head.namespace.into(),
            name: head.name.into(),
        };
        let at = head
            .at
            .parse()
            .map_err(|error: jiff::Error| error.to_string())?;
        if self.directory.join(file_name(&id)) != path {
            return Err(format!("it should be called {}", file_name(&id)));
        }
        Ok(read_kept(&id, at, path, bytes, options))
    }

    /// Makes a document ready to be written: it is read back from what will
    /// stand in the file.
    pub(super) fn prepare(
        &self,
        document: &Document,
        at: jiff::Timestamp,
        options: &Options,
    ) -> Result<Prepared, String> {
        let mut body = document.source.text.to_string();
        if !body.ends_with('\n') {
            body.push('\n');
        }
        let head = Head {
            kind: document.id.kind.name().to_owned(),
            namespace: document.id.namespace.to_string(),
            name: document.id.name.to_string(),
            at: at.to_string(),
            xxh64: checksum(&body),
        };
        let head = serde_json::to_string(&head).map_err(|error| error.to_string())?;
        let content = format!("{MARK}{head}\n{body}");
        let path = self.directory.join(file_name(&document.id));
        let bytes = content.clone().into_bytes();
        let kept = read_kept(&document.id, at, &path, bytes, options);
        Ok(Prepared {
            kept,
            path,
            content,
        })
    }

    /// Writes documents. When this returns well, they survive a crash. None is
    /// put in its place before all are written.
    pub(super) fn write(&self, prepared: &[Prepared]) -> io::Result<()> {
        let mut files = Vec::with_capacity(prepared.len());
        for one in prepared {
            let mut file = tempfile::Builder::new()
                .prefix(UNFINISHED)
                .tempfile_in(&self.directory)?;
            file.write_all(one.content.as_bytes())?;
            file.as_file().sync_all()?;
            // Closed, so that many documents need no more descriptors than one.
            files.push((file.into_temp_path(), &one.path));
        }
        for (file, path) in files {
            file.persist(path).map_err(|error| error.error)?;
        }
        self.sync()
    }

    /// Removes documents; it is no error when one is not there.
    pub(super) fn remove(&self, ids: &[DocumentId]) -> io::Result<()> {
        for id in ids {
            match fs::remove_file(self.directory.join(file_name(id))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.sync()
    }
}

/// Reads the text of one document; others in it (items of a `List`) are kept
/// in files of their own.
fn read_kept(
    id: &DocumentId,
    at: jiff::Timestamp,
    path: &Path,
    bytes: Vec<u8>,
    options: &Options,
) -> Kept {
    // It stays in the namespace in which it was applied.
    let options = Options {
        default_namespace: Arc::clone(&id.namespace),
        ..options.clone()
    };
    let kept = |document, problems| Kept {
        id: id.clone(),
        at,
        document,
        problems,
    };
    let read = match read_all(&path.display().to_string(), bytes, &options) {
        Ok(read) => read,
        Err(error) => return kept(None, vec![*error]),
    };
    // The last one of a `List` with two of the same name counts.
    let mut others = Vec::new();
    for (outcome, problems) in read.into_iter().rev() {
        match outcome {
            Outcome::Valid(document) if document.id == *id => {
                return kept(Some(document), problems);
            }
            Outcome::Rejected(Some(other)) if other == *id => return kept(None, problems),
            Outcome::Rejected(None) => others.extend(problems),
            _ => {}
        }
    }
    kept(None, others)
}

fn unusable(path: &Path, error: &str) -> Diagnostic {
    let source = Source::nameless(&path.display().to_string());
    let message = format!("an applied document cannot be used: {error}");
    Diagnostic::new(Severity::Error, "applied", message)
        .help("apply it again, or remove the file")
        .at(&source, Span::default())
}
