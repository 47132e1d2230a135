//! What the `connect` hooks' decision costs by itself. What the kernel adds, its map lookups included, is measured by
//! `cargo xtask bench connect`.

use std::fmt;

use divan::black_box;
use murmesh_common::{
    Action, Attempt, Destination, Endpoint, Knowledge, PolicyState, Protocol, Settings, SocketAddress,
    SourceClass, Verdict, VerdictKey, WorkloadEntry, decide,
};

const SETTINGS: Settings =
    Settings { netns_cookie: 7, mark: 0x6d6d, outbound_port: 15001_u16.to_be(), fail_open: 0 };

/// A call of `connect(2)`, and what must become of it.
struct Case {
    name: &'static str,
    mark: u32,
    maps: Maps,
    action: Action,
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

/// Every lookup has the same answer.
#[derive(Clone, Copy)]
struct Maps {
    endpoint: Option<Endpoint>,
    verdict: Verdict,
}

impl Knowledge for Maps {
    fn is_in_agents_cgroup(&self) -> bool {
        black_box(true)
    }
    fn policy(&self) -> PolicyState {
        black_box(PolicyState::default())
    }
    fn endpoint(&self, _: &SocketAddress) -> Option<Endpoint> {
        black_box(self.endpoint)
    }
    fn workload(&self) -> Option<WorkloadEntry> {
        black_box(Some(WorkloadEntry { class: 1, ..WorkloadEntry::default() }))
    }
    fn user(&self, _: u32) -> Option<SourceClass> {
        black_box(None)
    }
    fn group(&self, _: u32) -> Option<SourceClass> {
        black_box(None)
    }
    fn verdict(&self, _: &VerdictKey) -> Option<Verdict> {
        black_box(Some(self.verdict))
    }
    fn egress(&self, _: &SocketAddress, _: u16, _: Protocol) -> Option<Destination> {
        black_box(None)
    }
    fn agent_listens(&self) -> bool {
        black_box(true)
    }
}

fn cases() -> [Case; 4] {
    let source = SocketAddress::from_v4(9, 0);
    let open = Endpoint { source, destination: Destination::OPEN };
    let by_source = Destination { class: 2, flags: Destination::BY_SOURCE, ..Destination::OPEN };
    let by_source = Endpoint { source, destination: by_source };
    let maps = |endpoint, denied| Maps { endpoint, verdict: Verdict { denied, rule: 3, dry_run: 0 } };
    let case = |name, maps, action| Case { name, mark: 0, maps, action };
    [
        Case { name: "agent's own", mark: SETTINGS.mark, maps: maps(Some(open), 0), action: Action::Pass },
        case("no endpoint", maps(None, 0), Action::Pass),
        case("redirected", maps(Some(open), 0), Action::Redirect(source)),
        case("denied by source", maps(Some(by_source), 1), Action::Deny),
    ]
}

#[divan::bench(args = cases())]
fn decision(bencher: divan::Bencher<'_, '_>, case: &Case) {
    let attempt = Attempt {
        destination: SocketAddress::from_v4(1, 2),
        protocol: Some(Protocol::Tcp),
        mark: case.mark,
        netns_cookie: SETTINGS.netns_cookie,
        bound_interface: 0,
    };
    let taken = || decide(black_box(&SETTINGS), black_box(&attempt), &case.maps);
    assert_eq!(taken().action, case.action);
    bencher.bench(taken);
}

fn main() {
    divan::main();
}
