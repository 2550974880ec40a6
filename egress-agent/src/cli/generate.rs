//! Completion scripts and manual pages, made from the two command lines.

use std::io;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::args::{Arguments, Program};
use super::output;
use crate::settings;

fn command(program: Program) -> clap::Command {
    match program {
        Program::Egressctl => Arguments::command(),
        Program::EgressAgent => settings::command::command(),
    }
}

/// Writes a completion script to standard output.
pub(super) fn completion(shell: Shell, program: Program) -> io::Result<()> {
    let mut command = command(program);
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    output::text(&String::from_utf8_lossy(&script))
}

/// Writes every page into `directory`, or that of `egressctl` to standard
/// output.
pub(super) fn manual(directory: Option<&Path>) -> io::Result<()> {
    if let Some(directory) = directory {
        std::fs::create_dir_all(directory)?;
        clap_mangen::generate_to(command(Program::Egressctl), directory)?;
        return clap_mangen::generate_to(command(Program::EgressAgent), directory);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command(Program::Egressctl)).render(&mut page)?;
    output::text(&String::from_utf8_lossy(&page))
}
