//! A page of the documentation, as far as it can be wrong: its commands, its links, and what links may lead to.
//!
//! Commands are fenced blocks. What follows `sh` says where they are run, one block after the other:
//!
//! * ` ```sh fcs00 `: on this host of a lab, in one shell, as root. It has to end with status 0.
//! * ` ```sh fcs00 until `: again and again, until it does.
//! * ` ```sh fcs00 fails `: it has to end with another status.
//! * ` ```sh fcs00 background `: it goes on while the next ones run.
//! * ` ```sh elsewhere: REASON `: not here, because.
//!
//! A comment that begins with `<!-- sh` is a block, too, for what a reader has already.

use anyhow::{Context as _, Result, bail, ensure};

/// A page.
#[derive(Debug, Default)]
pub struct Document {
    /// In the order of the page.
    pub blocks: Vec<Block>,
    /// Targets, such as `policy.md#names`, with the number of their line.
    pub links: Vec<(usize, String)>,
    /// What `#` in a link may name: the headings.
    pub anchors: Vec<String>,
}

/// Commands.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    /// Where in the page.
    pub line: usize,
    /// Where it runs.
    pub place: Place,
    /// What a shell is given.
    pub script: String,
}

/// Where commands run.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// On the host of this name.
    Host(String, How),
    /// Not with the page.
    Elsewhere,
}

/// What becomes of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// They succeed.
    Succeeds,
    /// They succeed after a while.
    Until,
    /// They fail.
    Fails,
    /// They go on.
    Background,
}

/// What encloses lines that are no text.
enum Fence {
    /// Code of another kind.
    Code,
    /// A block, by the line that ends it.
    Block(Block, &'static str),
}

impl Document {
    /// Reads Markdown. A block of commands that does not say where it runs is an error.
    pub fn parse(text: &str) -> Result<Self> {
        let mut document = Self::default();
        let mut fence = None;
        for (number, line) in text.lines().enumerate().map(|(number, line)| (number + 1, line)) {
            fence = match fence {
                None => document.text(number, line).with_context(|| format!("line {number}"))?,
                Some(fence) => document.fenced(fence, line),
            };
        }
        match fence {
            None => Ok(document),
            Some(_) => bail!("a block has no end"),
        }
    }

    /// A line outside of blocks; returns what begins with it.
    fn text(&mut self, number: usize, line: &str) -> Result<Option<Fence>> {
        if let Some(place) = line.strip_prefix("<!-- sh ") {
            return Ok(Some(Fence::Block(Block::begin(number, place)?, "-->")));
        }
        if let Some(kind) = line.trim_start().strip_prefix("```") {
            ensure!(!kind.is_empty(), "say what is in this block: sh, text, …");
            let Some(place) = kind.strip_prefix("sh") else { return Ok(Some(Fence::Code)) };
            return Ok(Some(Fence::Block(Block::begin(number, place)?, "```")));
        }
        if let Some(heading) = line.strip_prefix('#') {
            self.anchors.push(anchor(heading.trim_start_matches('#')));
        }
        self.links.extend(links(line).map(|link| (number, link.to_owned())));
        Ok(None)
    }

    /// A line of a block; returns what goes on after it.
    fn fenced(&mut self, fence: Fence, line: &str) -> Option<Fence> {
        match fence {
            Fence::Code if line.trim_start().starts_with("```") => None,
            Fence::Code => Some(Fence::Code),
            Fence::Block(block, end) if line.trim() == end => {
                self.blocks.push(block);
                None
            }
            Fence::Block(mut block, end) => {
                block.script += line;
                block.script.push('\n');
                Some(Fence::Block(block, end))
            }
        }
    }
}

impl Block {
    fn begin(line: usize, place: &str) -> Result<Self> {
        let mut words = place.split_whitespace();
        let place = match (words.next(), words.next(), words.next()) {
            (Some("elsewhere:"), Some(_), _) => Place::Elsewhere,
            (Some(host), how, None) if host != "elsewhere:" => Place::Host(host.to_owned(), How::parse(how)?),
            _ => bail!("`sh` is followed by a host, or by `elsewhere: REASON`, and not by {place:?}"),
        };
        Ok(Self { line, place, script: String::new() })
    }
}

impl How {
    fn parse(word: Option<&str>) -> Result<Self> {
        Ok(match word {
            None => Self::Succeeds,
            Some("until") => Self::Until,
            Some("fails") => Self::Fails,
            Some("background") => Self::Background,
            Some(word) => bail!("{word:?} is none of until, fails and background"),
        })
    }
}

/// Targets of `[text](target)`, and not those within `code`.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let text = line.split('`').step_by(2);
    text.flat_map(|text| text.split("](").skip(1))
        .filter_map(|rest| rest.split_once(')').map(|(link, _)| link))
}

/// As GitHub makes them of headings.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::shell::repository;

    #[test]
    fn blocks_say_where_they_run() -> Result<()> {
        let text =
            "# A b, c!\n```sh fcs00\ntrue\n```\n<!-- sh fcc00 until\nfalse\n-->\n```sh elsewhere: x y\n```\n";
        let document = Document::parse(text)?;
        let block = |line, place, script: &str| Block { line, place, script: script.to_owned() };
        let expected = [
            block(2, Place::Host("fcs00".to_owned(), How::Succeeds), "true\n"),
            block(5, Place::Host("fcc00".to_owned(), How::Until), "false\n"),
            block(8, Place::Elsewhere, ""),
        ];
        assert_eq!(document.blocks, expected);
        assert_eq!(document.anchors, ["a-b-c"]);
        for wrong in [
            "```\nmurmesh\n```",
            "```sh\n```",
            "```sh fcs00 maybe\n```",
            "```sh elsewhere: \n```",
            "```sh fcs00\n",
        ] {
            assert!(Document::parse(wrong).is_err(), "{wrong:?}");
        }
        Ok(())
    }

    #[test]
    fn links_are_found_and_code_is_left_alone() {
        let found: Vec<_> = links("[a](b.md#c) and `[d](e)` and [f](g)").collect();
        assert_eq!(found, ["b.md#c", "g"]);
    }

    #[test]
    fn every_link_of_the_documentation_leads_somewhere() -> Result<()> {
        let mut pages = BTreeMap::new();
        for path in pages_of_the_repository()? {
            let text = fs::read_to_string(&path)?;
            let page = Document::parse(&text).with_context(|| path.display().to_string())?;
            pages.insert(path, page);
        }
        for (path, page) in &pages {
            for (line, link) in &page.links {
                let place = format!("{}:{line}: {link}", path.display());
                if link.starts_with("https://") {
                    continue;
                }
                let (file, anchor) = link.split_once('#').unwrap_or((link.as_str(), ""));
                let target = path.parent().context("a page is in a directory")?.join(file);
                let target = if file.is_empty() { path.clone() } else { target };
                let target = fs::canonicalize(&target).with_context(|| place.clone())?;
                let known =
                    pages.get(&target).is_some_and(|page| page.anchors.iter().any(|known| known == anchor));
                assert!(anchor.is_empty() || known, "{place}: there is no such heading");
            }
        }
        Ok(())
    }

    #[test]
    fn every_page_can_be_reached_from_the_first() -> Result<()> {
        let docs = repository().join("docs");
        let contents = Document::parse(&fs::read_to_string(docs.join("README.md"))?)?;
        let linked: Vec<_> = contents.links.iter().map(|(_, link)| docs.join(link)).collect();
        for page in pages_of(&docs)? {
            assert!(
                page.ends_with("README.md") || linked.contains(&page),
                "{} is not listed",
                page.display()
            );
        }
        Ok(())
    }

    fn pages_of_the_repository() -> Result<Vec<PathBuf>> {
        let directories =
            ["", "docs", "docs/decisions", "deploy/terraform"].map(|name| repository().join(name));
        let pages: Vec<_> = directories.iter().map(|directory| pages_of(directory)).collect::<Result<_>>()?;
        pages.into_iter().flatten().map(|page| Ok(fs::canonicalize(page)?)).collect()
    }

    fn pages_of(directory: &Path) -> Result<Vec<PathBuf>> {
        let files = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
        let paths: Vec<_> = files.map(|file| Ok(file?.path())).collect::<Result<_>>()?;
        Ok(paths.into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "md")).collect())
    }
}
