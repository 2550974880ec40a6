//! Links of programs to a cgroup, and pins.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{address, bpf, info};

const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// The part of `union bpf_attr` that `BPF_PROG_QUERY` reads and writes.
#[repr(C)]
#[derive(Default)]
struct QueryAttributes {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
    prog_attach_flags: u64,
}

/// The part of `union bpf_attr` that `BPF_OBJ_PIN` and `BPF_OBJ_GET` read.
#[repr(C)]
#[derive(Default)]
struct PinAttributes {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The part that `BPF_LINK_CREATE` and `BPF_LINK_UPDATE` read: program and
/// target, or link and program.
#[repr(C)]
#[derive(Default)]
struct LinkAttributes {
    first_fd: u32,
    second_fd: u32,
    /// `attach_type` of a new link, `flags` of an update.
    third: u32,
    flags: u32,
}

/// `struct bpf_link_info` of a cgroup link.
#[repr(C)]
#[derive(Default)]
struct CgroupLinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    padding: u32,
    cgroup_id: u64,
    attach_type: u32,
    /// What other kinds of link have.
    others: [u32; 9],
}

fn text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Takes a descriptor that bpf(2) answered with.
fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel just made it for us; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives a map, program or link a name on a bpf file system.
pub(in crate::capture) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = text(path)?;
    let mut attributes = PinAttributes {
        pathname: address(path.as_ptr()),
        bpf_fd: object.as_raw_fd().cast_unsigned(),
        ..PinAttributes::default()
    };
    // SAFETY: the kernel reads a string that ends with a zero.
    unsafe { bpf(BPF_OBJ_PIN, &mut attributes) }.map(drop)
}

/// Opens what has a name on a bpf file system; `None`: there is nothing.
pub(in crate::capture) fn pinned(path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = text(path)?;
    let mut attributes = PinAttributes {
        pathname: address(path.as_ptr()),
        ..PinAttributes::default()
    };
    // SAFETY: as in `pin`.
    match unsafe { bpf(BPF_OBJ_GET, &mut attributes) } {
        Ok(fd) => owned(fd).map(Some),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Attaches a program to a cgroup, beside those that are there. It is detached
/// when the link has neither a descriptor nor a pin any more.
pub(in crate::capture) fn link(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    // Flags 0: links on a cgroup always allow others beside them.
    let mut attributes = LinkAttributes {
        first_fd: program.as_raw_fd().cast_unsigned(),
        second_fd: cgroup.as_raw_fd().cast_unsigned(),
        third: attach_type,
        flags: 0,
    };
    // SAFETY: integers alone.
    unsafe { bpf(BPF_LINK_CREATE, &mut attributes) }.and_then(owned)
}

/// Puts another program behind a live link: no connection sees neither.
pub(in crate::capture) fn replace_program(
    link: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut attributes = LinkAttributes {
        first_fd: link.as_raw_fd().cast_unsigned(),
        second_fd: program.as_raw_fd().cast_unsigned(),
        ..LinkAttributes::default()
    };
    // SAFETY: integers alone.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attributes) }.map(drop)
}

/// Detaches the program of a link, whoever else has it open (since Linux 5.9).
pub(in crate::capture) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = LinkAttributes {
        first_fd: link.as_raw_fd().cast_unsigned(),
        ..LinkAttributes::default()
    };
    // SAFETY: integers alone.
    unsafe { bpf(BPF_LINK_DETACH, &mut attributes) }.map(drop)
}

/// The id of the cgroup that a link attaches to; 0: that cgroup is gone.
pub(in crate::capture) fn cgroup_of(link: BorrowedFd<'_>) -> io::Result<u64> {
    let mut found = CgroupLinkInfo::default();
    info(link, &mut found)?;
    Ok(found.cgroup_id)
}

/// The ids of the programs that are attached to a cgroup at one hook, in the
/// order in which they run, those inherited from above included.
pub(in crate::capture) fn attached(
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<Vec<u32>> {
    const BPF_F_QUERY_EFFECTIVE: u32 = 1;
    // The kernel attaches at most 64 programs to one hook of one cgroup
    // (BPF_CGROUP_MAX_PROGS); this leaves room for several levels.
    const MAX: u16 = 512;
    let mut ids = [0_u32; MAX as usize];
    let mut attributes = QueryAttributes {
        target_fd: cgroup.as_raw_fd().cast_unsigned(),
        attach_type,
        prog_ids: address(ids.as_mut_ptr()),
        query_flags: BPF_F_QUERY_EFFECTIVE,
        prog_cnt: u32::from(MAX),
        ..QueryAttributes::default()
    };
    // SAFETY: the kernel writes at most `prog_cnt` ids.
    unsafe { bpf(BPF_PROG_QUERY, &mut attributes) }?;
    let count = usize::try_from(attributes.prog_cnt).unwrap_or(0);
    Ok(ids[..count.min(ids.len())].to_vec())
}
