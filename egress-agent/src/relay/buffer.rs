//! Buffers of a worker: taken when there is something to read, given back
//! when all of it is written, so that an idle connection holds none.

use std::cell::RefCell;

use super::splice::Pipe;

/// A first read; most messages fit.
const SMALL: usize = 16 * 1024;
/// Once a read fills a small one: fewer system calls for each byte.
const LARGE: usize = 128 * 1024;
/// Spare buffers kept, in bytes for each class.
const SPARE: usize = 2 * 1024 * 1024;
/// Spare pipes kept; each is two descriptors.
const SPARE_PIPES: usize = 16;

/// Size class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Class {
    #[default]
    Small,
    Large,
}

impl Class {
    pub(super) const fn size(self) -> usize {
        match self {
            Self::Small => SMALL,
            Self::Large => LARGE,
        }
    }
}

/// Spare buffers of a worker.
#[derive(Debug, Default)]
pub struct Buffers {
    small: RefCell<Vec<Box<[u8]>>>,
    large: RefCell<Vec<Box<[u8]>>>,
    pipes: RefCell<Vec<Pipe>>,
}

impl Buffers {
    fn spare(&self, class: Class) -> &RefCell<Vec<Box<[u8]>>> {
        match class {
            Class::Small => &self.small,
            Class::Large => &self.large,
        }
    }

    pub(super) fn take(&self, class: Class) -> Box<[u8]> {
        let spare = self.spare(class).borrow_mut().pop();
        spare.unwrap_or_else(|| vec![0; class.size()].into_boxed_slice())
    }

    pub(super) fn give_back(&self, buffer: Box<[u8]>) {
        let class = if buffer.len() == SMALL {
            Class::Small
        } else {
            Class::Large
        };
        let mut spare = self.spare(class).borrow_mut();
        if spare.len() * class.size() < SPARE {
            spare.push(buffer);
        }
    }

    /// An empty pipe; `None` when there are no descriptors for one.
    pub(super) fn take_pipe(&self) -> Option<Pipe> {
        let spare = self.pipes.borrow_mut().pop();
        spare.or_else(|| Pipe::new().ok())
    }

    /// A pipe with something in it is closed.
    pub(super) fn give_back_pipe(&self, pipe: Pipe) {
        let mut spare = self.pipes.borrow_mut();
        if pipe.is_empty() && spare.len() < SPARE_PIPES {
            spare.push(pipe);
        }
    }

    /// Spare buffers, for tests.
    #[cfg(test)]
    pub(super) fn spare_count(&self) -> usize {
        self.small.borrow().len() + self.large.borrow().len()
    }
}
