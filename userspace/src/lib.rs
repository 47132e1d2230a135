//! Murmesh: transparent mutual TLS between plain Linux hosts, steered by eBPF.

pub mod discovery;
pub mod tunnel;
