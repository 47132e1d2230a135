//! What an agent or a sidecar cannot do without, see `docs/security.md`.

use super::{AgentOptions, Capture};
use crate::{
    sandbox::{Capabilities, Capability, Needs},
    workload::Explicit,
};

/// Of the kernel half: to load programs and make maps; to attach them and set the mark of sockets; and to have the
/// verifier accept pointer arithmetic, without which it says "pointer arithmetic with it prohibited for !root".
const KERNEL_HALF: [Capability; 3] =
    [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON];

impl AgentOptions {
    /// What is needed from the start to the end, also by the agent that takes over.
    pub fn needs(&self) -> Needs {
        let mut needs = Needs {
            directories: vec![(self.data_dir.clone(), 0o700), (self.run_dir.clone(), 0o755)],
            files: vec![self.seal.path().to_owned(), self.checks_dir.clone()],
            ports: self.metrics.port().into_iter().chain([self.tunnel_port]).collect(),
            runs_programs: true,
            ..Needs::default()
        };
        match &self.capture {
            Capture::Kernel(kernel) => {
                needs.capabilities = Capabilities::from(KERNEL_HALF);
                needs.ports.push(kernel.outbound_port);
                // What is pinned is put aside beside where it is.
                needs.directories.extend(kernel.bpf_dir.parent().map(|parent| (parent.to_owned(), 0o700)));
                if kernel.workloads.iter().any(Explicit::is_of_program) {
                    needs.looks_into_processes = true;
                    needs.capabilities.insert(Capability::CAP_SYS_PTRACE);
                }
            }
            Capture::Sidecar(sidecar) => {
                needs.ports.extend(sidecar.iter().map(|sidecar| sidecar.listen.port()));
            }
        }
        needs
    }
}
