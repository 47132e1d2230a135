//! HAProxy: one process with a thread per core.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::super::certificates::SERVICE_NAME;
use super::Side;

/// Text of the configuration `file`, the program, and its arguments.
pub fn configure(side: &Side, file: &Path) -> (String, PathBuf, Vec<String>) {
    let mut text = format!(
        "global\n  nbthread {}\n  maxconn 8192\n  ssl-default-bind-options ssl-min-ver TLSv1.3\n  \
         ssl-default-server-options ssl-min-ver TLSv1.3\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n",
        side.workers
    );
    let tls = format!(
        "ssl crt {} ca-file {} verify required",
        side.identity.both.display(),
        side.identity.authority.display()
    );
    let (bind_tls, server_tls) = if side.is_client {
        (String::new(), format!(" {tls} verifyhost {SERVICE_NAME} sni str({SERVICE_NAME})"))
    } else {
        (format!(" {tls}"), String::new())
    };
    for (listen, to) in side.ports() {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "listen port-{listen}\n  bind {}:{listen}{bind_tls}\n  server next {}:{to}{server_tls}\n",
            side.listen_address(),
            side.to.0
        );
    }
    (text, "haproxy".into(), vec!["-db".to_owned(), "-f".to_owned(), file.display().to_string()])
}
