//! Log lines on standard error, with a filter that can be changed while the
//! agent runs.

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

use crate::settings::value::{LogFilter, LogFormat};

/// Changes the filter.
#[derive(Clone, Debug)]
pub struct LogControl(reload::Handle<EnvFilter, Registry>);

/// Starts logging. Lines of libraries (through `log`) are filtered alike.
///
/// # Errors
/// When logging was started before.
pub fn start(filter: &LogFilter, format: LogFormat) -> io::Result<LogControl> {
    let (filter, handle) = reload::Layer::new(EnvFilter::new(filter.as_str()));
    // The journal stamps lines itself.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let lines = fmt::layer().with_writer(io::stderr);
    let lines: Box<dyn Layer<_> + Send + Sync> = match format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text if journal => lines.with_ansi(false).without_time().boxed(),
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .map_err(io::Error::other)?;
    Ok(LogControl(handle))
}

impl LogControl {
    /// A filter that no subscriber uses. It must be kept with its layer.
    #[cfg(test)]
    pub(super) fn detached() -> (Self, reload::Layer<EnvFilter, Registry>) {
        let (layer, handle) = reload::Layer::new(EnvFilter::new("info"));
        (Self(handle), layer)
    }

    /// Puts another filter in force.
    pub fn set(&self, filter: &LogFilter) {
        // Fails only when the subscriber is gone, which it never is.
        if let Err(error) = self.0.reload(EnvFilter::new(filter.as_str())) {
            tracing::error!("cannot change the log filter: {error}");
        } else {
            tracing::info!(filter = filter.as_str(), "log filter changed");
        }
    }

    /// The filter in force.
    pub fn current(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }
}
