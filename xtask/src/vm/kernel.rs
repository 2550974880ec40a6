//! Kernels as Debian packages them, unpacked beside the build and never
//! installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;

use crate::failure::Failure;
use crate::packages;
use crate::step;

/// A kernel line that the programs are tested on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Line {
    /// Linux 5.10, of Debian 11: older than the programs can be loaded on.
    #[value(name = "5.10")]
    V5_10,
    /// Linux 6.1, of Debian 12.
    #[value(name = "6.1")]
    V6_1,
    /// Linux 6.12, of Debian 13 and of Debian 12's updates.
    #[value(name = "6.12")]
    V6_12,
}

impl Line {
    /// All of them, oldest first.
    pub(crate) const ALL: [Self; 3] = [Self::V5_10, Self::V6_1, Self::V6_12];

    /// Whether the agent must refuse to start on it, and say why.
    pub(crate) fn is_too_old(self) -> bool {
        self == Self::V5_10
    }

    /// Its number, as `uname` begins.
    pub(crate) fn number(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    /// Packages that depend on the newest kernel of this line, under the names
    /// that Debian's releases give them.
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::V5_10 => &["linux-image-cloud-amd64"],
            Self::V6_1 => &["linux-image-cloud-amd64", "linux-image-6.1-cloud-amd64"],
            Self::V6_12 => &["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"],
        }
    }
}

/// Where apt looks for a kernel: in this system's own lists, or in those of
/// another release, which are kept beside the build.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn of(line: Line) -> Result<Self, Failure> {
        if line != Line::V5_10 {
            packages::refresh()?;
            return Ok(Self {
                options: Vec::new(),
            });
        }
        let folder = super::folder().join("bullseye");
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).map_err(|e| Failure::io(part.display(), &e))?;
        }
        let sources = folder.join("debian.sources");
        fs::write(&sources, BULLSEYE).map_err(|e| Failure::io(sources.display(), &e))?;
        let folder = folder.display();
        let apt = Self {
            options: [
                format!("Dir::Etc::SourceList={folder}/debian.sources"),
                "Dir::Etc::SourceParts=-".to_owned(),
                format!("Dir::State::Lists={folder}/lists"),
                format!("Dir::Cache={folder}/cache"),
            ]
            .into_iter()
            .flat_map(|option| ["-o".to_owned(), option])
            .collect(),
        };
        step::run(
            "refreshing the package lists of Debian 11",
            apt.command("apt-get").args(["-q", "update"]),
        )?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options);
        command
    }
}

/// Debian 11, for its kernel.
const BULLSEYE: &str = "\
Types: deb
URIs: http://deb.debian.org/debian
Suites: bullseye
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: bullseye-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
";

/// An unpacked kernel.
pub(crate) struct Kernel {
    /// As `uname -r` prints it.
    pub(crate) release: String,
    root: PathBuf,
}

impl Kernel {
    /// Finds the newest kernel of `line`, and fetches and unpacks it unless it
    /// is there. Fails when apt knows none, or the package is not as expected.
    pub(crate) fn prepare(line: Line) -> Result<Self, Failure> {
        let apt = Apt::of(line)?;
        let package = line
            .names()
            .iter()
            .find_map(|name| newest(&apt, name, line))
            .ok_or_else(|| {
                Failure::with_remedy(
                    format!("apt knows no cloud kernel of Linux {}", line.number()),
                    "run this on Debian 12 or 13 (amd64)",
                )
            })?;
        let release = package.trim_start_matches("linux-image-").to_owned();
        let root = super::folder().join(&release);
        let kernel = Self { release, root };
        if !kernel.image().exists() {
            kernel.fetch(&apt, &package)?;
        }
        Ok(kernel)
    }

    fn fetch(&self, apt: &Apt, package: &str) -> Result<(), Failure> {
        let fetched = self.root.with_extension("package");
        for directory in [&fetched, &self.root] {
            let _ = fs::remove_dir_all(directory);
        }
        fs::create_dir_all(&fetched).map_err(|e| Failure::io(fetched.display(), &e))?;
        step::run(
            &format!("fetching {package}"),
            apt.command("apt-get")
                .args(["-q", "download", package])
                .current_dir(&fetched),
        )?;
        let archive = first_file(&fetched).ok_or_else(|| {
            Failure::new(format!("apt-get download {package} has left no package"))
        })?;
        let unpacked = fetched.join("root");
        step::run(
            &format!("unpacking {package}"),
            Command::new("dpkg-deb")
                .arg("--extract")
                .args([&archive, &unpacked]),
        )?;
        fs::rename(&unpacked, &self.root).map_err(|e| Failure::io(self.root.display(), &e))?;
        let _ = fs::remove_dir_all(&fetched);
        if self.image().exists() {
            return Ok(());
        }
        Err(Failure::new(format!(
            "{package} holds no {}",
            self.image().display()
        )))
    }

    /// The compressed kernel.
    pub(crate) fn image(&self) -> PathBuf {
        self.root.join(format!("boot/vmlinuz-{}", self.release))
    }

    /// The bytes of a module, such as `drivers/net/veth`.
    pub(crate) fn module(&self, name: &str) -> Result<Vec<u8>, Failure> {
        // Debian 13 has merged /lib into /usr/lib.
        for prefix in ["lib", "usr/lib"] {
            let path = self
                .root
                .join(prefix)
                .join("modules")
                .join(&self.release)
                .join("kernel")
                .join(format!("{name}.ko"));
            if path.exists() {
                return fs::read(&path).map_err(|e| Failure::io(path.display(), &e));
            }
            let compressed = path.with_extension("ko.xz");
            if compressed.exists() {
                return unpack(&compressed);
            }
        }
        Err(Failure::new(format!(
            "Linux {} has no module {name}",
            self.release
        )))
    }
}

fn unpack(path: &Path) -> Result<Vec<u8>, Failure> {
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(path)
        .output()
        .map_err(|e| Failure::io("cannot start xz (package xz-utils)", &e))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Failure::new(format!(
        "xz cannot read {}: {}",
        path.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}

/// The kernel package of `line` that the package `name` depends on.
fn newest(apt: &Apt, name: &str, line: Line) -> Option<String> {
    let output = apt
        .command("apt-cache")
        .args(["depends", "--important", name])
        .output()
        .ok()?;
    dependency(&String::from_utf8_lossy(&output.stdout), line.number())
}

/// Picks it out of what `apt-cache depends` prints.
fn dependency(listing: &str, number: &str) -> Option<String> {
    listing.lines().find_map(|line| {
        let package = line.trim().strip_prefix("Depends: ")?;
        let release = package.strip_prefix("linux-image-")?;
        let rest = release.strip_prefix(number)?;
        rest.starts_with('.').then(|| package.to_owned())
    })
}

fn first_file(directory: &Path) -> Option<PathBuf> {
    fs::read_dir(directory)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_behind_a_meta_package_is_found() {
        let listing = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(
            dependency(listing, "6.1").as_deref(),
            Some("linux-image-6.1.0-56-cloud-amd64")
        );
        let listing = "linux-image-cloud-amd64\n  Depends: linux-image-6.12.9-cloud-amd64\n";
        assert_eq!(dependency(listing, "6.1"), None);
    }
}
