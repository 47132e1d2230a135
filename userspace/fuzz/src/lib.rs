//! What the fuzz targets look at, compiled from its source: the whole `murmesh` crate would build the kernel
//! half and the TLS library with sanitizers, and take minutes instead of seconds.

#[path = "../../src/tunnel/frame/mod.rs"]
pub mod frame;
