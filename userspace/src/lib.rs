//! Murmesh: transparent mutual TLS between plain Linux hosts, steered by eBPF.

pub mod api;
pub mod catalog;
pub mod control;
pub mod identity;
pub mod tunnel;
