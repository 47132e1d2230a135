//! Compiles the gRPC interface and the kernel half.

use std::path::Path;

fn main() -> anyhow::Result<()> {
    compile_api()?;
    murmesh_ebpf_build::build_for_build_script(Path::new("../ebpf"))
}

/// `protox` reads the interface, so that no `protoc` is needed on the machine.
fn compile_api() -> anyhow::Result<()> {
    const INTERFACE: &str = "proto/murmesh.proto";
    println!("cargo:rerun-if-changed={INTERFACE}");
    let descriptors = protox::compile([INTERFACE], ["proto"])?;
    // What is shared by everybody who watches is not copied for each.
    tonic_prost_build::configure().bytes(".murmesh.v1.CatalogEvents").compile_fds(descriptors)?;
    Ok(())
}
