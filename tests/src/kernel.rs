//! What the kernel holds, seen through bpftool and `/proc` and not through
//! any code of ours.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::process::{Process, wait_for};
use crate::{Context, Lab, Result, ensure};

/// How long a process may take to come to rest.
const REST: Duration = Duration::from_secs(10);

fn bpftool(arguments: &[&str]) -> Result<Value> {
    let output = Command::new("bpftool")
        .arg("--json")
        .args(arguments)
        .output()
        .context("cannot run bpftool")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "bpftool {}: {text}{}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    if text.trim().is_empty() {
        return Ok(Value::Array(Vec::new()));
    }
    serde_json::from_str(&text).with_context(|| text.into_owned())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Programs attached to a cgroup: hook and program id.
pub fn attached(cgroup: &Path) -> Result<Vec<(String, u64)>> {
    let programs = bpftool(&["cgroup", "show", &cgroup.display().to_string()])?;
    Ok(list(&programs)
        .iter()
        .map(|program| {
            (
                program["attach_type"].as_str().unwrap_or("?").to_owned(),
                program["id"].as_u64().unwrap_or(0),
            )
        })
        .collect())
}

/// Ids of the hash maps that the programs attached to a cgroup use, by name.
/// Names are cut to fifteen characters by the kernel. Entries of other kinds
/// of map come neither nor go (arrays), or go with their socket.
pub fn maps(cgroup: &Path) -> Result<BTreeMap<String, u64>> {
    let mut maps = BTreeMap::new();
    for (_, program) in attached(cgroup)? {
        let info = bpftool(&["prog", "show", "id", &program.to_string()])?;
        for id in list(&info["map_ids"]).iter().filter_map(Value::as_u64) {
            let map = bpftool(&["map", "show", "id", &id.to_string()])?;
            let is_hash = map["type"]
                .as_str()
                .is_some_and(|kind| kind.contains("hash"));
            if let Some(name) = map["name"].as_str().filter(|_| is_hash) {
                maps.insert(name.to_owned(), id);
            }
        }
    }
    Ok(maps)
}

/// Whether there is a map of this id.
pub fn is_map(id: u64) -> Result<bool> {
    let maps = bpftool(&["map", "list"])?;
    Ok(list(&maps).iter().any(|map| map["id"].as_u64() == Some(id)))
}

/// Number of entries of a hash map.
pub fn entries(map: u64) -> Result<usize> {
    Ok(list(&bpftool(&["map", "dump", "id", &map.to_string()])?).len())
}

/// The first eight bytes of each value of a hash map, as a number.
pub fn values(map: u64) -> Result<Vec<u64>> {
    let dump = bpftool(&["map", "dump", "id", &map.to_string()])?;
    list(&dump)
        .iter()
        .map(|entry| {
            let bytes = list(&entry["value"]).iter().take(8).rev();
            let mut value = 0;
            for byte in bytes {
                let text = byte.as_str().context("a byte")?;
                let text = text.trim_start_matches("0x");
                value = value << 8 | u64::from_str_radix(text, 16)?;
            }
            Ok(value)
        })
        .collect()
}

/// Number of open descriptors of a process.
pub fn descriptors(pid: u32) -> Result<usize> {
    let folder = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&folder)
        .with_context(|| folder.clone())?
        .count())
}

/// The same once three looks in a row agree.
pub fn descriptors_at_rest(pid: u32) -> Result<usize> {
    let mut seen = Vec::new();
    wait_for("a process to come to rest", REST, || {
        std::thread::sleep(Duration::from_millis(50));
        seen.push(descriptors(pid)?);
        Ok(match seen.as_slice() {
            [.., a, b, c] if a == b && b == c => Some(*c),
            _ => None,
        })
    })
}

/// Resident memory of a process in bytes.
pub fn resident(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|rest| rest.split_whitespace().next());
    Ok(kilobytes.context("no VmRSS")?.parse::<u64>()? * 1024)
}

/// A program of somebody else on the clients' cgroup, which allows every
/// connect; gone when dropped.
pub struct Neutral {
    _holder: Process,
}

impl Neutral {
    /// Attaches it behind those that are there.
    pub fn attach(lab: &Lab) -> Result<Self> {
        let mut holder = lab
            .outsider("/usr/bin/python3")
            .args(["-I", "-u", "-c", NEUTRAL])
            .arg(lab.client_cgroup())
            .interactive()
            .start()?;
        holder.expect_line("attached")?;
        Ok(Self { _holder: holder })
    }
}

/// Loads `r0 = 1; exit` as a program of the hook connect4, links it to the
/// cgroup, and holds the link until its input ends (`union bpf_attr` of
/// linux/bpf.h).
const NEUTRAL: &str = r#"
import ctypes, os, platform, struct, sys
number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
libc = ctypes.CDLL(None, use_errno=True)

def bpf(command, attributes):
    buffer = ctypes.create_string_buffer(attributes, 128)
    result = libc.syscall(number, command, buffer, len(buffer))
    if result < 0:
        raise OSError(ctypes.get_errno(), "bpf command %d" % command)
    return result

code = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xb7, 0, 0, 1, 0x95, 0, 0, 0))
licence = ctypes.create_string_buffer(b"GPL")
SOCK_ADDR, CONNECT4 = 18, 10
program = bpf(5, struct.pack(
    "=IIQQIIQII16sII", SOCK_ADDR, 2, ctypes.addressof(code), ctypes.addressof(licence),
    0, 0, 0, 0, 0, b"neutral", 0, CONNECT4))
cgroup = os.open(sys.argv[1], os.O_RDONLY)
link = bpf(28, struct.pack("=IIII", program, cgroup, CONNECT4, 0))
print("attached")
sys.stdin.read()
"#;
