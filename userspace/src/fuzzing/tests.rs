//! The bounded run: every seed, and seeds that were changed in the same ways each time. A case that fails is made as
//! small as can be.

use std::{fs, ops::Range, path::PathBuf};

use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

/// A change of an input.
#[derive(Debug, Clone)]
enum Edit {
    Flip(Index, u8),
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Cut(Index),
    /// A part of another seed, and where it goes.
    Splice(Index, Vec<u8>, Index, usize),
    Repeat(Index, usize, usize),
}

impl Edit {
    fn apply(&self, input: &mut Vec<u8>) {
        match self {
            Self::Flip(at, bit) => {
                if !input.is_empty() {
                    let at = at.index(input.len());
                    input[at] ^= 1 << bit;
                }
            }
            Self::Set(at, byte) => {
                if !input.is_empty() {
                    let at = at.index(input.len());
                    input[at] = *byte;
                }
            }
            Self::Insert(at, bytes) => insert(input, at, bytes),
            Self::Remove(at, length) => drop(input.drain(part(input, at, *length))),
            Self::Cut(at) => input.truncate(at.index(input.len() + 1)),
            Self::Splice(at, other, from, length) => insert(input, at, &other[part(other, from, *length)]),
            Self::Repeat(at, length, times) => {
                let repeated = input[part(input, at, *length)].repeat(*times);
                insert(input, at, &repeated);
            }
        }
    }
}

fn insert(input: &mut Vec<u8>, at: &Index, bytes: &[u8]) {
    let at = at.index(input.len() + 1);
    input.splice(at..at, bytes.iter().copied());
}

fn part(of: &[u8], at: &Index, length: usize) -> Range<usize> {
    let begin = at.index(of.len() + 1);
    begin..(begin + length).min(of.len())
}

fn edit(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Edit> {
    let edges = select(vec![0, 1, 0x20, 0x2f, 0x3a, 0x7f, 0x80, 0xc3, 0xfe, 0xff]);
    prop_oneof![
        (any::<Index>(), 0..8_u8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        (any::<Index>(), edges).prop_map(|(at, byte)| Edit::Set(at, byte)),
        (any::<Index>(), vec(any::<u8>(), 1..10)).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (any::<Index>(), 1..40_usize).prop_map(|(at, length)| Edit::Remove(at, length)),
        any::<Index>().prop_map(Edit::Cut),
        (any::<Index>(), select(seeds), any::<Index>(), 1..100_usize)
            .prop_map(|(at, other, from, length)| Edit::Splice(at, other, from, length)),
        (any::<Index>(), 1..20_usize, 1..100_usize)
            .prop_map(|(at, length, times)| Edit::Repeat(at, length, times)),
    ]
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = fs::read_dir(directory).expect("every target has seeds");
    let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("a file")).collect()
}

fn holds(name: &str, target: fn(&[u8]), cases: u32) {
    let seeds = seeds(name);
    for seed in &seeds {
        target(seed);
    }
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let changed = (select(seeds.clone()), vec(edit(seeds), 1..8)).prop_map(|(mut input, edits)| {
        edits.iter().for_each(|edit| edit.apply(&mut input));
        input
    });
    let outcome = TestRunner::new_with_rng(config, random).run(&changed, |input| {
        target(&input);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{name}: {failure}"));
}

#[test]
fn tunnel_frames() {
    holds("tunnel_frame", super::tunnel_frame, 5000);
}

#[test]
fn tunnel_sessions() {
    holds("tunnel_session", super::tunnel_session, 300);
}

#[test]
fn join_tokens() {
    holds("join_token", super::join_token, 5000);
}

#[test]
fn names() {
    holds("names", super::names, 5000);
}

#[test]
fn configurations() {
    holds("configuration", super::configuration, 300);
}

#[test]
fn api_requests() {
    holds("api_request", super::api_request, 3000);
}

#[test]
fn catalog_events() {
    holds("catalog_event", super::catalog_event, 3000);
}

#[test]
fn sealed_files() {
    holds("sealed_file", super::sealed_file, 2000);
}
