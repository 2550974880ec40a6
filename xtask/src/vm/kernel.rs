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

    /// The Debian release that has it for good, while it is on the mirrors.
    fn release(self) -> &'static str {
        match self {
            Self::V5_10 => "bullseye",
            Self::V6_1 => "bookworm",
            Self::V6_12 => "trixie",
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
    /// This system's own lists.
    fn own() -> Result<Self, Failure> {
        packages::refresh()?;
        Ok(Self {
            options: Vec::new(),
        })
    }

    /// The lists of a release.
    fn of(release: &str) -> Result<Self, Failure> {
        let folder = super::folder().join(release);
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).map_err(|e| Failure::io(part.display(), &e))?;
        }
        let sources = folder.join("debian.sources");
        fs::write(&sources, repositories(release))
            .map_err(|e| Failure::io(sources.display(), &e))?;
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
            &format!("refreshing the package lists of Debian's {release}"),
            apt.command("apt-get").args(["-q", "update"]),
        )?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options);
        command
    }

    /// The newest kernel package of a line, if it knows one.
    fn newest(&self, line: Line) -> Option<String> {
        line.names().iter().find_map(|name| {
            let output = self
                .command("apt-cache")
                .args(["depends", "--important", name])
                .output()
                .ok()?;
            dependency(&String::from_utf8_lossy(&output.stdout), line.number())
        })
    }
}

/// Sources of a Debian release, for its kernel.
fn repositories(release: &str) -> String {
    format!(
        "\
Types: deb
URIs: http://deb.debian.org/debian
Suites: {release}
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: {release}-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"
    )
}

/// An unpacked kernel.
pub(crate) struct Kernel {
    /// As `uname -r` prints it.
    pub(crate) release: String,
    root: PathBuf,
}

impl Kernel {
    /// Finds the newest kernel of `line`, and fetches and unpacks it unless it
    /// is there. Where that fails, one that an earlier run has unpacked will do.
    pub(crate) fn prepare(line: Line) -> Result<Self, Failure> {
        Self::newest(line).or_else(|failure| match unpacked(line) {
            Some(kernel) => {
                println!("{failure}");
                println!("going on with {}, of an earlier run", kernel.release);
                Ok(kernel)
            }
            None => Err(failure),
        })
    }

    fn newest(line: Line) -> Result<Self, Failure> {
        let (apt, package) = find(line)?;
        let kernel = Self::of(package.trim_start_matches("linux-image-"));
        if !kernel.image().exists() {
            kernel.fetch(&apt, &package)?;
        }
        Ok(kernel)
    }

    fn of(release: &str) -> Self {
        Self {
            release: release.to_owned(),
            root: super::folder().join(release),
        }
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

/// The newest kernel package of `line`: of this system's release, else of the
/// one that it came with.
fn find(line: Line) -> Result<(Apt, String), Failure> {
    if !line.is_too_old() {
        let own = Apt::own()?;
        if let Some(package) = own.newest(line) {
            return Ok((own, package));
        }
    }
    let apt = Apt::of(line.release())?;
    let package = apt.newest(line).ok_or_else(|| {
        Failure::with_remedy(
            format!(
                "neither this system nor Debian's {} has a cloud kernel of Linux {} any more",
                line.release(),
                line.number()
            ),
            "leave it out with --kernel",
        )
    })?;
    Ok((apt, package))
}

/// A kernel of `line` that an earlier run has unpacked.
fn unpacked(line: Line) -> Option<Kernel> {
    fs::read_dir(super::folder())
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_of(name, line.number()))
        .map(|release| Kernel::of(&release))
        .find(|kernel| kernel.image().exists())
}

/// Whether a kernel release is of the line `number`.
fn is_of(release: &str, number: &str) -> bool {
    release
        .strip_prefix(number)
        .is_some_and(|rest| rest.starts_with('.'))
}

/// Picks it out of what `apt-cache depends` prints.
fn dependency(listing: &str, number: &str) -> Option<String> {
    listing.lines().find_map(|line| {
        let package = line.trim().strip_prefix("Depends: ")?;
        let release = package.strip_prefix("linux-image-")?;
        is_of(release, number).then(|| package.to_owned())
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
