//! stunnel: a thread for each connection.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::super::certificates::SERVICE_NAME;
use super::Side;

/// Text of the configuration `file`, the program, and its arguments.
pub fn configure(side: &Side, file: &Path) -> (String, PathBuf, Vec<String>) {
    let mut text = "foreground = yes\npid =\ndebug = warning\n\
                    socket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n"
        .to_owned();
    let checks =
        if side.is_client { format!("client = yes\ncheckHost = {SERVICE_NAME}\n") } else { String::new() };
    for (listen, to) in side.ports() {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "[port-{listen}]\naccept = {}:{listen}\nconnect = {}:{to}\nsslVersion = TLSv1.3\n\
             cert = {}\nkey = {}\nCAfile = {}\nverifyChain = yes\nrequireCert = yes\n{checks}",
            side.listen_address(),
            side.to.0,
            side.identity.certificate.display(),
            side.identity.key.display(),
            side.identity.authority.display()
        );
    }
    (text, "stunnel4".into(), vec![file.display().to_string()])
}
