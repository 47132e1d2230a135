//! What is counted of streams by their service, and by how they end. Touched when streams begin and end.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;

use super::{access::Direction, ending::Ending, relay::Totals};
use crate::identity::{ServiceName, Subject};

/// Named services that are told apart; the rest is counted together.
const MAX_SERVICES: usize = 500;

/// Counted for streams of services without a name.
const UNNAMED: &str = "(unnamed)";

/// Counted for those beyond [`MAX_SERVICES`].
const OTHERS: &str = "(others)";

/// What became of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was carried, and came to its end.
    Allowed,
    /// The rules refused it, or cut it.
    Denied,
    /// It failed.
    Error,
}

impl Verdict {
    /// All, by their place.
    pub const ALL: [(Self, &str); 3] =
        [(Self::Allowed, "allowed"), (Self::Denied, "denied"), (Self::Error, "error")];
}

/// All figures of a data path.
#[derive(Debug)]
pub struct Tally {
    named: ArcSwap<HashMap<ServiceName, Arc<Figures>>>,
    unnamed: Arc<Figures>,
    others: Arc<Figures>,
    endings: [[AtomicU64; Ending::COUNT]; Direction::ALL.len()],
}

/// Of one service.
#[derive(Debug, Default)]
pub struct Figures([OneWay; Direction::ALL.len()]);

/// Streams in one direction.
#[derive(Debug, Default)]
pub struct OneWay {
    open: AtomicU64,
    ended: [AtomicU64; Verdict::ALL.len()],
    sent: AtomicU64,
    received: AtomicU64,
}

impl Default for Tally {
    fn default() -> Self {
        let (unnamed, others) = Default::default();
        let endings = std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::default()));
        Self { named: ArcSwap::default(), unnamed, others, endings }
    }
}

impl Tally {
    /// Where streams of a service are counted.
    pub fn of(&self, service: Option<&Subject>) -> Arc<Figures> {
        let Some(Subject::Service(name)) = service else { return self.unnamed.clone() };
        let named = self.named.load();
        if let Some(figures) = named.get(name) {
            return figures.clone();
        }
        if named.len() >= MAX_SERVICES {
            return self.others.clone();
        }
        self.named.rcu(|named| {
            let mut named = HashMap::clone(named);
            named.entry(name.clone()).or_default();
            named
        });
        self.named.load().get(name).unwrap_or(&self.others).clone()
    }

    /// Counts how a stream ended.
    pub fn ended(&self, direction: Direction, ending: Ending) {
        self.endings[direction as usize][ending.index()].fetch_add(1, Relaxed);
    }

    /// How many ended in each way, but those that none did.
    pub fn endings(&self) -> impl Iterator<Item = (Direction, &'static str, u64)> {
        Direction::ALL.into_iter().flat_map(|direction| {
            let counts = self.endings[direction as usize].iter().map(|count| count.load(Relaxed)).enumerate();
            let counts = counts.filter(|(_, count)| *count > 0);
            counts.map(move |(index, count)| (direction, Ending::name(index), count))
        })
    }

    /// Figures by the names of services.
    pub fn services(&self) -> Vec<(String, Arc<Figures>)> {
        let rest = [(UNNAMED, &self.unnamed), (OTHERS, &self.others)];
        let rest = rest.map(|(name, figures)| (name.to_owned(), figures.clone()));
        let named = self.named.load();
        named.iter().map(|(name, figures)| (name.to_string(), figures.clone())).chain(rest).collect()
    }
}

impl Figures {
    /// A stream has begun.
    pub fn begin(&self, direction: Direction) {
        self.one_way(direction).open.fetch_add(1, Relaxed);
    }

    /// It has ended.
    pub fn end(&self, direction: Direction, ending: Ending, totals: Totals) {
        let verdict = match ending {
            Ending::Ended => Verdict::Allowed,
            ending if ending.is_denial() => Verdict::Denied,
            _ => Verdict::Error,
        };
        let figures = self.one_way(direction);
        figures.open.fetch_sub(1, Relaxed);
        figures.ended[verdict as usize].fetch_add(1, Relaxed);
        figures.sent.fetch_add(totals.sent, Relaxed);
        figures.received.fetch_add(totals.received, Relaxed);
    }

    /// In one direction.
    pub fn one_way(&self, direction: Direction) -> &OneWay {
        &self.0[direction as usize]
    }
}

impl OneWay {
    /// Streams that are open.
    pub fn open(&self) -> u64 {
        self.open.load(Relaxed)
    }

    /// Streams that have ended so.
    pub fn ended(&self, verdict: Verdict) -> u64 {
        self.ended[verdict as usize].load(Relaxed)
    }

    /// Bytes of those that have ended.
    pub fn totals(&self) -> Totals {
        Totals { sent: self.sent.load(Relaxed), received: self.received.load(Relaxed) }
    }

    /// Whether there never was a stream.
    pub fn is_unused(&self) -> bool {
        self.open() == 0 && Verdict::ALL.into_iter().all(|(verdict, _)| self.ended(verdict) == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(number: usize) -> Subject {
        Subject::Service(format!("service-{number}").parse().expect("a name"))
    }

    #[test]
    fn streams_are_counted_for_their_service_and_by_how_they_end() {
        let tally = Tally::default();
        let figures = tally.of(Some(&service(1)));
        for ending in [Ending::Ended, Ending::Denied, Ending::Reset] {
            figures.begin(Direction::Inbound);
            figures.end(Direction::Inbound, ending, Totals { sent: 1, received: 2 });
            tally.ended(Direction::Inbound, ending);
        }
        tally.of(Some(&service(1))).begin(Direction::Inbound);
        let counted = figures.one_way(Direction::Inbound);
        assert_eq!((counted.open(), counted.totals()), (1, Totals { sent: 3, received: 6 }));
        assert!(Verdict::ALL.into_iter().all(|(verdict, _)| counted.ended(verdict) == 1));
        assert!(figures.one_way(Direction::Outbound).is_unused());
        let endings: Vec<_> = tally.endings().collect();
        assert_eq!(endings, ["ended", "rule", "reset"].map(|reason| (Direction::Inbound, reason, 1)));
    }

    #[test]
    fn services_beyond_the_limit_are_counted_together() {
        let tally = Tally::default();
        (0..MAX_SERVICES + 2).for_each(|number| tally.of(Some(&service(number))).begin(Direction::Outbound));
        tally.of(None).begin(Direction::Outbound);
        let services = tally.services();
        assert_eq!(services.len(), MAX_SERVICES + 2);
        let open = |name: &str| {
            let figures = services.iter().find(|(found, _)| found == name).map(|(_, figures)| figures);
            figures.expect("there is one").one_way(Direction::Outbound).open()
        };
        assert_eq!((open(UNNAMED), open(OTHERS), open("service-7")), (1, 2, 1));
    }
}
