//! What the operator applies, to the letter: four tiers at four stages, through `torpor render`.
//!
//! `UPDATE_GOLDEN=1 cargo test --test golden` writes the files anew; read the difference before you
//! commit it, for it is what every tenant's objects will change by.

#![allow(clippy::disallowed_methods, reason = "a test reads and writes its files")]

use std::path::{Path, PathBuf};

use torpor::api::Tier;
use torpor::cli::render::{Source, render};
use torpor::domain::catalog::Catalog;
use torpor::domain::stage::Stage;
use torpor::plan::Settings;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn rendered(tier: Tier, stage: Stage) -> String {
    let name = format!("input-{tier}.yaml");
    let text = std::fs::read_to_string(folder().join(&name)).expect("the input can be read");
    let source = Source { name, text };
    render(&[source], Some(stage), &Catalog::default(), &Settings::default()).expect("the input is valid")
}

#[test]
fn plans_are_as_recorded() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut different = Vec::new();
    for tier in Tier::ALL {
        for stage in Stage::ALL {
            let name = format!("{tier}-{stage}.yaml");
            let path = folder().join(&name);
            let now = rendered(tier, stage);
            if update {
                std::fs::write(&path, &now).expect("the file can be written");
            } else if let Some(difference) = first_difference(&std::fs::read_to_string(&path).unwrap_or_default(), &now)
            {
                different.push(format!("{name}:{difference}"));
            }
        }
    }
    assert!(
        different.is_empty(),
        "the plan differs from tests/golden; if that is meant, run UPDATE_GOLDEN=1 cargo test --test golden\n{}",
        different.join("\n")
    );
}

/// Number of the first line that differs, and what it was and is.
fn first_difference(recorded: &str, now: &str) -> Option<String> {
    let (mut old, mut new) = (recorded.lines(), now.lines());
    for number in 1.. {
        match (old.next(), new.next()) {
            (None, None) => break,
            (was, is) if was == is => {}
            (was, is) => {
                return Some(format!("{number}: was {:?}, is {:?}", was.unwrap_or("nothing"), is.unwrap_or("nothing")));
            }
        }
    }
    None
}

#[test]
fn rendering_twice_gives_the_same() {
    for tier in Tier::ALL {
        assert_eq!(rendered(tier, Stage::Active), rendered(tier, Stage::Active));
    }
}
