//! Where the material of a `tls` block is found: files named by the policy, a
//! `credentialName` in a directory or in memory, the identity of the settings.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::error::{Purpose, SecretError};
use super::material::Piece;
use crate::policy::model::{ClientTls, Identity, Trust};

/// Where credentials are looked for.
#[derive(Clone, Debug, Default)]
pub struct SecretSettings {
    /// `--secrets-dir`: `NAMESPACE/NAME/KEY` below it.
    pub directory: Option<PathBuf>,
    /// `$CREDENTIALS_DIRECTORY` (systemd.exec(5)): `NAME/KEY`, or `NAME_KEY`
    /// as `LoadCredential=NAME:DIRECTORY` lays it out.
    pub credentials: Option<PathBuf>,
    /// Identity for `ISTIO_MUTUAL`.
    pub mesh: Option<MeshIdentity>,
}

/// Where the identity comes from that `ISTIO_MUTUAL` uses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MeshIdentity {
    /// A directory of PEM files, with names of [`MESH_FILES`].
    Directory(PathBuf),
    /// The socket of a SPIFFE Workload API.
    WorkloadApi(PathBuf),
}

/// Certificate, key and roots: as Istio's agent writes them for workloads
/// (`OUTPUT_CERTS`), or as a Kubernetes TLS Secret has them.
pub(super) const MESH_FILES: [[&str; 3]; 2] = [
    ["cert-chain.pem", "key.pem", "root-cert.pem"],
    ["tls.crt", "tls.key", "ca.crt"],
];

impl MeshIdentity {
    /// `unix:PATH` (or `unix://PATH`, as SPIFFE writes it) is a socket, all else
    /// a directory.
    pub fn parse(text: &Path) -> Self {
        match text.to_str().and_then(|text| text.strip_prefix("unix:")) {
            Some(path) => {
                let path = path.strip_prefix("//").unwrap_or(path);
                Self::WorkloadApi(PathBuf::from(path))
            }
            None => Self::Directory(text.to_owned()),
        }
    }
}

/// What the SPIFFE Workload API has said last: an identity, or why there is
/// none.
pub(super) type Svid = Result<Arc<SecretData>, Arc<str>>;

/// A credential held in memory: a `Secret` document, or one from Kubernetes.
/// Keys are Istio's (`tls.crt`, `cert`, …); values are wiped when dropped.
pub type SecretData = BTreeMap<Box<str>, Arc<Zeroizing<Vec<u8>>>>;

/// Credentials in memory by (namespace, name).
pub(super) type Published = HashMap<(Arc<str>, Arc<str>), Arc<SecretData>>;

/// Everything that a `tls` block names, read but not yet checked.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    /// Client certificate and key.
    pub(super) identity: Option<(Piece, Piece)>,
    /// Trusted authorities; `None`: the system's.
    pub(super) authorities: Option<Piece>,
    /// Revocation lists.
    pub(super) revocation: Option<Piece>,
}

impl Pieces {
    pub(super) fn all(&self) -> impl Iterator<Item = &Piece> {
        let (certificate, key) = self
            .identity
            .as_ref()
            .map_or((None, None), |(c, k)| (Some(c), Some(k)));
        [
            certificate,
            key,
            self.authorities.as_ref(),
            self.revocation.as_ref(),
        ]
        .into_iter()
        .flatten()
    }
}

/// State of a file as far as a change shows in it: device, inode, size and
/// modification time; `None` for a file that is not there.
pub(super) type Fingerprint = Vec<Option<(u64, u64, u64, i64, i64)>>;

/// Reads what a `tls` block names, and notes every file that could change the
/// outcome in `watched`, whether it exists or not.
pub(super) struct Finder<'a> {
    pub(super) settings: &'a SecretSettings,
    /// In memory, first match wins.
    pub(super) published: [&'a Published; 2],
    /// Of the Workload API.
    pub(super) svid: &'a Svid,
    /// Namespace of the client, searched first.
    pub(super) namespace: &'a str,
    pub(super) watched: Vec<PathBuf>,
}

impl Finder<'_> {
    pub(super) fn find(&mut self, tls: &ClientTls) -> Result<Pieces, SecretError> {
        let identity = match &tls.identity {
            Identity::None => None,
            Identity::Files { certificate, key } => Some(self.pair(certificate, key)?),
            Identity::Secret(name) => Some(self.credential_pair(tls, name)?),
            Identity::Mesh => Some((self.mesh(Purpose::Certificate)?, self.mesh(Purpose::Key)?)),
        };
        let mut pieces = Pieces {
            identity,
            ..Pieces::default()
        };
        if tls.insecure_skip_verify {
            return Ok(pieces);
        }
        match &tls.trust {
            Trust::System { crl } => {
                pieces.revocation = self.optional_file(Purpose::RevocationList, crl.as_deref())?;
            }
            Trust::File { ca, crl } => {
                pieces.authorities = Some(self.file(Purpose::Authorities, ca)?);
                pieces.revocation = self.optional_file(Purpose::RevocationList, crl.as_deref())?;
            }
            Trust::Secret(name) => {
                (pieces.authorities, pieces.revocation) = self.credential_trust(tls, name)?;
            }
            Trust::Mesh => pieces.authorities = Some(self.mesh(Purpose::Authorities)?),
        }
        Ok(pieces)
    }

    /// A part of the mesh identity.
    fn mesh(&mut self, purpose: Purpose) -> Result<Piece, SecretError> {
        let place = match purpose {
            Purpose::Certificate => 0,
            Purpose::Key => 1,
            Purpose::Authorities | Purpose::RevocationList => 2,
        };
        match &self.settings.mesh {
            None => Err(SecretError::NoMeshIdentity),
            Some(MeshIdentity::Directory(directory)) => {
                let [first, second] = MESH_FILES.map(|names| directory.join(names[place]));
                match self.file(purpose, &first) {
                    Err(SecretError::Missing(..)) => self
                        .file(purpose, &second)
                        // The names that go first are the ones to tell.
                        .map_err(|error| match error {
                            SecretError::Missing(purpose, _) => {
                                SecretError::Missing(purpose, first)
                            }
                            error => error,
                        }),
                    read => read,
                }
            }
            Some(MeshIdentity::WorkloadApi(socket)) => {
                let no_svid = |why: &str| SecretError::NoSvid(socket.clone(), why.to_owned());
                let data = self.svid.as_ref().map_err(|why| no_svid(why))?;
                let key = MESH_FILES[1][place];
                let bytes = data.get(key).ok_or_else(|| no_svid("it is incomplete"))?;
                Ok(Piece {
                    path: PathBuf::from(format!("SPIFFE Workload API {}/{key}", socket.display())),
                    bytes: Arc::clone(bytes),
                    readable_by_others: false,
                })
            }
        }
    }

    fn file(&mut self, purpose: Purpose, path: &Path) -> Result<Piece, SecretError> {
        self.watched.push(path.to_owned());
        Piece::read(purpose, path)
    }

    fn optional_file(
        &mut self,
        purpose: Purpose,
        path: Option<&Path>,
    ) -> Result<Option<Piece>, SecretError> {
        path.map(|path| self.file(purpose, path)).transpose()
    }

    fn pair(&mut self, certificate: &Path, key: &Path) -> Result<(Piece, Piece), SecretError> {
        // Both are watched even when the first cannot be read.
        let certificate = self.file(Purpose::Certificate, certificate);
        let key = self.file(Purpose::Key, key);
        Ok((certificate?, key?))
    }

    fn credential_pair(
        &mut self,
        tls: &ClientTls,
        name: &str,
    ) -> Result<(Piece, Piece), SecretError> {
        let credential = self.credential(tls, name, name)?;
        let (certificate, key) = (
            self.value(&credential, Purpose::Certificate, &["cert", "tls.crt"])?,
            self.value(&credential, Purpose::Key, &["key", "tls.key"])?,
        );
        let lacks = |wanted| SecretError::NoKeyInCredential {
            name: name.to_owned(),
            place: credential.place(),
            wanted,
        };
        Ok((
            certificate.ok_or_else(|| lacks("`tls.crt` or `cert`"))?,
            key.ok_or_else(|| lacks("`tls.key` or `key`"))?,
        ))
    }

    /// The CA of `NAME-cacert` where that exists, else of NAME itself.
    fn credential_trust(
        &mut self,
        tls: &ClientTls,
        name: &str,
    ) -> Result<(Option<Piece>, Option<Piece>), SecretError> {
        let separate = format!("{name}-cacert");
        let credential = match self.credential(tls, &separate, name) {
            Ok(found) => found,
            Err(SecretError::NoCredential { .. }) => self.credential(tls, name, name)?,
            Err(error) => return Err(error),
        };
        let authorities = self
            .value(&credential, Purpose::Authorities, &["cacert", "ca.crt"])?
            .ok_or_else(|| SecretError::NoKeyInCredential {
                name: name.to_owned(),
                place: credential.place(),
                wanted: "`ca.crt` or `cacert`, and there is no separate `-cacert` credential",
            })?;
        let revocation = self.value(&credential, Purpose::RevocationList, &["crl", "ca.crl"])?;
        Ok((Some(authorities), revocation))
    }

    /// The first credential of that name: client's namespace, the rule's, the
    /// root's; in each the values in memory, then the secrets directory; at
    /// last systemd's directory.
    fn credential(
        &mut self,
        tls: &ClientTls,
        name: &str,
        written: &str,
    ) -> Result<Credential, SecretError> {
        let plain = |text: &str| {
            !text.is_empty()
                && !text.starts_with('.')
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        if !plain(name) {
            return Err(SecretError::BadCredentialName(written.to_owned()));
        }
        let mut searched = Vec::new();
        let mut found = None;
        let own = Arc::<str>::from(self.namespace);
        let mut seen: Vec<&Arc<str>> = Vec::new();
        for namespace in std::iter::once(&own).chain(&tls.secret_namespaces) {
            if !plain(namespace) || seen.contains(&namespace) {
                continue;
            }
            seen.push(namespace);
            let key = (namespace.clone(), Arc::from(name));
            if let Some(data) = self.published.iter().find_map(|held| held.get(&key)) {
                let place = format!("{namespace}/{name}");
                found = found.or(Some(Credential::Memory(place, data.clone())));
            }
            if let Some(root) = &self.settings.directory {
                let directory = root.join(&**namespace).join(name);
                // A directory that appears in front of the one in use counts.
                self.watched.push(directory.clone());
                if found.is_none() && directory.is_dir() {
                    found = Some(Credential::Directory(directory.clone()));
                }
                searched.push(directory.display().to_string());
            }
        }
        if let Some(root) = &self.settings.credentials {
            let directory = root.join(name);
            let flat = root.join(format!("{name}_"));
            let any_flat = KEYS.iter().any(|key| with_suffix(&flat, key).exists());
            if found.is_none() && directory.is_dir() {
                found = Some(Credential::Directory(directory.clone()));
            } else if found.is_none() && any_flat {
                found = Some(Credential::Prefix(flat));
            }
            searched.push(directory.display().to_string());
        }
        if searched.is_empty() {
            searched.push("no place: set a secrets directory".to_owned());
        }
        found.ok_or_else(|| SecretError::NoCredential {
            name: written.to_owned(),
            searched: searched.join(", "),
        })
    }

    /// The first of the keys that the credential has.
    fn value(
        &mut self,
        credential: &Credential,
        purpose: Purpose,
        keys: &[&str],
    ) -> Result<Option<Piece>, SecretError> {
        for key in keys {
            let path = match credential {
                Credential::Memory(place, data) => {
                    let Some(bytes) = data.get(*key) else {
                        continue;
                    };
                    let path = PathBuf::from(format!("{place}/{key}"));
                    if bytes.is_empty() {
                        return Err(SecretError::Empty(purpose, path));
                    }
                    return Ok(Some(Piece {
                        path,
                        bytes: bytes.clone(),
                        readable_by_others: false,
                    }));
                }
                Credential::Directory(directory) => directory.join(key),
                Credential::Prefix(prefix) => with_suffix(prefix, key),
            };
            match self.file(purpose, &path) {
                Err(SecretError::Missing(..)) => {}
                read => return read.map(Some),
            }
        }
        Ok(None)
    }
}

const KEYS: [&str; 8] = [
    "cert", "key", "cacert", "crl", "tls.crt", "tls.key", "ca.crt", "ca.crl",
];

fn with_suffix(prefix: &Path, suffix: &str) -> PathBuf {
    let mut path = prefix.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// A credential that was found.
enum Credential {
    Memory(String, Arc<SecretData>),
    Directory(PathBuf),
    Prefix(PathBuf),
}

impl Credential {
    fn place(&self) -> String {
        match self {
            Self::Memory(place, _) => format!("Secret {place}"),
            Self::Directory(path) => path.display().to_string(),
            Self::Prefix(path) => format!("{}*", path.display()),
        }
    }
}

/// Looks at files without reading them; follows links, so that a swapped
/// directory link shows.
pub(super) fn fingerprint(paths: &[PathBuf]) -> Fingerprint {
    paths
        .iter()
        .map(|path| {
            let facts = fs::metadata(path).ok()?;
            Some((
                facts.dev(),
                facts.ino(),
                facts.len(),
                facts.mtime(),
                facts.mtime_nsec(),
            ))
        })
        .collect()
}
