//! The commands, one file each. What several of them need stands here.

pub(crate) mod bench;
pub(crate) mod build;
pub(crate) mod demo;
pub(crate) mod instructions;
pub(crate) mod lint;
pub(crate) mod package;
pub(crate) mod profile_guided;
pub(crate) mod run;
pub(crate) mod test;
pub(crate) mod vm_test;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use crate::failure::Failure;

/// Runs `command` with this terminal, and hands its exit code on.
fn pass_through(command: &mut Command) -> Result<ExitCode, Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .map_err(|e| Failure::io(format!("cannot start {program}"), &e))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Removes a folder with all that is in it, if it is there.
fn remove(directory: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::io(directory.display(), &error))
        }
        _ => Ok(()),
    }
}
