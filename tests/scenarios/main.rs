//! What Murmesh promises, tried on real programs and a real kernel. One file per scenario. Needs root.

mod addresses;
mod fortune;
mod half_close;
mod lab;
mod reset;
mod wire;
