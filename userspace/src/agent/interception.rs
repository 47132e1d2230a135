//! The kernel half as the agent holds it: attached, with its maps and messages handed out once.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context;
use murmesh_common::{ListenerChange, Settings};
use tokio::{sync::mpsc, task::JoinHandle};
use tracing::{info, warn};

use super::{observe, takeover::Claim};
use crate::{
    bpf::{self, BpfError, Hook, KernelHalf, KernelVerdict, LoadOptions, Pins, PolicyMaps, Programs},
    cgroup,
    policy::compile::Room,
    workload::Explicit,
};

/// How connections are intercepted.
#[derive(Debug, Clone)]
pub struct InterceptionOptions {
    /// cgroup v2 directory: processes in it and below are intercepted.
    pub cgroup: PathBuf,
    /// Where links and maps are pinned.
    pub bpf_dir: PathBuf,
    /// `SO_MARK` of the agent's own sockets.
    pub mark: u32,
    /// Loopback port that connections are redirected to.
    pub outbound_port: u16,
    /// While no agent runs, connections to services of the mesh that are not strict go on in clear.
    pub fail_open: bool,
    /// Sizes of the maps.
    pub room: Room,
    /// Workloads that the operator defines.
    pub workloads: Vec<Explicit>,
}

/// The attached kernel half.
pub struct Interception {
    /// The watchdog repairs it.
    half: Arc<Mutex<KernelHalf>>,
    options: InterceptionOptions,
    pins: Pins,
    log: JoinHandle<()>,
}

impl Interception {
    /// Loads and attaches the programs, or puts them in the place of those of the agent that is taken over. What is in
    /// their maps before any is attached is up to `fill`.
    ///
    /// # Errors
    /// The kernel lacks something, rights are missing, or this process is outside of the cgroup: the hooks must
    /// run for the agent's own sockets too.
    pub fn attach(
        options: &InterceptionOptions,
        take_over: Option<&Claim>,
        fill: impl FnOnce(PolicyMaps),
    ) -> anyhow::Result<Self> {
        let own = cgroup::own(&cgroup::root()?)?;
        anyhow::ensure!(
            own.starts_with(&options.cgroup),
            "this agent runs in cgroup {}, outside of {}: start it inside (Slice= of its unit), or choose a --cgroup above it",
            own.display(),
            options.cgroup.display()
        );
        let netns_cookie = cgroup::netns_cookie()
            .context("this kernel does not tell network namespaces apart (5.14 does)")?;
        let settings = Settings {
            netns_cookie,
            mark: options.mark,
            outbound_port: options.outbound_port.to_be(),
            fail_open: u16::from(options.fail_open),
        };
        let pins = Pins::new(&options.bpf_dir);
        let agents_cgroup = cgroup::id(&own)?;
        let load = LoadOptions {
            pins: pins.clone(),
            settings,
            agents_cgroup,
            room: options.room,
            take_over: take_over.is_some(),
        };
        let mut half = KernelHalf::load(&load).map_err(|error| explain(error, &options.cgroup))?;
        // Whatever may fail comes before attaching, so that nothing is left half-way.
        let log = bpf::forward_log(&mut half)?;
        match take_over {
            Some(claim) => half.take_over(fill, || claim.is_refused()),
            None => half.attach(&options.cgroup, fill),
        }
        .map_err(|error| explain(error, &options.cgroup))?;
        info!(cgroup = %options.cgroup.display(), pins = %options.bpf_dir.display(), "hooks attached");
        if options.fail_open {
            warn!("--fail-open: whenever this agent does not run, what is not strict goes in clear");
        }
        let half = Arc::new(Mutex::new(half));
        Ok(Self { half, options: options.clone(), pins, log })
    }

    /// Takes the hooks off and removes every pin, but for what keeps strict services of this host closed: true if there
    /// are some.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn detach(self) -> anyhow::Result<bool> {
        self.log.abort();
        Ok(self.locked().detach()?)
    }

    /// Leaves everything to the agent that has taken over.
    pub fn leave(self) {
        self.locked().leave();
    }

    /// Takes nothing over: the agent that runs goes on.
    pub fn give_up(self) {
        self.locked().give_up();
    }

    /// Makes final what was taken over.
    ///
    /// # Errors
    /// A pin cannot be renamed.
    pub fn settle(&self) -> anyhow::Result<()> {
        Ok(self.locked().settle()?)
    }

    /// The programs, to be put in place again.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn programs(&self) -> anyhow::Result<Programs> {
        Ok(self.locked().programs()?)
    }

    /// The maps that say who may connect to what, and what is redirected; once.
    ///
    /// # Errors
    /// They are taken already.
    pub fn take_policy(&self) -> anyhow::Result<PolicyMaps> {
        Ok(self.locked().take_policy()?)
    }

    /// Listeners that open and close, once.
    ///
    /// # Errors
    /// They are taken already.
    pub fn listener_events(&self) -> anyhow::Result<mpsc::Receiver<(ListenerChange, u64)>> {
        Ok(bpf::listener_events(&mut self.locked())?)
    }

    /// What the kernel half tells of its verdicts, once.
    ///
    /// # Errors
    /// They are taken already.
    pub fn verdict_events(&self) -> anyhow::Result<mpsc::Receiver<KernelVerdict>> {
        Ok(bpf::verdict_events(&mut self.locked(), observe::QUEUE)?)
    }

    /// Where links and maps are pinned.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// What was asked for.
    pub fn options(&self) -> &InterceptionOptions {
        &self.options
    }

    /// Hooks as attached at the start, with the number of each one's program.
    pub fn hooks(&self) -> Vec<(Hook, u32)> {
        self.locked().attached()
    }

    /// The kernel half itself.
    pub fn half(&self) -> Arc<Mutex<KernelHalf>> {
        self.half.clone()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, KernelHalf> {
        self.half.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The kernel answers every lack of rights with EPERM, whatever was tried.
fn explain(error: BpfError, cgroup: &Path) -> anyhow::Error {
    let error = anyhow::Error::from(error);
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    if causes.any(|cause| cause.kind() == io::ErrorKind::PermissionDenied) {
        if let Some((hook, place)) = bpf::exclusive_program(cgroup) {
            return error.context(format!(
                "a program of somebody else is alone at hook {hook} of {}, and lets no other in there or below: have it attached with BPF_F_ALLOW_MULTI, or name another --cgroup (bpftool cgroup show {})",
                place.display(), place.display()
            ));
        }
        return error.context(
            "this process may not attach programs: run the agent as root (CAP_BPF and CAP_NET_ADMIN)",
        );
    }
    error
}
