use crate::cli::config;

/// A configuration file: whatever is in it, it is taken or there is an error to print.
pub fn configuration(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    for daemon in ["agent", "server", "sidecar"] {
        match config::parse(text, daemon) {
            Ok(_) => {}
            Err(error) => assert!(!format!("{error:#}").is_empty()),
        }
    }
}
