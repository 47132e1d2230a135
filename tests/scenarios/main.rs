//! What Murmesh promises, tried on real programs and a real kernel. One file per scenario. Needs root.

mod lab;
