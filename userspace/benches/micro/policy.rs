//! Rules as the entries of the kernel half's maps, which an agent makes again at each change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use divan::{Bencher, black_box};
use murmesh::discovery::ExemptPorts;
use murmesh::identity::{NodeName, WorkloadName};
use murmesh::policy::compile::{Compiler, Reachable, Room, Tables, View, Who, changes};
use murmesh::policy::{Action, Policy, Rule, RuleId};
use murmesh::workload::Cgroup;

/// Endpoints and rules.
const SIZES: [(u32, u32); 4] = [(1_000, 0), (1_000, 1_000), (100_000, 0), (100_000, 10_000)];

/// Ports of each host.
const PORTS: u32 = 10;

/// Workloads of this host; the rules are about a tenth of them.
const WORKLOADS: u64 = 100;

#[divan::bench(args = SIZES, sample_count = 10)]
fn entries_for_kernel(bencher: Bencher<'_, '_>, (endpoints, rules): (u32, u32)) {
    let world = World::new(endpoints, rules);
    let mut compiler = world.compiler();
    world.compile(&mut compiler);
    bencher.bench_local(|| world.compile(black_box(&mut compiler)));
}

#[divan::bench(args = SIZES, sample_count = 10)]
fn differences_of_nothing(bencher: Bencher<'_, '_>, (endpoints, rules): (u32, u32)) {
    let world = World::new(endpoints, rules);
    let tables = world.compile(&mut world.compiler());
    bencher.bench(|| changes(black_box(&tables), black_box(&tables)));
}

struct World {
    policy: Policy,
    node: NodeName,
    endpoints: Vec<Reachable>,
    cgroups: HashMap<u64, Cgroup>,
}

impl World {
    fn new(endpoints: u32, rules: u32) -> Self {
        let policy = policy(rules);
        let reachable = |number: u32| {
            let (host, port) = (number / PORTS, 8000 + (number % PORTS) as u16);
            let ip = Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 0).to_bits() + host);
            Reachable {
                address: SocketAddr::new(ip.into(), port),
                source: Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))),
                available: true,
                destination: Some(policy.destination(&name(&format!("host-{host}")), None, port)),
            }
        };
        let endpoints = (0..endpoints).map(reachable).collect();
        let cgroups = (0..WORKLOADS)
            .map(|number| (number, Cgroup { workload: Some(unit(number)), ..Cgroup::default() }))
            .collect();
        Self { policy, node: name("here"), endpoints, cgroups }
    }

    fn compiler(&self) -> Compiler {
        let many = 1 << 20;
        let room = Room { endpoints: many, verdicts: many, egress: many, workloads: many, users: many };
        Compiler::new(room, &Tables::default())
    }

    fn compile(&self, compiler: &mut Compiler) -> Tables {
        let (tables, full) = compiler.compile(&View {
            who: Who {
                policy: &self.policy,
                node: &self.node,
                cgroups: &self.cgroups,
                users: &BTreeMap::new(),
                listening: &HashMap::new(),
            },
            endpoints: self.endpoints.clone(),
            addresses: &BTreeSet::new(),
            mesh: &BTreeMap::new(),
            exempt: &ExemptPorts::default(),
        });
        assert!(full.is_empty(), "{full:?}");
        tables
    }
}

/// Half of the rules are about services of the mesh, half about networks outside.
fn policy(rules: u32) -> Policy {
    let mut policy = Policy::default();
    for number in 0..rules {
        let destination = if number % 2 == 0 {
            format!("host/host-{}/*:{}", number / PORTS, 8000 + number % PORTS)
        } else {
            format!("{}/24", Ipv4Addr::from_bits(Ipv4Addr::new(20, 0, 0, 0).to_bits() + (number << 8)))
        };
        policy.put_rule(Rule {
            id: RuleId::new(number + 1).expect("not 0"),
            action: Action::Deny,
            source: format!("host/here/unit-{}.service", number % 10).parse().expect("a pattern"),
            destination: destination.parse().expect("a pattern"),
            dry_run: false,
        });
    }
    policy
}

fn unit(number: u64) -> WorkloadName {
    name(&format!("unit-{number}.service"))
}

fn name<N: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> N {
    text.parse().expect("a name")
}
