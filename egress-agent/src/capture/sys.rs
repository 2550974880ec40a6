//! The system calls of this room that no library has a safe function for:
//! bpf(2) on maps from several threads at once, queries, and a socket option.
#![allow(unsafe_code, reason = "raw bpf(2) and getsockopt(2) calls")]

use std::collections::HashMap;
use std::ffi::CString;
use std::hash::Hash;
use std::io;
use std::marker::PhantomData;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;

const SO_NETNS_COOKIE: libc::c_int = 71;

/// The part of `union bpf_attr` that the calls on one element read.
#[repr(C)]
#[derive(Default)]
struct ElementAttributes {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

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

fn address<T>(value: *const T) -> u64 {
    value.expose_provenance() as u64
}

/// One bpf(2) call.
///
/// # Safety
/// `attributes` must be what `command` expects, and every pointer in it good
/// for the accesses that the command makes.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads and writes `size` bytes at `attributes`; the
    // rest is the caller's promise.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// A map by its descriptor. Unlike aya's types it can be written through a
/// shared reference, since the kernel does the locking.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    fd: OwnedFd,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    /// Takes the descriptor of a map whose keys and values have these types.
    pub(super) const fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            types: PhantomData,
        }
    }

    fn attributes(&self, key: &K, value: u64, flags: u64) -> ElementAttributes {
        ElementAttributes {
            map_fd: self.fd.as_raw_fd().cast_unsigned(),
            key: address(key),
            value,
            flags,
            ..ElementAttributes::default()
        }
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &K) -> io::Result<Option<V>> {
        self.read(BPF_MAP_LOOKUP_ELEM, key)
    }

    /// The value of a key, which is removed (hash maps, since Linux 5.14).
    pub(super) fn take(&self, key: &K) -> io::Result<Option<V>> {
        self.read(BPF_MAP_LOOKUP_AND_DELETE_ELEM, key)
    }

    fn read(&self, command: libc::c_long, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::uninit();
        let mut attributes = self.attributes(key, address(value.as_mut_ptr()), 0);
        // SAFETY: the kernel reads a key and writes a value, of the sizes that
        // the map was made with, which `new` promises to be those of the types.
        match unsafe { bpf(command, &mut attributes) } {
            // SAFETY: the kernel filled it, and any bytes are a valid `Pod`.
            Ok(_) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes or replaces an entry.
    pub(super) fn set(&self, key: &K, value: &V) -> io::Result<()> {
        self.update(key, value, 0)
    }

    /// Makes an entry, unless the key has one.
    pub(super) fn make(&self, key: &K, value: &V) -> io::Result<()> {
        const BPF_NOEXIST: u64 = 1;
        match self.update(key, value, BPF_NOEXIST) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            result => result,
        }
    }

    fn update(&self, key: &K, value: &V, flags: u64) -> io::Result<()> {
        let mut attributes = self.attributes(key, address(value), flags);
        // SAFETY: the kernel reads a key and a value of the map's sizes.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attributes) }.map(drop)
    }

    /// Removes an entry; false when there was none.
    pub(super) fn remove(&self, key: &K) -> io::Result<bool> {
        let mut attributes = self.attributes(key, 0, 0);
        // SAFETY: the kernel reads a key of the map's size.
        match unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut attributes) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All entries at some moment.
    pub(super) fn entries(&self) -> io::Result<HashMap<K, V>>
    where
        K: Eq + Hash,
    {
        let mut entries = HashMap::new();
        for key in self.keys()? {
            if let Some(value) = self.get(&key)? {
                entries.insert(key, value);
            }
        }
        Ok(entries)
    }

    /// All keys at some moment. While others write, a key may be missed; none
    /// is given that never was.
    pub(super) fn keys(&self) -> io::Result<Vec<K>> {
        // A key that is removed while it is the place to go on from starts the
        // walk anew, so a bound keeps a busy map from holding us for ever.
        const LIMIT: usize = 1 << 22;
        let mut keys: Vec<K> = Vec::new();
        while keys.len() < LIMIT {
            let from = keys.last().map_or(0, |key| address(key));
            let mut next = MaybeUninit::<K>::uninit();
            let mut attributes = ElementAttributes {
                map_fd: self.fd.as_raw_fd().cast_unsigned(),
                key: from,
                value: address(next.as_mut_ptr()),
                ..ElementAttributes::default()
            };
            // SAFETY: the kernel reads the last key (none when the pointer is
            // null) and writes the next one, both of the map's size.
            match unsafe { bpf(BPF_MAP_GET_NEXT_KEY, &mut attributes) } {
                // SAFETY: filled by the kernel.
                Ok(_) => keys.push(unsafe { next.assume_init() }),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(keys)
    }
}

/// A map with one value for each CPU and key.
#[derive(Debug)]
pub(super) struct PerCpu {
    fd: OwnedFd,
    cpus: usize,
}

impl PerCpu {
    /// Takes the descriptor of a per-CPU array of `u64`.
    pub(super) const fn new(fd: OwnedFd, cpus: usize) -> Self {
        Self { fd, cpus }
    }

    /// The sum over all CPUs of each of the first `N` entries.
    pub(super) fn sums<const N: usize>(&self) -> io::Result<[u64; N]> {
        let mut sums = [0; N];
        let mut values = vec![0_u64; self.cpus];
        for (index, sum) in (0_u32..).zip(&mut sums) {
            let mut attributes = ElementAttributes {
                map_fd: self.fd.as_raw_fd().cast_unsigned(),
                key: address(&raw const index),
                value: address(values.as_mut_ptr()),
                ..ElementAttributes::default()
            };
            // SAFETY: the kernel reads four bytes of key and writes eight bytes
            // for each possible CPU, which is the length of `values`.
            unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attributes) }?;
            *sum = values.iter().copied().fold(0, u64::wrapping_add);
        }
        Ok(sums)
    }
}

/// The ids of the programs that are attached to a cgroup at one hook, in the
/// order in which they run, those inherited from above included.
pub(super) fn attached(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
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

/// The part that `BPF_OBJ_GET_INFO_BY_FD` reads.
#[repr(C)]
#[derive(Default)]
struct InfoAttributes {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
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

/// The first part of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
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
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
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
pub(super) fn pinned(path: &Path) -> io::Result<Option<OwnedFd>> {
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
pub(super) fn link(
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
pub(super) fn replace_program(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = LinkAttributes {
        first_fd: link.as_raw_fd().cast_unsigned(),
        second_fd: program.as_raw_fd().cast_unsigned(),
        ..LinkAttributes::default()
    };
    // SAFETY: integers alone.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attributes) }.map(drop)
}

/// Fills `info` with what the kernel tells about an object.
fn info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attributes = InfoAttributes {
        bpf_fd: object.as_raw_fd().cast_unsigned(),
        info_len: u32::try_from(size_of::<T>()).map_err(io::Error::other)?,
        info: address(&raw const *info),
    };
    // SAFETY: the kernel writes at most `info_len` bytes, the size of `info`,
    // which is made of integers.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }.map(drop)
}

/// The id of the cgroup that a link attaches to; 0: that cgroup is gone.
pub(super) fn cgroup_of(link: BorrowedFd<'_>) -> io::Result<u64> {
    let mut found = CgroupLinkInfo::default();
    info(link, &mut found)?;
    Ok(found.cgroup_id)
}

/// The sizes of a map's keys and values.
pub(super) fn map_sizes(map: BorrowedFd<'_>) -> io::Result<(usize, usize)> {
    let mut found = MapInfo::default();
    info(map, &mut found)?;
    let size = |bytes: u32| usize::try_from(bytes).map_err(io::Error::other);
    Ok((size(found.key_size)?, size(found.value_size)?))
}

/// Marks a socket in a socket-storage map.
pub(super) fn mark_socket<V: Pod>(
    map: BorrowedFd<'_>,
    socket: BorrowedFd<'_>,
    value: &V,
) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    let mut attributes = ElementAttributes {
        map_fd: map.as_raw_fd().cast_unsigned(),
        key: address(&raw const fd),
        value: address(value),
        ..ElementAttributes::default()
    };
    // SAFETY: the kernel reads four bytes of key (the descriptor) and one
    // value of the size that the map was made with.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attributes) }.map(drop)
}

/// All-zero bytes as a value.
pub(super) const fn zeroed<T: Pod>() -> T {
    // SAFETY: any bytes are a valid `Pod`.
    unsafe { mem::zeroed() }
}

/// `SO_NETNS_COOKIE` of a socket (since Linux 5.14).
///
/// # Errors
/// What `getsockopt(2)` answers.
pub(super) fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length: libc::socklen_t = 8;
    // SAFETY: the kernel writes at most `length` bytes, the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}
