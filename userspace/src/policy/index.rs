//! Rules, prepared so that a verdict costs the same whatever their number.
//!
//! There are few patterns that can cover one party (the host, the workload, the services, each with or without
//! wildcards), so they are looked up instead of trying every rule.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use super::{
    Action, Destination, DestinationPattern, IdentityPattern, Network, Outside, Party, Rule, RuleId,
};

/// Sources that no rule tells apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceClass(Vec<Covering>);

/// Destinations that no rule tells apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestinationClass {
    outside: bool,
    covering: Vec<Covering>,
}

impl SourceClass {
    /// Whether no rule speaks of these sources.
    pub fn is_other(&self) -> bool {
        self.0.is_empty()
    }
}

impl DestinationClass {
    /// Whether these destinations are outside the mesh.
    pub fn is_outside(&self) -> bool {
        self.outside
    }
}

/// A pattern that a rule has, by its number and how specific it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Covering {
    specificity: u16,
    pattern: u32,
}

#[derive(Debug, Default)]
pub struct Index {
    sources: Numbered<IdentityPattern>,
    destinations: Numbered<DestinationPattern>,
    /// Lengths of the networks outside the mesh that rules name.
    lengths: BTreeSet<u8>,
    decisions: HashMap<(u32, u32), Decisions>,
}

/// What the rules with one source pattern and one destination pattern say.
#[derive(Debug, Clone, Copy, Default)]
pub struct Decisions {
    pub enforced: Option<(Action, RuleId)>,
    pub dry_run: Option<(Action, RuleId)>,
}

impl Index {
    pub fn new<'a>(rules: impl Iterator<Item = &'a Rule>) -> Self {
        let mut index = Self::default();
        for rule in rules {
            let pair = (index.sources.add(&rule.source), index.destinations.add(&rule.destination));
            if let DestinationPattern::Outside(outside) = &rule.destination {
                index.lengths.insert(outside.network.length());
            }
            index.decisions.entry(pair).or_default().add(rule);
        }
        index
    }

    pub fn source_class(&self, source: &Party) -> SourceClass {
        let patterns = IdentityPattern::all_of(source).into_iter();
        SourceClass(self.sources.covering(patterns, IdentityPattern::specificity))
    }

    pub fn destination_class(&self, destination: &Destination) -> DestinationClass {
        let patterns = match destination {
            Destination::Mesh { party, port } => in_mesh(party, *port),
            Destination::Outside(outside) => self.outside(outside),
        };
        let covering = self.destinations.covering(patterns.into_iter(), DestinationPattern::specificity);
        DestinationClass { outside: matches!(destination, Destination::Outside(_)), covering }
    }

    /// The patterns of rules that cover the sources of a class.
    pub fn source_patterns<'a>(
        &'a self,
        class: &'a SourceClass,
    ) -> impl Iterator<Item = &'a IdentityPattern> {
        self.sources.named(&class.0)
    }

    /// The patterns of rules that cover the destinations of a class.
    pub fn destination_patterns<'a>(
        &'a self,
        class: &'a DestinationClass,
    ) -> impl Iterator<Item = &'a DestinationPattern> {
        self.destinations.named(&class.covering)
    }

    /// The decisions of the most specific pairs of patterns first, those of equal rank together.
    pub fn ranks(
        &self,
        source: &SourceClass,
        destination: &DestinationClass,
    ) -> impl Iterator<Item = Decisions> {
        let equal = |one: &Covering, other: &Covering| one.specificity == other.specificity;
        let pairs = source.0.chunk_by(equal).flat_map(move |sources| {
            destination.covering.chunk_by(equal).map(move |destinations| (sources, destinations))
        });
        pairs.map(|(sources, destinations)| {
            let mut together = Decisions::default();
            for source in sources {
                for destination in destinations {
                    if let Some(decisions) = self.decisions.get(&(source.pattern, destination.pattern)) {
                        together.merge(decisions);
                    }
                }
            }
            together
        })
    }

    fn outside(&self, outside: &Outside) -> Vec<DestinationPattern> {
        let mut patterns = Vec::new();
        let length = outside.network.length();
        for length in self.lengths.range(..=length).rev() {
            let Some(network) = Network::around(outside.network.address(), *length) else { continue };
            for port in with_any(outside.port) {
                for protocol in with_any(outside.protocol) {
                    patterns.push(DestinationPattern::Outside(Outside { network, port, protocol }));
                }
            }
        }
        patterns
    }
}

impl Decisions {
    fn add(&mut self, rule: &Rule) {
        let decision = Some((rule.action, rule.id));
        let one = if rule.dry_run {
            Self { dry_run: decision, enforced: None }
        } else {
            Self { enforced: decision, dry_run: None }
        };
        self.merge(&one);
    }

    /// Deny before allow, and the older rule before the newer.
    fn merge(&mut self, other: &Self) {
        self.enforced = first(self.enforced, other.enforced);
        self.dry_run = first(self.dry_run, other.dry_run);
    }

    /// What would be decided if dry-run rules were in force.
    pub fn all(&self) -> Option<(Action, RuleId)> {
        first(self.enforced, self.dry_run)
    }
}

fn first(one: Option<(Action, RuleId)>, other: Option<(Action, RuleId)>) -> Option<(Action, RuleId)> {
    one.into_iter().chain(other).min()
}

fn in_mesh(party: &Party, port: u16) -> Vec<DestinationPattern> {
    let patterns = IdentityPattern::all_of(party).into_iter();
    let with_ports = patterns.flat_map(|identity| {
        [Some(port), None].map(|port| DestinationPattern::Mesh { identity: identity.clone(), port })
    });
    with_ports.collect()
}

fn with_any<T: Copy>(value: Option<T>) -> impl Iterator<Item = Option<T>> {
    value.map(Some).into_iter().chain([None])
}

/// Patterns with a number each.
#[derive(Debug)]
struct Numbered<P> {
    numbers: HashMap<P, u32>,
    patterns: Vec<P>,
}

impl<P> Default for Numbered<P> {
    fn default() -> Self {
        Self { numbers: HashMap::new(), patterns: Vec::new() }
    }
}

impl<P: Clone + Eq + Hash> Numbered<P> {
    fn add(&mut self, pattern: &P) -> u32 {
        if let Some(number) = self.numbers.get(pattern) {
            return *number;
        }
        let next = self.patterns.len() as u32;
        self.patterns.push(pattern.clone());
        self.numbers.insert(pattern.clone(), next);
        next
    }

    fn named<'a>(&'a self, covering: &'a [Covering]) -> impl Iterator<Item = &'a P> {
        covering.iter().map(|covering| &self.patterns[covering.pattern as usize])
    }

    /// Those of `patterns` that are known, the most specific first.
    fn covering(&self, patterns: impl Iterator<Item = P>, specificity: impl Fn(&P) -> u16) -> Vec<Covering> {
        let known = patterns.filter_map(|pattern| {
            let number = *self.numbers.get(&pattern)?;
            Some(Covering { specificity: specificity(&pattern), pattern: number })
        });
        let mut covering: Vec<_> = known.collect();
        covering.sort_unstable_by(|one, other| other.cmp(one));
        covering
    }
}
