//! Maps.

use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::marker::PhantomData;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use aya::Pod;

use super::{address, bpf, info};

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;

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

/// A map by its descriptor. Unlike aya's types it can be written through a
/// shared reference, since the kernel does the locking.
#[derive(Debug)]
pub(in crate::capture) struct Table<K, V> {
    fd: OwnedFd,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    /// Takes the descriptor of a map whose keys and values have these types.
    pub(in crate::capture) const fn new(fd: OwnedFd) -> Self {
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
    pub(in crate::capture) fn get(&self, key: &K) -> io::Result<Option<V>> {
        self.read(BPF_MAP_LOOKUP_ELEM, key)
    }

    /// The value of a key, which is removed (hash maps, since Linux 5.14).
    pub(in crate::capture) fn take(&self, key: &K) -> io::Result<Option<V>> {
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
    pub(in crate::capture) fn set(&self, key: &K, value: &V) -> io::Result<()> {
        self.update(key, value, 0)
    }

    /// Makes an entry, unless the key has one.
    pub(in crate::capture) fn make(&self, key: &K, value: &V) -> io::Result<()> {
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
    pub(in crate::capture) fn remove(&self, key: &K) -> io::Result<bool> {
        let mut attributes = self.attributes(key, 0, 0);
        // SAFETY: the kernel reads a key of the map's size.
        match unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut attributes) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All entries at some moment.
    pub(in crate::capture) fn entries(&self) -> io::Result<HashMap<K, V>>
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
    pub(in crate::capture) fn keys(&self) -> io::Result<Vec<K>> {
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
pub(in crate::capture) struct PerCpu {
    fd: OwnedFd,
    cpus: usize,
}

impl PerCpu {
    /// Takes the descriptor of a per-CPU array of `u64`.
    pub(in crate::capture) const fn new(fd: OwnedFd, cpus: usize) -> Self {
        Self { fd, cpus }
    }

    /// The sum over all CPUs of each of the first `N` entries.
    pub(in crate::capture) fn sums<const N: usize>(&self) -> io::Result<[u64; N]> {
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

/// The sizes of a map's keys and values.
pub(in crate::capture) fn map_sizes(map: BorrowedFd<'_>) -> io::Result<(usize, usize)> {
    let mut found = MapInfo::default();
    info(map, &mut found)?;
    let size = |bytes: u32| usize::try_from(bytes).map_err(io::Error::other);
    Ok((size(found.key_size)?, size(found.value_size)?))
}

/// Marks a socket in a socket-storage map.
pub(in crate::capture) fn mark_socket<V: Pod>(
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
pub(in crate::capture) const fn zeroed<T: Pod>() -> T {
    // SAFETY: any bytes are a valid `Pod`.
    unsafe { mem::zeroed() }
}
