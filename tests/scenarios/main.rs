//! What Murmesh promises, tried on real programs and a real kernel. One file per scenario. Needs root.

mod addresses;
mod agent_stop;
mod bench;
mod bulk;
mod check_and_status;
mod exemptions;
mod fortune;
mod half_close;
mod hostile_peers;
mod join;
mod lab;
mod local;
mod neighbours;
mod records;
mod refused;
mod reset;
mod server_first;
mod server_loss;
mod service_lifecycle;
mod side_by_side;
mod sidecar;
mod start_failures;
mod storm;
mod support;
mod unreachable;
mod wire;
