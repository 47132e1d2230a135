//! Measures what a path between two hosts costs: plain TCP, the mesh, a sidecar or any other proxy, side by side.
//!
//! The load generator is plain threads and blocking sockets, cheaper than everything it measures.

mod error;
mod figure;
mod load;
mod machine;
mod path;
mod processes;
mod progress;
pub mod report;
mod run;
pub mod serve;
mod statistics;
mod witness;

pub use error::BenchError;
pub use figure::{Figure, Unit, Workload};
pub use machine::Machine;
pub use path::{Kind, Path, Target};
pub use processes::Processes;
pub use report::Report;
pub use run::{Plan, run};
pub use serve::Service;
