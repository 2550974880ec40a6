//! Runs one long command and shows how it gets on: a spinner with the elapsed
//! time and the last line on a terminal, plain lines elsewhere.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::cargo::workspace_root;
use crate::failure::Failure;

/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(120);
/// How often a plain progress line is printed when standard error is no terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(15);
/// Lines of output shown when a step fails.
const TAIL: usize = 40;
/// Turning bar.
const FRAMES: [char; 4] = ['|', '/', '-', '\\'];

/// Runs `command` to its end; its whole output goes to a log file under
/// `target/xtask`, whose tail is shown on failure.
pub(crate) fn run(title: &str, command: &mut Command) -> Result<(), Failure> {
    let log = log_path(title)?;
    let mut file = File::create(&log).map_err(|e| Failure::io(log.display(), &e))?;
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| Failure::io(format!("cannot start {}", program(command)), &e))?;

    let (lines, received) = mpsc::channel();
    for stream in [
        child
            .stdout
            .take()
            .map(|s| Box::new(s) as Box<dyn Read + Send>),
        child
            .stderr
            .take()
            .map(|s| Box::new(s) as Box<dyn Read + Send>),
    ]
    .into_iter()
    .flatten()
    {
        let lines = lines.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                if lines
                    .send(String::from_utf8_lossy(&line).into_owned())
                    .is_err()
                {
                    return;
                }
            }
        });
    }
    drop(lines);

    let mut progress = Progress::start(title, started);
    let mut tail = Vec::new();
    loop {
        match received.recv_timeout(TICK) {
            Ok(line) => {
                writeln!(file, "{line}").map_err(|e| Failure::io(log.display(), &e))?;
                progress.line(&line);
                tail.push(line);
                if tail.len() > TAIL {
                    tail.remove(0);
                }
            }
            Err(RecvTimeoutError::Timeout) => progress.tick(),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child
        .wait()
        .map_err(|e| Failure::io(program(command), &e))?;
    progress.finish(status.success());
    if status.success() {
        return Ok(());
    }
    for line in &tail {
        eprintln!("    {line}");
    }
    Err(Failure::with_remedy(
        format!("{title} failed ({status})"),
        format!("the whole output is in {}", log.display()),
    ))
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn log_path(title: &str) -> Result<PathBuf, Failure> {
    let directory = workspace_root().join("target/xtask");
    fs::create_dir_all(&directory).map_err(|e| Failure::io(directory.display(), &e))?;
    Ok(directory.join(file_name(title)))
}

/// A file name made of the words of a title.
fn file_name(title: &str) -> String {
    let words: Vec<&str> = title
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    format!("{}.log", words.join("-"))
}

struct Progress {
    title: String,
    started: Instant,
    terminal: bool,
    frame: usize,
    last_line: String,
    last_print: Instant,
}

impl Progress {
    fn start(title: &str, started: Instant) -> Self {
        let terminal = io::stderr().is_terminal();
        if !terminal {
            eprintln!("{title} ...");
        }
        Self {
            title: title.to_owned(),
            started,
            terminal,
            frame: 0,
            last_line: String::new(),
            last_print: started,
        }
    }

    fn line(&mut self, line: &str) {
        let line = line.rsplit('\r').find(|part| !part.trim().is_empty());
        if let Some(line) = line {
            line.trim().clone_into(&mut self.last_line);
        }
        self.tick();
    }

    fn tick(&mut self) {
        let interval = if self.terminal { TICK } else { PLAIN_INTERVAL };
        if self.last_print.elapsed() < interval {
            return;
        }
        self.last_print = Instant::now();
        let elapsed = clock(self.started.elapsed());
        if self.terminal {
            self.frame = (self.frame + 1) % FRAMES.len();
            let text = format!(
                "{} {}  {elapsed}  {}",
                FRAMES[self.frame], self.title, self.last_line
            );
            eprint!("\r\x1b[K{}", clip(&text, terminal_width()));
            let _ = io::stderr().flush();
        } else {
            eprintln!("    {elapsed}  {}", clip(&self.last_line, 120));
        }
    }

    fn finish(&self, success: bool) {
        let elapsed = clock(self.started.elapsed());
        let verdict = if success { "done" } else { "FAILED" };
        if self.terminal {
            eprint!("\r\x1b[K");
        }
        eprintln!("{}: {verdict} in {elapsed}", self.title);
    }
}

/// Minutes and seconds.
pub(crate) fn clock(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

/// Width that a spinner line may take; from COLUMNS, which few shells export,
/// else the narrowest common terminal.
fn terminal_width() -> usize {
    std::env::var("COLUMNS")
        .ok()
        .and_then(|columns| columns.parse().ok())
        .unwrap_or(80)
}

fn clip(text: &str, width: usize) -> &str {
    match text.char_indices().nth(width.saturating_sub(1)) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn titles_become_file_names() {
        assert_eq!(
            file_name("building egress-agent (debug)"),
            "building-egress-agent-debug.log"
        );
    }

    #[test]
    fn clip_keeps_characters_whole() {
        assert_eq!(clip("äöü", 3), "äö");
        assert_eq!(clip("äöü", 9), "äöü");
    }

    #[test]
    fn clock_shows_minutes() {
        assert_eq!(clock(Duration::from_secs(61)), "1:01");
    }

    #[test]
    fn a_failing_step_names_its_log() {
        let failure = run(
            "test step that fails",
            Command::new("sh").args(["-c", "echo reason; exit 3"]),
        )
        .unwrap_err()
        .to_string();
        assert!(failure.contains("exit status: 3"), "{failure}");
        let log = log_path("test step that fails").unwrap();
        assert!(failure.contains(&log.display().to_string()), "{failure}");
        assert_eq!(fs::read_to_string(log).unwrap(), "reason\n");
    }
}
