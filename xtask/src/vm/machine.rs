//! One run of a virtual machine under QEMU.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::kernel::Kernel;
use crate::failure::Failure;

/// Memory of the machine, in MiB: the image lives in it, unpacked.
const MEMORY: &str = "3072";
/// Boots `kernel` with `image` and hands each line of its console to `line`.
/// The console is kept in `log` as well. There is no network device.
///
/// Fails when QEMU cannot start, or the machine has not ended by the deadline.
pub(crate) fn run(
    kernel: &Kernel,
    image: &Path,
    log: &Path,
    deadline: Duration,
    mut line: impl FnMut(&str),
) -> Result<(), Failure> {
    let mut console = File::create(log).map_err(|e| Failure::io(log.display(), &e))?;
    let child = Command::new("qemu-system-x86_64")
        // Hardware acceleration is not to be had everywhere, and the programs
        // are checked and run in the same way without.
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
        .args(["-m", MEMORY, "-nic", "none", "-no-reboot"])
        .args(["-nographic", "-monitor", "none", "-serial", "stdio"])
        // Where others keep the processors busy, the emulated timer may be too
        // late for the kernel's own check of it, which would panic.
        .args(["-append", "console=ttyS0 quiet panic=-1 no_timer_check"])
        .arg("-kernel")
        .arg(kernel.image())
        .arg("-initrd")
        .arg(image)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|e| Failure::io("cannot start qemu-system-x86_64", &e))?;
    let mut child = Guard(child);
    let Some(output) = child.0.stdout.take() else {
        return Err(Failure::new("QEMU has no standard output"));
    };
    let (lines, received) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    let end = Instant::now() + deadline;
    loop {
        match received.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(text) => {
                writeln!(console, "{text}").map_err(|e| Failure::io(log.display(), &e))?;
                line(&text);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                return Err(Failure::with_remedy(
                    format!("the machine with Linux {} did not end", kernel.release),
                    format!("its console is in {}", log.display()),
                ));
            }
        }
    }
}

/// Ends the machine whatever happens.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
