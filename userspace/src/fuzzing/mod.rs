//! Fuzz targets: everything that reads bytes which somebody else made, as functions that panic where a claim does not
//! hold. Unit tests run them over their seeds and changed ones; `userspace/fuzz` has cargo-fuzz run them for long.

mod catalog_event;
mod configuration;
mod join_token;
mod names;
mod sealed_file;
#[cfg(test)]
mod tests;
mod tunnel_frame;

pub use catalog_event::catalog_event;
pub use configuration::configuration;
pub use join_token::join_token;
pub use names::names;
pub use sealed_file::sealed_file;
pub use tunnel_frame::tunnel_frame;

pub use crate::server::fuzzing::api_request;
pub use crate::tunnel::fuzzing::tunnel_session;
