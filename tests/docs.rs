//! Every page of the project: its links lead somewhere, the tests it names exist, and nothing is left to be filled in.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a test reads the project's files")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// What a page holds that can be wrong.
#[derive(Default)]
struct Page {
    links: Vec<String>,
    anchors: BTreeSet<String>,
    code: Vec<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files with this extension below a folder, but for what is built and what is hidden.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if entry.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(files(&entry, extension));
        } else if entry.extension().is_some_and(|found| found == extension) {
            found.push(entry);
        }
    }
    found
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The anchor that GitHub gives a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}

fn page(text: &str) -> Page {
    let (mut page, mut heading) = (Page::default(), None::<String>);
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                page.links.push(dest_url.into_string());
            }
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => page.anchors.extend(heading.take().map(|text| anchor(&text))),
            Event::Text(text) => heading = heading.map(|heading| heading + &text),
            Event::Code(code) => {
                heading = heading.map(|heading| heading + &code);
                page.code.push(code.into_string());
            }
            _ => {}
        }
    }
    page
}

fn pages() -> Vec<(PathBuf, Page)> {
    files(root(), "md").into_iter().map(|file| (file.clone(), page(&read(&file)))).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut dead = Vec::new();
    for (file, page) in pages() {
        for link in page.links.iter().filter(|link| !link.contains("://")) {
            let (path, wanted) = link.split_once('#').map_or((link.as_str(), None), |(path, part)| (path, Some(part)));
            let target = if path.is_empty() { file.clone() } else { file.with_file_name(path) };
            let there =
                target.exists() && wanted.is_none_or(|wanted| self::page(&read(&target)).anchors.contains(wanted));
            if !there {
                dead.push(format!("{}: {link}", file.display()));
            }
        }
    }
    assert!(dead.is_empty(), "links that lead nowhere: {dead:#?}");
}

#[test]
fn tests_that_are_named_exist() {
    let sources: String = files(root(), "rs").iter().map(|file| read(file)).collect();
    let named = page(&read(&root().join("docs/reliability.md"))).code.into_iter().filter(|code| {
        code.contains("::")
            && code.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, ':' | '_'))
    });
    let named: Vec<String> = named.collect();
    assert!(named.len() > 10, "the page names tests: {named:?}");
    let exists = |name: &str| {
        let last = name.trim_end_matches("::tests").rsplit("::").next().unwrap_or_default();
        ["fn {}(", "mod {};"].iter().any(|form| sources.contains(&form.replace("{}", last)))
    };
    let missing: Vec<&String> = named.iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "docs/reliability.md names tests that do not exist: {missing:#?}");
}

#[test]
fn nothing_is_left_to_be_filled_in() {
    let left = |text: &str| {
        text.split('@').skip(1).any(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_uppercase()))
    };
    let open: Vec<PathBuf> = files(root(), "md").into_iter().filter(|file| left(&read(file))).collect();
    assert!(open.is_empty(), "pages with placeholders such as @SIZE@: {open:?}");
}
