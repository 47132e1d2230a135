//! What the `connect` hooks' decision costs by itself. What the kernel adds, its map lookup included, is measured by
//! `cargo xtask bench connect`.

use std::fmt;

use divan::black_box;
use murmesh_common::{Attempt, Endpoint, Settings, SocketAddress, Verdict, decide};

const SETTINGS: Settings =
    Settings { netns_cookie: 7, mark: 0x6d6d, outbound_port: 15001_u16.to_be(), padding: 0 };

/// A call of `connect(2)`, and what must become of it.
struct Case {
    name: &'static str,
    mark: u32,
    endpoint: Option<Endpoint>,
    verdict: Verdict,
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

fn cases() -> [Case; 3] {
    let endpoint = Endpoint { source: SocketAddress::from_v4(9, 0) };
    let redirect = Verdict::Redirect(endpoint);
    [
        Case { name: "agent's own", mark: SETTINGS.mark, endpoint: Some(endpoint), verdict: Verdict::Pass },
        Case { name: "no endpoint", mark: 0, endpoint: None, verdict: Verdict::Pass },
        Case { name: "redirected", mark: 0, endpoint: Some(endpoint), verdict: redirect },
    ]
}

#[divan::bench(args = cases())]
fn decision(bencher: divan::Bencher<'_, '_>, case: &Case) {
    let attempt = Attempt {
        destination: SocketAddress::from_v4(1, 2),
        tcp: true,
        mark: case.mark,
        netns_cookie: SETTINGS.netns_cookie,
        bound_interface: 0,
    };
    let taken = || {
        let endpoint = |_: &SocketAddress| black_box(case.endpoint);
        decide(black_box(&SETTINGS), black_box(&attempt), endpoint, || black_box(true))
    };
    assert_eq!(taken(), case.verdict);
    bencher.bench(taken);
}

fn main() {
    divan::main();
}
