//! Murmesh: transparent mutual TLS between plain Linux hosts, steered by eBPF.

pub mod admission;
pub mod agent;
pub mod api;
pub mod bench;
pub mod bpf;
pub mod catalog;
pub mod cgroup;
pub mod check;
pub mod cli;
mod clock;
pub mod control;
pub mod discovery;
pub mod flows;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod http;
pub mod identity;
pub mod leftovers;
mod limited_log;
pub mod local;
pub mod log_writer;
pub mod metrics;
pub mod notify;
pub mod observe;
pub mod policy;
pub mod proxy;
mod recent;
pub mod sandbox;
pub mod seal;
pub mod server;
pub mod socket;
pub mod store;
pub mod tunnel;
pub mod workload;
