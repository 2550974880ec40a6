//! The map `NUMBERS`: which numbers stand for which names, kept beside the
//! maps that they are used in.

use std::collections::{HashMap, HashSet};

use egress_common::{NUMBER_OF_SCOPE, NUMBER_OF_SERVICE};

use super::control::Control;
use super::error::CaptureError;
use super::kernel::Kernel;
use crate::numbers::{Fingerprint, Known};

/// What a number stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Numbered {
    /// A service.
    Service,
    /// A namespace.
    Scope,
}

impl Numbered {
    const fn kind(self) -> u64 {
        (match self {
            Self::Service => NUMBER_OF_SERVICE,
            Self::Scope => NUMBER_OF_SCOPE,
        }) as u64
    }
}

const fn split(value: u64) -> (u64, u32) {
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
    let number = value as u32;
    (value >> 32, number)
}

impl Kernel {
    /// The numbers that were given out so far, by this agent or one before.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn known(&self, of: Numbered) -> Result<Known, CaptureError> {
        let failed = |error| CaptureError::map("NUMBERS", error);
        let mut numbers = HashMap::new();
        for name in self.maps.numbers.keys().map_err(failed)? {
            let value = self.maps.numbers.get(&name).map_err(failed)?;
            if let Some((kind, number)) = value.map(split)
                && kind == of.kind()
            {
                numbers.insert(name, number);
            }
        }
        Ok(Known::new(numbers))
    }

    /// Keeps the numbers in use, before anything is written with them. A number
    /// of a service that is not in use is forgotten once no connection counts
    /// under it any more; those of namespaces stay.
    ///
    /// # Errors
    /// When the map is full or cannot be written.
    pub fn keep_numbers(
        &self,
        of: Numbered,
        used: &[(Fingerprint, u32)],
    ) -> Result<(), CaptureError> {
        let failed = |error| CaptureError::map("NUMBERS", error);
        let control = &mut *self.control();
        for (name, number) in used {
            let value = (of.kind() << 32) | u64::from(*number);
            if control.numbers.get(name) != Some(&value) {
                self.maps.numbers.set(name, &value).map_err(failed)?;
                control.numbers.insert(*name, value);
            }
        }
        if of == Numbered::Scope {
            return Ok(());
        }
        control.unused.clear();
        let used: HashSet<&Fingerprint> = used.iter().map(|(name, _)| name).collect();
        let unused: Vec<(Fingerprint, u32)> = control
            .numbers
            .iter()
            .filter(|(name, _)| !used.contains(name))
            .map(|(name, value)| (*name, split(*value)))
            .filter(|(_, (kind, _))| *kind == of.kind())
            .map(|(name, (_, number))| (name, number))
            .collect();
        control.unused = unused;
        self.forget_unused(control)
    }

    /// The same for a change: numbers of services that came, and of services
    /// that went.
    ///
    /// # Errors
    /// When the map is full or cannot be written.
    pub fn change_numbers(
        &self,
        new: &[(Fingerprint, u32)],
        gone: &[(Fingerprint, u32)],
    ) -> Result<(), CaptureError> {
        let failed = |error| CaptureError::map("NUMBERS", error);
        let control = &mut *self.control();
        control.unused.extend_from_slice(gone);
        for (name, number) in new {
            control.unused.retain(|(unused, _)| unused != name);
            let value = (Numbered::Service.kind() << 32) | u64::from(*number);
            if control.numbers.get(name) != Some(&value) {
                self.maps.numbers.set(name, &value).map_err(failed)?;
                control.numbers.insert(*name, value);
            }
        }
        self.forget_unused(control)
    }

    /// Forgets unused numbers under which no connection counts any more.
    fn forget_unused(&self, control: &mut Control) -> Result<(), CaptureError> {
        let failed = |error| CaptureError::map("NUMBERS", error);
        for (name, number) in std::mem::take(&mut control.unused) {
            let counts = self
                .maps
                .direct
                .places
                .get(&number)
                .map_err(|error| CaptureError::map("PLACES", error))?;
            if counts.is_none() {
                self.maps.numbers.remove(&name).map_err(failed)?;
                control.numbers.remove(&name);
            } else {
                control.unused.push((name, number));
            }
        }
        Ok(())
    }
}
