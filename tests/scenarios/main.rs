//! What Murmesh promises, tried on real programs and a real kernel. One file per scenario. Needs root.

mod addresses;
mod bulk;
mod fortune;
mod half_close;
mod lab;
mod local;
mod refused;
mod reset;
mod server_first;
mod slow_reader;
mod storm;
mod unreachable;
mod wire;
