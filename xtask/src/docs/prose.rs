//! Commands that are named within sentences. They are not run, and are as wrong as others when they do not exist: each must
//! be one of docs/commands.md, which the program writes, with options that it has there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::shell::repository;

const PROGRAM: &str = "murmesh ";

/// The options of every command.
struct Reference(BTreeMap<String, BTreeSet<String>>);

impl Reference {
    fn parse(page: &str) -> Self {
        let mut commands = BTreeMap::<String, BTreeSet<String>>::new();
        let mut current = String::new();
        for line in page.lines() {
            if let Some(command) = line.strip_prefix("## ").and_then(|line| line.strip_prefix(PROGRAM)) {
                command.clone_into(&mut current);
                commands.entry(current.clone()).or_default();
            } else if let Some(argument) = line.strip_prefix("| `-")
                && let Some(options) = commands.get_mut(&current)
            {
                let names = argument.split('`').next().unwrap_or_default();
                let names = names.split([',', ' ']).map(|name| name.trim_start_matches('-').to_owned());
                options.extend(names.filter(|name| !name.is_empty()));
            }
        }
        Self(commands)
    }

    /// What is wrong with `command`, which begins after the name of the program.
    fn fault(&self, command: &str) -> Option<String> {
        let words: Vec<&str> = command.split_whitespace().collect();
        let names = (1..=words.len()).rev().map(|count| words[..count].join(" "));
        let Some(name) = names.into_iter().find(|name| self.0.contains_key(name)) else {
            return Some("no such command".to_owned());
        };
        let options = words.iter().filter(|word| word.starts_with('-'));
        let mut names = options.map(|word| word.trim_start_matches('-').split('=').next().unwrap_or(word));
        let unknown = names.find(|option| !self.0[&name].contains(*option));
        unknown.map(|option| format!("{name} has no option {option}"))
    }
}

/// Commands within the sentences of a page, with their lines.
fn commands(page: &str) -> Vec<(usize, &str)> {
    let mut is_text = true;
    let mut found = Vec::new();
    for (number, line) in page.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            is_text = !is_text;
        } else if is_text {
            let spans = line.split('`').skip(1).step_by(2);
            found.extend(spans.filter_map(|span| Some((number + 1, span.strip_prefix(PROGRAM)?))));
        }
    }
    found
}

#[test]
fn a_command_that_does_not_exist_is_found() {
    let reference = Reference::parse("## murmesh a b\n| `-o, --output <FORMAT>` | … |\n## murmesh c\n");
    for right in ["a b", "a b -o json", "a b --output=json NAME", "c anything"] {
        assert_eq!(reference.fault(right), None, "{right}");
    }
    for wrong in ["a", "d", "c --output json", "a b --other"] {
        assert!(reference.fault(wrong).is_some(), "{wrong}");
    }
    let page = "`murmesh c` and `other`\n```sh x\n`murmesh d`\n```\n`murmesh e`";
    assert_eq!(commands(page), [(1, "c"), (5, "e")]);
}

#[test]
fn every_command_within_a_sentence_is_one_that_there_is() -> Result<()> {
    let docs = repository().join("docs");
    let reference = Reference::parse(&fs::read_to_string(docs.join("commands.md"))?);
    let mut pages = vec![repository().join("README.md"), repository().join("deploy/terraform/README.md")];
    for page in fs::read_dir(&docs)? {
        pages.push(page?.path());
    }
    let mut faults = Vec::new();
    let is_written = |page: &&PathBuf| page.extension().is_some_and(|kind| kind == "md");
    // That one the program has written.
    for page in pages.iter().filter(is_written).filter(|page| !page.ends_with("commands.md")) {
        let text = fs::read_to_string(page).with_context(|| page.display().to_string())?;
        for (line, command) in commands(&text) {
            let fault = reference.fault(command);
            faults.extend(fault.map(|fault| format!("{}:{line}: {command}: {fault}", page.display())));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    Ok(())
}
