//! Certificates for the peers: ECDSA P-256, as Murmesh has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Name in the certificate of the service's side, which the client's side requires.
pub const SERVICE_NAME: &str = "service.bench.invalid";

/// Files of one side.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Certificate, PEM.
    pub certificate: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// Both in one file, certificate first.
    pub both: PathBuf,
    /// Whom to believe, PEM.
    pub authority: PathBuf,
}

/// Makes an authority and two certificates in `directory`: the client's side and the service's.
pub fn make(directory: &Path) -> Result<(Identity, Identity)> {
    let authority = (directory.join("authority.pem"), directory.join("authority.key"));
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=bench authority",
        "-out",
        text(&authority.0)?,
        "-keyout",
        text(&authority.1)?,
    ])?;
    let client = issue(directory, &authority, "client.bench.invalid")?;
    Ok((client, issue(directory, &authority, SERVICE_NAME)?))
}

fn issue(directory: &Path, authority: &(PathBuf, PathBuf), name: &str) -> Result<Identity> {
    let file = |extension: &str| directory.join(format!("{name}.{extension}"));
    let (certificate, key, both) = (file("crt"), file("key"), file("pem"));
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
        "-subj",
        &format!("/CN={name}"),
        "-addext",
        &format!("subjectAltName=DNS:{name}"),
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-addext",
        "extendedKeyUsage=serverAuth,clientAuth",
        "-CA",
        text(&authority.0)?,
        "-CAkey",
        text(&authority.1)?,
        "-out",
        text(&certificate)?,
        "-keyout",
        text(&key)?,
    ])?;
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("reading {}", path.display()));
    fs::write(&both, read(&certificate)? + &read(&key)?)?;
    Ok(Identity { certificate, key, both, authority: authority.0.clone() })
}

fn openssl(arguments: &[&str]) -> Result<()> {
    let output = Command::new("openssl")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("starting openssl (Debian's package openssl)")?;
    if !output.status.success() {
        bail!("openssl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is no text", path.display()))
}
