//! Files and directories, read once: `egressctl validate`, `diff`, `explain
//! --policy`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Options;
use super::diagnostic::{Diagnostic, Severity, Source, Span};
use super::document::{self, Document, DocumentId, Documents, Outcome};
use super::yaml::{self, Limits};

/// What was read.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Documents that are valid.
    pub documents: Documents,
    /// Every problem, in the order of files and lines.
    pub diagnostics: Vec<Diagnostic>,
    /// What became of each document.
    pub outcomes: Vec<Outcome>,
    /// Files that were read.
    pub files: Vec<PathBuf>,
}

impl Loaded {
    /// Whether nothing was refused.
    pub fn is_valid(&self) -> bool {
        !self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

/// Reads files, and the `.yaml`, `.yml` and `.json` files of directories and
/// their directories. `-` is standard input.
pub fn load_paths(paths: &[PathBuf], options: &Options) -> Loaded {
    let mut loaded = Loaded::default();
    let mut sources = BTreeMap::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let mut bytes = Vec::new();
            let limit = Limits::default().bytes as u64 + 1;
            match io::stdin().lock().take(limit).read_to_end(&mut bytes) {
                Ok(_) => read_bytes("<stdin>", bytes, options, &mut loaded, &mut sources),
                Err(error) => loaded.diagnostics.push(unreadable(path, &error)),
            }
            continue;
        }
        match files_of(path) {
            Ok(files) => {
                for file in files {
                    read_file(&file, options, &mut loaded, &mut sources);
                    loaded.files.push(file);
                }
            }
            Err(error) => loaded.diagnostics.push(unreadable(path, &error)),
        }
    }
    loaded
}

/// Reads one text.
pub fn load_text(name: &str, text: &str, options: &Options) -> Loaded {
    let mut loaded = Loaded::default();
    let bytes = text.as_bytes().to_vec();
    read_bytes(name, bytes, options, &mut loaded, &mut BTreeMap::new());
    loaded
}

/// The files that a path stands for, in order. Hidden files and directories
/// of a directory are passed over, as those of a mounted ConfigMap must be.
pub fn files_of(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    let mut directories = vec![(path.to_owned(), 0)];
    while let Some((directory, depth)) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let path = entry.path();
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            // Through symbolic links; one that leads nowhere is no file.
            let Ok(kind) = fs::metadata(&path) else {
                continue;
            };
            if hidden {
                continue;
            }
            if kind.is_dir() {
                // A link may lead back up.
                if depth < 16 {
                    directories.push((path, depth + 1));
                }
            } else if kind.is_file() && is_policy_file(&path) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Whether the name of a file says that it may hold documents.
pub fn is_policy_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| {
        ["yaml", "yml", "json"]
            .iter()
            .any(|known| extension == *known)
    })
}

fn unreadable(path: &Path, error: &io::Error) -> Diagnostic {
    let source = Source::nameless(&path.display().to_string());
    Diagnostic::new(Severity::Error, "file", format!("cannot be read: {error}"))
        .help("check the path and its permissions")
        .at(&source, Span::default())
}

/// Reads a file, but no more of it than is allowed.
pub(super) fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let limit = Limits::default().bytes as u64 + 1;
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_file(
    path: &Path,
    options: &Options,
    loaded: &mut Loaded,
    seen: &mut BTreeMap<DocumentId, usize>,
) {
    match read_limited(path) {
        Ok(bytes) => read_bytes(&path.display().to_string(), bytes, options, loaded, seen),
        Err(error) => loaded.diagnostics.push(unreadable(path, &error)),
    }
}

/// Reads one file's bytes. A document that an earlier file has as well takes
/// its place, with a warning.
fn read_bytes(
    name: &str,
    bytes: Vec<u8>,
    options: &Options,
    loaded: &mut Loaded,
    seen: &mut BTreeMap<DocumentId, usize>,
) {
    let text = match yaml::text_of(name, bytes, &Limits::default()) {
        Ok(text) => text,
        Err(error) => return loaded.diagnostics.push(*error),
    };
    let name: Arc<str> = name.into();
    for (part, lines_before) in yaml::parts(&text) {
        let source = Arc::new(Source {
            name: Arc::clone(&name),
            text: part.into(),
            lines_before,
        });
        for (outcome, mut problems) in read_part(&source, options) {
            loaded.diagnostics.append(&mut problems);
            if let Outcome::Valid(document) = &outcome {
                if let Some(index) = seen.get(&document.id) {
                    if let Some(old) = loaded.documents.list.get_mut(*index) {
                        loaded.diagnostics.push(replaced(old, document));
                        *old = Arc::clone(document);
                    }
                } else {
                    seen.insert(document.id.clone(), loaded.documents.list.len());
                    loaded.documents.list.push(Arc::clone(document));
                }
            }
            loaded.outcomes.push(outcome);
        }
    }
}

/// A document stands in two places; the last one counts.
pub(super) fn replaced(old: &Document, new: &Document) -> Diagnostic {
    let message = format!("{} was read before; this one takes its place", new.id);
    Diagnostic::new(Severity::Warning, "same-document", message)
        .help("keep one of them, or rename one")
        .at(&new.source, new.first_line())
        .document(new.id.to_string())
        .related(&old.source, old.first_line(), "read before")
}

/// What a part of a file holds, each with its problems.
pub(super) fn read_part(
    source: &Arc<Source>,
    options: &Options,
) -> Vec<(Outcome, Vec<Diagnostic>)> {
    let roots = match yaml::parse(source, &Limits::default()) {
        Ok(roots) => roots,
        Err(error) => return vec![(Outcome::Rejected(None), vec![*error])],
    };
    let mut out = Vec::with_capacity(roots.len());
    for root in &roots {
        document::read(options, source, root, &mut |outcome, problems| {
            out.push((outcome, problems));
        });
    }
    out
}
