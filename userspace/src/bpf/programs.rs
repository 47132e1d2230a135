//! Loads the programs, attaches them to the cgroup and the network namespace, and pins links and maps.

use std::{
    fs::File,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{Array, Map, MapData, PerCpuArray},
    programs::{
        CgroupAttachMode, CgroupSockAddr, Program, ProgramError, SkLookup, SockOps,
        links::{FdLink, LinkError, PinnedLink},
    },
};
use murmesh_common::{Counter, LAYOUT, Settings};
use tracing::{Level, level_filters::LevelFilter, warn};

use super::{
    BpfError, Pins, Programs,
    policy::{POLICY_MAPS, PolicyMaps},
};
use crate::policy::compile::Room;

static OBJECT: &[u8] = include_bytes_aligned!(env!("MURMESH_PROGRAMS"));

/// A hook of the kernel half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// As in the attach types, and as the file of its pinned link.
    pub name: &'static str,
    program: &'static str,
    /// `enum bpf_attach_type` of the kernel.
    pub(super) attach_type: u32,
    pub(super) target: Target,
}

/// What a hook is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The cgroup that was asked for.
    Cgroup,
    /// The network namespace of the agent.
    Namespace,
}

/// All hooks, in the order in which they are attached: names and records first, so that no redirected socket is
/// without them.
pub const HOOKS: [Hook; 10] = [
    Hook::new("sockops", "murmesh_sockops", 3),
    Hook::new("getpeername4", "murmesh_getpeername4", 29),
    Hook::new("getpeername6", "murmesh_getpeername6", 30),
    Hook::new("getsockname4", "murmesh_getsockname4", 31),
    Hook::new("getsockname6", "murmesh_getsockname6", 32),
    Hook {
        name: CLOSING_HOOK,
        program: "murmesh_sk_lookup",
        attach_type: BPF_SK_LOOKUP,
        target: Target::Namespace,
    },
    Hook::new("sendmsg4", "murmesh_sendmsg4", 14),
    Hook::new("sendmsg6", "murmesh_sendmsg6", 15),
    Hook::new("connect4", "murmesh_connect4", 10),
    Hook::new("connect6", "murmesh_connect6", 11),
];

/// What keeps strict services closed.
pub(super) const CLOSING_HOOK: &str = "sk_lookup";

/// `enum bpf_attach_type`.
const BPF_SK_LOOKUP: u32 = 36;

/// The namespace of the calling thread.
pub(super) const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

impl Hook {
    const fn new(name: &'static str, program: &'static str, attach_type: u32) -> Self {
        Self { name, program, attach_type, target: Target::Cgroup }
    }
}

/// Maps of connections and of what was counted, which an agent that takes over goes on with.
const KEPT_MAPS: [&str; 5] =
    ["CONNECTIONS", "HANDSHAKES", "COUNTERS", "PLAINTEXT_PORTS", "PLAINTEXT_CLIENTS"];

/// Where the agent is. It is no part of what outlives it.
const AGENT_MAP: &str = "AGENT";

/// Maps of messages to the agent.
const MESSAGE_MAPS: [&str; 2] = ["EVENTS", "VERDICT_EVENTS"];

/// What the kernel half is told when it is loaded.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where links and maps are pinned.
    pub pins: Pins,
    /// Constants of the programs.
    pub settings: Settings,
    /// The cgroup of this process, by its id.
    pub agents_cgroup: u64,
    /// Sizes of the maps.
    pub room: Room,
    /// To take the place of the programs that are pinned there.
    pub take_over: bool,
}

impl LoadOptions {
    fn keeps_maps(&self) -> bool {
        self.take_over && self.pins.layout() == Some(LAYOUT)
    }
}

/// The loaded programs. Dropping this leaves them attached: they are pinned.
pub struct KernelHalf {
    ebpf: Ebpf,
    pub(super) pins: Pins,
    /// The maps of connections are those of an earlier agent.
    keeps_maps: bool,
    /// Held beside their pins: a hook whose pin is removed by hand stays attached while the agent lives.
    pub(super) attached: Vec<Attached>,
    /// Every pinned map, to be pinned again if need be.
    pub(super) pinned: Vec<(&'static str, MapData)>,
    /// Another agent is taking over: what it changes is no fault.
    pub(super) is_handing_over: bool,
}

/// A hook that is on.
pub(super) struct Attached {
    pub hook: Hook,
    /// The kernel's number of its program.
    pub program: u32,
    /// Holds it.
    pub _link: PinnedLink,
}

impl KernelHalf {
    /// Makes the maps. Nothing is attached yet.
    ///
    /// # Errors
    /// The kernel lacks something, or rights are missing.
    pub fn load(options: &LoadOptions) -> Result<Self, BpfError> {
        let (pins, keeps_maps) = (options.pins.clone(), options.keeps_maps());
        let ebpf = load(options, keeps_maps)?;
        let (attached, pinned) = (Vec::new(), Vec::new());
        let mut half = Self { ebpf, pins, keeps_maps, attached, pinned, is_handing_over: false };
        half.set_agents_cgroup(options.agents_cgroup)?;
        Ok(half)
    }

    /// Attaches and pins everything, then removes what an earlier agent left pinned at the same place. Before any hook
    /// is on, `fill` gets the maps.
    ///
    /// # Errors
    /// The kernel lacks something, or rights are missing. Nothing stays attached then but the earlier agent's hooks.
    pub fn attach(&mut self, cgroup: &Path, fill: impl FnOnce(PolicyMaps)) -> Result<(), BpfError> {
        let cgroup =
            File::open(cgroup).map_err(|error| BpfError::Cgroup { path: cgroup.to_owned(), error })?;
        let earlier = self.pins.prepare()?;
        // A start that is cut short between the two loses nothing either: what was put aside counts until every hook
        // is on.
        let pins = self.pins.clone();
        let attached = self
            .pin_maps(|_| true, |name| pins.map(name))
            .and_then(|()| self.inherit(&earlier))
            .and_then(|()| {
                fill(PolicyMaps::new(|name| open_pinned(&self.pins, name))?);
                Ok(())
            });
        if let Err(error) = attached.and_then(|()| self.attach_all(&cgroup)) {
            self.attached.clear();
            self.pins.take_back(&earlier)?;
            return Err(error);
        }
        earlier.remove()
    }

    /// Puts the programs in the place of those that are pinned, hook by hook. What they enforce is in maps of their own,
    /// which `fill` gets before any of them runs; the maps of connections stay, unless their layout is another one:
    /// then connections that are being made are reset, and open ones show 127.0.0.1 as their peer from then on.
    /// [`Self::settle`] makes it final. Nothing is put in place once the earlier agent `has_given_up` waiting.
    ///
    /// # Errors
    /// The kernel lacks something, what is pinned is not as an agent of this version leaves it, or the earlier agent goes
    /// on. Some hooks may run these programs then: that one puts its own back.
    pub fn take_over(
        &mut self,
        fill: impl FnOnce(PolicyMaps),
        has_given_up: impl FnOnce() -> bool,
    ) -> Result<(), BpfError> {
        ensure_same_hooks(self.pins.hooks()?)?;
        let replaced = self.replace(fill, has_given_up);
        if replaced.is_err() {
            self.give_up();
        }
        replaced
    }

    /// Leaves nothing beside the pins of the agent that was not taken over.
    pub fn give_up(&mut self) {
        self.leave();
        if let Err(error) = self.pins.drop_next() {
            warn!("maps that nobody uses stay pinned: {error}");
        }
    }

    fn replace(
        &mut self,
        fill: impl FnOnce(PolicyMaps),
        has_given_up: impl FnOnce() -> bool,
    ) -> Result<(), BpfError> {
        self.pins.drop_next()?;
        let pins = self.pins.clone();
        let kept: &[&str] = if self.keeps_maps { &KEPT_MAPS } else { &[] };
        self.pin_maps(|name| !kept.contains(&name), |name| pins.next_map(name))?;
        for name in kept {
            self.pinned.push((name, open_data(&pins.map(name), name)?));
        }
        let next = |name| open_map(&pins.next_map(name), name);
        if self.keeps_maps {
            let theirs = PolicyMaps::new(|name| open_map(&pins.map(name), name))?.present().clone();
            PolicyMaps::new(next)?.update(&theirs)?;
        }
        fill(PolicyMaps::new(next)?);
        let mut numbers = Vec::new();
        for hook in HOOKS {
            numbers.push(self.load_one(hook).map_err(|error| BpfError::Hook { hook: hook.name, error })?);
        }
        let programs = self.programs()?;
        // An agent that was held up must not put the rules of back then in the place of those of now.
        if has_given_up() {
            return Err(BpfError::GivenUp);
        }
        programs.put_in_place()?;
        for (hook, program) in HOOKS.into_iter().zip(numbers) {
            let path = pins.link(hook.name);
            let link = PinnedLink::from_pin(&path)
                .map_err(|error| BpfError::Pin { path, error: std::io::Error::other(error) })?;
            self.attached.push(Attached { hook, program, _link: link });
        }
        Ok(())
    }

    /// While another agent takes over, and until it has, or has given up.
    pub fn hand_over(&mut self, is_handing_over: bool) {
        self.is_handing_over = is_handing_over;
    }

    /// Holds on to nothing any more that another agent has taken over.
    pub fn leave(&mut self) {
        self.attached.clear();
        self.pinned.clear();
    }

    /// To be called when the earlier agent has given up what [`Self::take_over`] has taken.
    ///
    /// # Errors
    /// A pin cannot be renamed.
    pub fn settle(&self) -> Result<(), BpfError> {
        self.pins.settle()
    }

    /// The programs, to be put in place again.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn programs(&self) -> Result<Programs, BpfError> {
        let descriptor = |hook: Hook| {
            let program = self.ebpf.program(hook.program).ok_or(ProgramError::NotLoaded)?;
            program.fd()?.as_fd().try_clone_to_owned().map_err(ProgramError::IOError)
        };
        let programs = HOOKS.into_iter().map(|hook| {
            let descriptor = descriptor(hook).map_err(|error| BpfError::Hook { hook: hook.name, error })?;
            Ok((hook, descriptor))
        });
        Ok(Programs::new(self.pins.clone(), programs.collect::<Result<_, BpfError>>()?))
    }

    /// The cgroup whose processes the hooks take for the agent's, by its id.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn agents_cgroup(&self) -> Result<u64, BpfError> {
        let map = self.ebpf.map(AGENT_MAP).ok_or_else(|| missing(AGENT_MAP))?;
        let map = Array::<_, u64>::try_from(map).map_err(BpfError::map(AGENT_MAP))?;
        map.get(&0, 0).map_err(BpfError::map(AGENT_MAP))
    }

    /// From now on processes of the cgroup with this id may be the agent's, and those of another one may not.
    ///
    /// # Errors
    /// The kernel does not take it.
    pub fn set_agents_cgroup(&mut self, id: u64) -> Result<(), BpfError> {
        let map = self.ebpf.map_mut(AGENT_MAP).ok_or_else(|| missing(AGENT_MAP))?;
        let mut map = Array::<_, u64>::try_from(map).map_err(BpfError::map(AGENT_MAP))?;
        map.set(0, id, 0).map_err(BpfError::map(AGENT_MAP))
    }

    /// Takes the hooks off and removes every pin. Where a service of this host is strict, the hook that refuses others
    /// stays, with the maps, until the next agent is there or [`Pins::remove_all`]: true if that is so.
    ///
    /// # Errors
    /// A map cannot be read, or a pin not be removed.
    pub fn detach(&mut self) -> Result<bool, BpfError> {
        let is_strict = self.is_strict()?;
        self.leave();
        if is_strict {
            self.pins.keep_hook(CLOSING_HOOK)?
        } else {
            self.pins.remove()?
        }
        Ok(is_strict)
    }

    /// Whether any service of this host is. Asks the maps that it holds: what is pinned may be those of an agent that is
    /// about to take over.
    fn is_strict(&mut self) -> Result<bool, BpfError> {
        Ok(PolicyMaps::new(|name| self.held(name))?.present().is_strict())
    }

    /// A map that is not to be pinned again.
    fn held(&mut self, name: &'static str) -> Result<Map, BpfError> {
        let place = self.pinned.iter().position(|(held, _)| *held == name).ok_or_else(|| missing(name))?;
        Map::from_map_data(self.pinned.swap_remove(place).1).map_err(BpfError::map(name))
    }

    /// Programs attached, with the kernel's number of each.
    pub fn attached(&self) -> Vec<(Hook, u32)> {
        self.attached.iter().map(|attached| (attached.hook, attached.program)).collect()
    }

    /// The maps that say who may connect to what, and what is redirected.
    ///
    /// # Errors
    /// They are taken already.
    pub fn take_policy(&mut self) -> Result<PolicyMaps, BpfError> {
        PolicyMaps::new(|name| self.take(name))
    }

    /// A map, to be owned by the caller.
    ///
    /// # Errors
    /// It is taken already.
    pub fn take(&mut self, name: &'static str) -> Result<Map, BpfError> {
        self.ebpf.take_map(name).ok_or_else(|| missing(name))
    }

    /// The loaded object, for aya-log.
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// What an agent that was killed redirected and refused stays so until the catalog says otherwise: without this,
    /// connections would go in clear from here on until a server answers.
    fn inherit(&mut self, earlier: &Pins) -> Result<(), BpfError> {
        let is_whole = POLICY_MAPS.iter().all(|name| earlier.map(name).exists());
        if !is_whole || earlier.layout() != Some(LAYOUT) {
            return Ok(());
        }
        // One set after the other: together they take more descriptors than anything that comes later.
        let theirs = PolicyMaps::new(|name| open_map(&earlier.map(name), name))?.present().clone();
        PolicyMaps::new(|name| open_pinned(&self.pins, name))?.update(&theirs)
    }

    fn pin_maps(
        &mut self,
        wanted: impl Fn(&str) -> bool,
        path: impl Fn(&str) -> PathBuf,
    ) -> Result<(), BpfError> {
        for name in POLICY_MAPS.into_iter().chain(KEPT_MAPS).chain(MESSAGE_MAPS).filter(|name| wanted(name)) {
            let path = path(name);
            let map = self.ebpf.map(name).ok_or_else(|| missing(name))?;
            map.pin(&path).map_err(|error| BpfError::Pin {
                path: path.clone(),
                error: std::io::Error::other(error.to_string()),
            })?;
            self.pinned.push((name, open_data(&path, name)?));
        }
        Ok(())
    }

    fn attach_all(&mut self, cgroup: &File) -> Result<(), BpfError> {
        for hook in HOOKS {
            let attached = self.attach_one(hook, cgroup, &self.pins.link(hook.name))?;
            self.attached.push(attached);
        }
        Ok(())
    }

    /// Attaches a hook's program, and pins the link at `path`.
    pub(super) fn attach_one(
        &mut self,
        hook: Hook,
        cgroup: &File,
        path: &Path,
    ) -> Result<Attached, BpfError> {
        let (link, program) =
            self.link(hook, cgroup).map_err(|error| BpfError::Hook { hook: hook.name, error })?;
        let pinned = |error: aya::pin::PinError| BpfError::Pin {
            path: path.to_owned(),
            error: std::io::Error::other(error.to_string()),
        };
        Ok(Attached { hook, program, _link: link.pin(path).map_err(pinned)? })
    }

    /// `Single` is no exclusive mode here: with a `bpf_link` the kernel allows several programs by itself, and
    /// refuses an explicit `BPF_F_ALLOW_MULTI` (`cgroup_bpf_link_attach`).
    fn link(&mut self, hook: Hook, cgroup: &File) -> Result<(FdLink, u32), ProgramError> {
        let number = self.load_one(hook)?;
        let program = self.ebpf.program_mut(hook.program).ok_or(ProgramError::NotLoaded)?;
        if hook.target == Target::Namespace {
            let program: &mut SkLookup = program.try_into()?;
            let link = program.attach(File::open(OWN_NAMESPACE).map_err(ProgramError::IOError)?)?;
            Ok((program.take_link(link)?.into(), number))
        } else if hook.name == "sockops" {
            let program: &mut SockOps = program.try_into()?;
            let link = program.attach(cgroup, CgroupAttachMode::Single)?;
            Ok((as_fd_link(program.take_link(link)?.try_into())?, number))
        } else {
            let program: &mut CgroupSockAddr = program.try_into()?;
            let link = program.attach(cgroup, CgroupAttachMode::Single)?;
            Ok((as_fd_link(program.take_link(link)?.try_into())?, number))
        }
    }

    /// Returns the kernel's number of it.
    fn load_one(&mut self, hook: Hook) -> Result<u32, ProgramError> {
        let program = self.ebpf.program_mut(hook.program).ok_or(ProgramError::NotLoaded)?;
        load_once(match program {
            Program::SkLookup(program) => program.load(),
            Program::SockOps(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            _ => Err(ProgramError::UnexpectedProgramType),
        })?;
        Ok(program.info()?.id())
    }
}

fn missing(map: &str) -> BpfError {
    BpfError::system("a map of the kernel half")(std::io::Error::other(format!("{map} is missing")))
}

fn ensure_same_hooks(mut pinned: Vec<String>) -> Result<(), BpfError> {
    let mut own = HOOKS.map(|hook| hook.name);
    pinned.sort_unstable();
    own.sort_unstable();
    if pinned == own { Ok(()) } else { Err(BpfError::OtherHooks(pinned.join(" "))) }
}

/// A program that is attached again is loaded already.
fn load_once(loaded: Result<(), ProgramError>) -> Result<(), ProgramError> {
    match loaded {
        Err(ProgramError::AlreadyLoaded) => Ok(()),
        loaded => loaded,
    }
}

/// A cgroup link is a descriptor since Linux 5.7, which is older than every kernel that has all hooks.
fn as_fd_link(link: Result<FdLink, LinkError>) -> Result<FdLink, ProgramError> {
    link.map_err(|error| ProgramError::IOError(std::io::Error::other(error)))
}

/// While rules change, what is new of the last five is written before what is old is removed: the maps have room for both.
fn load(options: &LoadOptions, keeps_maps: bool) -> Result<Ebpf, BpfError> {
    let room = &options.room;
    let entries = |room: usize| u32::try_from(room.max(1)).unwrap_or(u32::MAX);
    let mut loader = EbpfLoader::new();
    for name in KEPT_MAPS.into_iter().filter(|_| keeps_maps) {
        loader.map_pin_path(name, options.pins.map(name));
    }
    Ok(loader
        .override_global("SETTINGS", &options.settings, true)
        .override_global(aya_log::LEVEL, &log_level(), true)
        .map_max_entries("ENDPOINTS", entries(room.endpoints))
        .map_max_entries("WORKLOADS", entries(room.workloads))
        .map_max_entries("USERS", entries(2 * room.users))
        .map_max_entries("VERDICTS", entries(2 * room.verdicts))
        .map_max_entries("DENIALS", entries(2 * room.verdicts))
        .map_max_entries("EGRESS", entries(2 * room.egress))
        .map_max_entries("EXCEPTIONS", entries(2 * room.egress))
        .load(OBJECT)?)
}

/// Lines that the agent's log would drop are not even made in the kernel.
fn log_level() -> u8 {
    match LevelFilter::current().into_level() {
        None => 0,
        Some(Level::ERROR) => 1,
        Some(Level::WARN) => 2,
        Some(Level::INFO) => 3,
        Some(Level::DEBUG) => 4,
        Some(Level::TRACE) => 5,
    }
}

/// The kernel half's counters, summed over all CPUs; opened from the pinned map.
pub struct Counters(PerCpuArray<MapData, u64>);

impl Counters {
    /// Opens the map that is pinned below `pins`.
    ///
    /// # Errors
    /// It is not pinned there.
    pub fn open(pins: &Pins) -> Result<Self, BpfError> {
        let map = open_pinned(pins, "COUNTERS")?;
        Ok(Self(PerCpuArray::try_from(map).map_err(BpfError::map("COUNTERS"))?))
    }

    /// A counter's value since the programs were loaded.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn get(&self, counter: Counter) -> Result<u64, BpfError> {
        let values = self.0.get(&(counter as u32), 0).map_err(BpfError::map("COUNTERS"))?;
        Ok(values.iter().sum())
    }
}

/// Opens a map that an agent has pinned, be it to take over.
pub(super) fn open_pinned(pins: &Pins, name: &'static str) -> Result<Map, BpfError> {
    let next = pins.next_map(name);
    open_map(&if next.exists() { next } else { pins.map(name) }, name)
}

fn open_map(path: &Path, name: &'static str) -> Result<Map, BpfError> {
    Map::from_map_data(open_data(path, name)?).map_err(BpfError::map(name))
}

fn open_data(path: &Path, name: &'static str) -> Result<MapData, BpfError> {
    MapData::from_pin(path).map_err(BpfError::map(name))
}
