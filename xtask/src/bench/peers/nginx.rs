//! nginx with its stream module: a master and a worker process per core.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::super::certificates::SERVICE_NAME;
use super::Side;

/// Text of the configuration `file`, the program, and its arguments.
pub fn configure(side: &Side, file: &Path) -> (String, PathBuf, Vec<String>) {
    let directory = side.directory.display();
    let mut text = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\nworker_processes {};\n\
         worker_rlimit_nofile 65536;\npid {directory}/pid;\nerror_log {directory}/error.log warn;\n\
         events {{ worker_connections 16384; }}\nstream {{\n  proxy_timeout 1h;\n  proxy_half_close on;\n{}",
        side.workers,
        tls(side)
    );
    for (listen, to) in side.ports() {
        let ssl = if side.is_client { "" } else { " ssl" };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "  server {{ listen {}:{listen}{ssl}; proxy_pass {}:{to}; }}",
            side.listen_address(),
            side.to.0
        );
    }
    text.push_str("}\n");
    (text, "nginx".into(), vec!["-c".to_owned(), file.display().to_string()])
}

fn tls(side: &Side) -> String {
    let identity = &side.identity;
    let (certificate, key, authority) =
        (identity.certificate.display(), identity.key.display(), identity.authority.display());
    if side.is_client {
        format!(
            "  proxy_ssl on;\n  proxy_ssl_protocols TLSv1.3;\n  proxy_ssl_certificate {certificate};\n  \
             proxy_ssl_certificate_key {key};\n  proxy_ssl_trusted_certificate {authority};\n  \
             proxy_ssl_verify on;\n  proxy_ssl_name {SERVICE_NAME};\n"
        )
    } else {
        format!(
            "  ssl_protocols TLSv1.3;\n  ssl_certificate {certificate};\n  ssl_certificate_key {key};\n  \
             ssl_client_certificate {authority};\n  ssl_verify_client on;\n"
        )
    }
}
