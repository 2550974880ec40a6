//! The image that the machine boots: busybox, the tests, what they call, and
//! an init that runs them and switches the machine off.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::kernel::Kernel;
use crate::failure::Failure;
use crate::host;

/// A test program, and the folder of the workspace that it runs in.
pub(crate) struct Suite {
    /// Its name, as cargo has it.
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    /// Tests that run at the same time.
    pub(crate) threads: u32,
}

/// Programs of this system that the lab and its tests call.
const PROGRAMS: [&str; 14] = [
    "bash", "bpftool", "curl", "dnsmasq", "ip", "mount", "nginx", "nsenter", "python3", "setpriv",
    "setsid", "ss", "umount", "unshare",
];

/// Modules that the kernels do not have built in.
const MODULES: [&str; 2] = ["drivers/net/veth", "drivers/net/dummy"];

/// Line that ends the test results of the program `NAME`: `VM end NAME STATUS`.
pub(crate) const END: &str = "VM end ";
/// Line with what the agent says where there is no test to run: why it does not
/// start.
pub(crate) const SAID: &str = "VM said ";
/// Line that tells that user space has come up: `VM up SECONDS`.
pub(crate) const UP: &str = "VM up ";
/// The last line.
pub(crate) const DONE: &str = "VM done";

/// Writes the image of `suites` for `kernel`, with the agent's programs from
/// `binaries` and the `helpers` of the tests in their own places, and gives its
/// path.
pub(crate) fn build(
    kernel: &Kernel,
    suites: &[Suite],
    helpers: &[PathBuf],
    binaries: &Path,
    filter: Option<&str>,
) -> Result<PathBuf, Failure> {
    let folder = super::folder().join(format!("{}-image", kernel.release));
    let _ = fs::remove_dir_all(&folder);
    let root = Root(folder.join("root"));
    for directory in [
        "bin",
        "dev",
        "etc/ssl/certs",
        "proc",
        "root",
        "run",
        "sys",
        "tests/bin",
        "tmp",
        "usr/bin",
        "usr/sbin",
        "var/lib/nginx",
        "var/log/nginx",
    ] {
        root.directory(directory)?;
    }
    symlink("bin", root.0.join("sbin")).map_err(|e| Failure::io("sbin", &e))?;
    root.program(&program("busybox")?, "bin/busybox")?;
    for name in PROGRAMS {
        root.program(&program(name)?, &format!("usr/bin/{name}"))?;
    }
    python(&root)?;
    for name in ["egress-agent", "egressctl"] {
        root.program(&binaries.join(name), &format!("tests/bin/{name}"))?;
    }
    for suite in suites {
        root.program(&suite.program, &format!("tests/{}", suite.name))?;
    }
    for helper in helpers {
        let place = helper.strip_prefix("/").unwrap_or(helper);
        if let Some(folder) = place.parent() {
            root.directory(&folder.display().to_string())?;
        }
        root.program(helper, &place.display().to_string())?;
    }
    let mut load = String::new();
    for module in MODULES {
        let name = module.rsplit('/').next().unwrap_or(module);
        root.write(&format!("{name}.ko"), &kernel.module(module)?)?;
        load.push_str(&format!("insmod /{name}.ko\n"));
    }
    root.write("etc/passwd", b"root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\nwww-data:x:33:33::/:/bin/sh\n")?;
    root.write(
        "etc/group",
        b"root:x:0:\nnogroup:x:65534:\nwww-data:x:33:\n",
    )?;
    root.write("etc/hosts", b"127.0.0.1 localhost\n::1 localhost\n")?;
    root.write("etc/resolv.conf", b"")?;
    let roots = "etc/ssl/certs/ca-certificates.crt";
    let bundle = fs::read(Path::new("/").join(roots)).map_err(|e| Failure::io(roots, &e))?;
    root.write(roots, &bundle)?;
    root.write("etc/nsswitch.conf", b"hosts: files dns\n")?;
    root.write("init", init(suites, &load, filter).as_bytes())?;
    root.executable("init")?;
    root.archive(&folder.join("initramfs"))
}

/// What the machine runs first, and all that it runs. Busybox fills in only
/// what is not there as a program: its shell would take its own applets, which
/// know fewer options.
fn init(suites: &[Suite], load: &str, filter: Option<&str>) -> String {
    let mut script = String::from(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         for p in /usr/bin/*; do ln -sf $p /bin/; done\n\
         ln -sf bash /bin/sh\n\
         export PATH=/usr/bin:/bin HOME=/root EGRESS_BIN_DIR=/tests/bin RUST_LIB_BACKTRACE=0\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sys /sys\n\
         mount -t devtmpfs dev /dev\n\
         mkdir -p /dev/pts /dev/shm\n\
         mount -t devpts pts /dev/pts\n\
         mount -t tmpfs shm /dev/shm\n\
         mount -t tmpfs tmp /tmp\n\
         mount -t tmpfs run /run\n\
         mount -t cgroup2 cgroup /sys/fs/cgroup\n\
         mount -t bpf bpf /sys/fs/bpf\n\
         ip link set lo up\n",
    );
    script.push_str(load);
    script.push_str(&format!(
        "echo\necho \"{UP}$(cut -d' ' -f1 /proc/uptime)\"\ncd /tests\n"
    ));
    for suite in suites {
        let Suite { name, threads, .. } = suite;
        let filter = filter
            .map(|f| format!(" '{}'", f.replace('\'', "")))
            .unwrap_or_default();
        script.push_str(&format!(
            "echo \"VM suite {name}\"\n/tests/{name} --test-threads {threads} --skip slow_{filter}\necho \"{END}{name} $?\"\n"
        ));
        if name == "kernel" {
            // The counts, which a passing test keeps to itself.
            script.push_str("/tests/kernel the_verifier_is_far_from_its_limit --nocapture\n");
        }
    }
    if suites.is_empty() {
        script.push_str(&format!(
            "mkdir /tmp/policy\necho \"{SAID}$(/tests/bin/egress-agent --policy /tmp/policy \
             --state-dir /tmp/state --metrics off 2>&1 | tail -n 1)\"\n"
        ));
    }
    script.push_str(&format!("echo \"{DONE}\"\npoweroff -f\n"));
    script
}

/// Python's own library, without its tests.
fn python(root: &Root) -> Result<(), Failure> {
    let output = Command::new(program("python3")?)
        .args([
            "-c",
            "import sysconfig; print(sysconfig.get_path('stdlib'))",
        ])
        .output()
        .map_err(|e| Failure::io("cannot start python3", &e))?;
    let library = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if !library.is_dir() {
        return Err(Failure::new("python3 does not tell where its library is"));
    }
    root.tree(
        &library,
        &[
            "test",
            "idlelib",
            "tkinter",
            "ensurepip",
            "lib2to3",
            "dist-packages",
            "site-packages",
        ],
    )
}

/// The system's own program, which is what the lab calls, before one that
/// stands earlier on the PATH.
fn program(name: &str) -> Result<PathBuf, Failure> {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.is_file())
        .or_else(|| host::find_program(name))
        .ok_or_else(|| Failure::new(format!("{name} is not installed")))
}

/// The folder that becomes the image's root.
struct Root(PathBuf);

impl Root {
    fn directory(&self, path: &str) -> Result<(), Failure> {
        fs::create_dir_all(self.0.join(path)).map_err(|e| Failure::io(path, &e))
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<(), Failure> {
        fs::write(self.0.join(path), bytes).map_err(|e| Failure::io(path, &e))
    }

    fn executable(&self, path: &str) -> Result<(), Failure> {
        fs::set_permissions(self.0.join(path), fs::Permissions::from_mode(0o755))
            .map_err(|e| Failure::io(path, &e))
    }

    /// Copies a program with the libraries that its loader names.
    fn program(&self, from: &Path, to: &str) -> Result<(), Failure> {
        let target = self.0.join(to);
        fs::copy(from, &target).map_err(|e| Failure::io(from.display(), &e))?;
        // Debug information is most of a file that lives in memory there; one
        // that cannot be stripped is only longer.
        let _ = Command::new("strip")
            .arg("--strip-debug")
            .arg(&target)
            .stderr(Stdio::null())
            .status();
        self.libraries(from)
    }

    /// A program that is no dynamic executable has none.
    fn libraries(&self, of: &Path) -> Result<(), Failure> {
        let output = Command::new("ldd")
            .arg(of)
            .stderr(Stdio::null())
            .output()
            .map_err(|e| Failure::io("cannot start ldd", &e))?;
        let listing = String::from_utf8_lossy(&output.stdout);
        for library in listing
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
        {
            let library = Path::new(library.trim_end_matches(':'));
            let target = self.0.join(library.strip_prefix("/").unwrap_or(library));
            if target.exists() || !library.is_file() {
                continue;
            }
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent).map_err(|e| Failure::io(parent.display(), &e))?;
            }
            fs::copy(library, &target).map_err(|e| Failure::io(library.display(), &e))?;
        }
        Ok(())
    }

    /// Copies a folder to the same place, but for what is named `without`.
    fn tree(&self, from: &Path, without: &[&str]) -> Result<(), Failure> {
        let target = self.0.join(from.strip_prefix("/").unwrap_or(from));
        fs::create_dir_all(&target).map_err(|e| Failure::io(target.display(), &e))?;
        let entries = fs::read_dir(from).map_err(|e| Failure::io(from.display(), &e))?;
        for entry in entries.flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if without.iter().any(|left_out| name == *left_out) {
                continue;
            }
            if path.is_dir() {
                self.tree(&path, without)?;
            } else if path.is_file() {
                fs::copy(&path, target.join(&name)).map_err(|e| Failure::io(path.display(), &e))?;
                if path.extension().is_some_and(|extension| extension == "so") {
                    self.libraries(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Packs it all as the kernel reads it (`newc`), not compressed: unpacking
    /// takes longer than reading.
    fn archive(&self, to: &Path) -> Result<PathBuf, Failure> {
        let file = fs::File::create(to).map_err(|e| Failure::io(to.display(), &e))?;
        let status = Command::new("sh")
            .args(["-c", "busybox find . | busybox cpio -o -H newc"])
            .current_dir(&self.0)
            .stdout(file)
            .stderr(Stdio::null())
            .status()
            .map_err(|e| Failure::io("cannot start sh", &e))?;
        if !status.success() {
            return Err(Failure::new(format!("busybox cpio failed ({status})")));
        }
        let _ = fs::remove_dir_all(&self.0);
        Ok(to.to_owned())
    }
}
