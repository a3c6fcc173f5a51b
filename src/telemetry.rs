//! Logs: one line per event on standard error, for people or for machines.

use std::{
    env::VarError,
    io::{self, IsTerminal},
};

use tracing_subscriber::{
    EnvFilter,
    fmt::SubscriberBuilder,
    util::{SubscriberInitExt, TryInitError},
};

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object per line.
    #[default]
    Json,
    /// For reading in a terminal; coloured only there.
    Text,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A filter is not written as `level` or `target=level`, separated by commas.
    #[error("the log filter {filter:?} of {origin} is wrong: {reason}")]
    Filter {
        /// The text that was given.
        filter: String,
        /// Where it was given.
        origin: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The process has a subscriber already.
    #[error("logging was set up twice: {0}")]
    Twice(#[from] TryInitError),
}

/// Sends the events of this process to standard error, from now to its end.
///
/// `RUST_LOG` decides what is shown; where it is unset or empty, `default_filter` does (such as `info,kube=warn`).
///
/// # Errors
/// A filter that cannot be read, and a second call.
pub fn init(format: LogFormat, default_filter: &str) -> Result<(), TelemetryError> {
    #[expect(
        clippy::disallowed_methods,
        reason = "RUST_LOG is a convention of the logging library, not an option of ours"
    )]
    let variable = std::env::var(EnvFilter::DEFAULT_ENV);
    let builder =
        SubscriberBuilder::default().with_env_filter(filter(variable, default_filter)?).with_writer(io::stderr);
    match format {
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(false).finish().try_init()?,
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).finish().try_init()?,
    }
    Ok(())
}

fn filter(variable: Result<String, VarError>, default_filter: &str) -> Result<EnvFilter, TelemetryError> {
    let (text, origin) = match variable {
        Ok(text) if !text.trim().is_empty() => (text, EnvFilter::DEFAULT_ENV),
        Err(VarError::NotUnicode(text)) => (text.to_string_lossy().into_owned(), EnvFilter::DEFAULT_ENV),
        Ok(_) | Err(VarError::NotPresent) => (default_filter.to_owned(), "the program"),
    };
    match EnvFilter::builder().parse(&text) {
        Ok(filter) => Ok(filter),
        Err(error) => Err(TelemetryError::Filter { filter: text, origin, reason: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn the_formats_are_called_json_and_text() {
        for (name, format) in [("json", LogFormat::Json), ("text", LogFormat::Text)] {
            assert_eq!(LogFormat::from_str(name, false), Ok(format));
        }
    }

    #[test]
    fn the_variable_wins_unless_it_is_unset_or_empty() {
        for (variable, expected) in
            [(Ok("debug".to_owned()), "debug"), (Ok(" ".to_owned()), "warn"), (Err(VarError::NotPresent), "warn")]
        {
            assert_eq!(filter(variable, "warn").expect("a filter").to_string(), expected);
        }
    }

    #[test]
    fn a_wrong_filter_is_named() {
        let error = filter(Ok("info,=x=".to_owned()), "warn").expect_err("a wrong filter");
        assert!(error.to_string().starts_with(r#"the log filter "info,=x=" of RUST_LOG is wrong: "#), "{error}");
    }
}
