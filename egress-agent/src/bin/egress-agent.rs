//! The daemon.

use std::io::Write;
use std::process::ExitCode;

use annotate_snippets::Renderer;
use egress_agent::lifecycle::agent;
use egress_agent::settings::{self, Sources};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code for wrong settings, as for a wrong command line.
const WRONG_SETTINGS: u8 = 2;

fn main() -> ExitCode {
    let matches = settings::command::command().get_matches();
    if matches.get_flag("print-settings") {
        let _ = std::io::stdout().write_all(settings::example().as_bytes());
        return ExitCode::SUCCESS;
    }
    // Names that are no UTF-8 are none of ours; values of ours must be.
    let environment = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?;
        Some((name, value.to_string_lossy().into_owned()))
    });
    let sources = Sources::new(&matches, environment);
    let loaded = match sources.load() {
        Ok(loaded) => loaded,
        Err(error) => {
            anstream::eprintln!("{}", error.render(&Renderer::styled()));
            return ExitCode::from(WRONG_SETTINGS);
        }
    };
    if matches.get_flag("check") {
        return agent::check(&loaded);
    }
    if matches.get_flag("cleanup") {
        return agent::clean_up(&loaded);
    }
    agent::run(&sources, &loaded)
}
