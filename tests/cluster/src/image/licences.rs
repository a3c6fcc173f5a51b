//! The licence texts of the crates in the program. Most say that they must go where the program goes.

use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

use anyhow::{Context, Result};

use super::crates::Crate;

const BEGINNINGS: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];
const RULE: &str = "--------------------------------------------------------------------------------";

/// A licence text, and the crates that carry it.
type Carried = (String, Vec<String>);

/// One text for all crates; each licence text once, with the crates that carry it.
pub(super) fn collect(crates: &[Crate]) -> Result<String> {
    let mut by_words: BTreeMap<String, Carried> = BTreeMap::new();
    let mut without = Vec::new();
    for one in crates {
        let label = format!("{} {} ({})", one.name, one.version, one.licence);
        let texts = texts(&one.folder)?;
        if texts.is_empty() {
            without.push(label.clone());
        }
        for text in texts {
            let carried = by_words.entry(words(&text)).or_insert_with(|| (text, Vec::new()));
            carried.1.push(label.clone());
        }
    }
    Ok(render(by_words.into_values(), &without))
}

fn texts(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        if entry.file_type()?.is_file() && BEGINNINGS.iter().any(|beginning| name.starts_with(beginning)) {
            let text = String::from_utf8_lossy(&fs::read(entry.path())?).replace("\r\n", "\n");
            found.push(text.trim_matches('\n').trim_end().to_owned());
        }
    }
    Ok(found)
}

/// What is the same in copies of one text whose lines are broken and set in otherwise.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn render(carried: impl Iterator<Item = Carried>, without: &[String]) -> String {
    let mut groups: Vec<(Vec<String>, String)> = carried
        .map(|(text, mut crates)| {
            crates.sort();
            crates.dedup();
            (crates, text)
        })
        .collect();
    groups.sort();
    let mut page =
        "The program /torpor holds code of the crates below, under the licences that follow their names.\n".to_owned();
    if !without.is_empty() {
        page += "\nThese come without a text of their licence:\n";
        for label in without {
            let _ = writeln!(page, "  {label}");
        }
    }
    for (crates, text) in groups {
        let _ = writeln!(page, "\n{RULE}\n{}\n{RULE}\n\n{text}", crates.join("\n"));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_there_once() {
        let labels = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let carried = ("MIT text".to_owned(), labels(&["b 1 (MIT)", "a 1 (MIT)"]));
        let page = render([carried].into_iter(), &labels(&["c 1 (ISC)"]));
        assert_eq!(page.matches("MIT text").count(), 1);
        assert!(page.contains("a 1 (MIT)\nb 1 (MIT)\n"), "{page}");
        assert!(page.contains("  c 1 (ISC)\n"), "{page}");
        assert_eq!(words("  MIT\n  text\n"), words("MIT text"));
        assert_ne!(words("Copyright A"), words("Copyright B"));
    }
}
