//! What a layer may have inside.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};

use super::run::output;

/// Programs of the image: a shell among them would be a present to whoever breaks in.
const PROGRAMS: [&str; 4] = ["torpor", "lib/", "lib64/", "usr/lib/"];
const SHELLS: [&str; 8] = ["sh", "bash", "dash", "ash", "zsh", "ksh", "busybox", "toybox"];

/// A file or folder, as tar lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// As `ls -l` shows it: kind, then nine letters.
    mode: String,
    owner: String,
    pub(super) size: u64,
    /// In UTC.
    changed: String,
    /// Without a slash or a point at the beginning.
    pub(super) path: String,
}

pub(super) fn of(tar: &Path) -> Result<Vec<Entry>> {
    let listed = output(
        Command::new("tar").args(["--list", "--verbose", "--numeric-owner", "--full-time", "--utc", "--file"]).arg(tar),
        "install the package tar",
    )?;
    listed.lines().map(|line| parse(line).with_context(|| format!("tar listed {line:?}"))).collect()
}

fn parse(line: &str) -> Option<Entry> {
    let mut rest = line;
    let mut word = || {
        let (word, after) = rest.trim_start().split_once(' ')?;
        rest = after;
        Some(word.to_owned())
    };
    let (mode, owner, size, day, hour) = (word()?, word()?, word()?.parse().ok()?, word()?, word()?);
    let path = rest.trim_start_matches("./").trim_end_matches('/').to_owned();
    Some(Entry { mode, owner, size, changed: format!("{day}T{hour}Z"), path })
}

/// What is wrong with the entries, which should all be of the moment `created`.
pub(super) fn problems(entries: &[Entry], created: &str) -> Vec<String> {
    let mut problems = Vec::new();
    for entry in entries {
        let mut wrong = |what: &str| problems.push(format!("{}: {what} ({} {})", entry.path, entry.mode, entry.owner));
        let kind = entry.mode.chars().next().unwrap_or_default();
        let bits: Vec<char> = entry.mode.chars().skip(1).collect();
        if !matches!(kind, '-' | 'd') {
            wrong("neither a file nor a folder");
        }
        if bits.iter().any(|bit| "sStT".contains(*bit)) {
            wrong("it has the setuid, setgid or sticky bit");
        }
        if bits.get(4) != Some(&'-') || bits.get(7) != Some(&'-') {
            wrong("others may write to it");
        }
        if bits.get(6) != Some(&'r') || (kind == 'd' && bits.get(8) != Some(&'x')) {
            wrong("the image's user cannot read it");
        }
        if entry.owner != "0/0" {
            wrong("it is not root's");
        }
        if entry.changed != created {
            wrong(&format!("it is of {}, not of {created}", entry.changed));
        }
        if kind == '-' && bits.contains(&'x') && !PROGRAMS.iter().any(|beginning| entry.path.starts_with(beginning)) {
            wrong("it may be executed");
        }
        if SHELLS.iter().any(|shell| Path::new(&entry.path).file_name().is_some_and(|name| name == *shell)) {
            wrong("it is a shell");
        }
    }
    for needed in
        ["torpor", "etc/passwd", "etc/nsswitch.conf", "etc/ssl/certs/ca-certificates.crt", super::contents::SBOM]
    {
        if !entries.iter().any(|entry| entry.path == needed) {
            problems.push(format!("{needed} is missing"));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREATED: &str = "2026-11-26T05:07:00Z";

    fn good() -> Vec<Entry> {
        ["drwxr-xr-x ./", "-rwxr-xr-x ./torpor", "-rw-r--r-- ./etc/passwd", "-rw-r--r-- ./etc/nsswitch.conf"]
            .into_iter()
            .chain([
                "-rw-r--r-- ./etc/ssl/certs/ca-certificates.crt",
                "-rw-r--r-- ./usr/share/doc/torpor/torpor.cdx.json",
            ])
            .map(|line| {
                let (mode, path) = line.split_once(' ').expect("two words");
                parse(&format!("{mode} 0/0           12 2026-11-26 05:07:00 {path}")).expect("a line")
            })
            .collect()
    }

    #[test]
    fn a_good_image_has_no_problem() {
        assert_eq!(problems(&good(), CREATED), Vec::<String>::new());
    }

    #[test]
    fn each_rule_holds() {
        let cases = [
            ("-rwsr-xr-x 0/0 1 2026-11-26 05:07:00 ./torpor", "setuid"),
            ("-rw-rw-r-- 0/0 1 2026-11-26 05:07:00 ./etc/a", "others may write"),
            ("-rw-r--rw- 0/0 1 2026-11-26 05:07:00 ./etc/a", "others may write"),
            ("-rw------- 0/0 1 2026-11-26 05:07:00 ./etc/a", "cannot read"),
            ("-rw-r--r-- 1000/0 1 2026-11-26 05:07:00 ./etc/a", "not root's"),
            ("-rw-r--r-- 0/0 1 2026-11-26 05:07:01 ./etc/a", "it is of"),
            ("-rwxr-xr-x 0/0 1 2026-11-26 05:07:00 ./etc/a", "may be executed"),
            ("-rw-r--r-- 0/0 1 2026-11-26 05:07:00 ./lib/sh", "a shell"),
            ("lrwxrwxrwx 0/0 0 2026-11-26 05:07:00 ./bin -> usr/bin", "neither a file nor a folder"),
        ];
        for (line, problem) in cases {
            let entries = [good(), vec![parse(line).expect("a line")]].concat();
            let found = problems(&entries, CREATED);
            assert!(found.iter().any(|found| found.contains(problem)), "{line}: {found:?}");
        }
        let found = problems(&good()[..2], CREATED);
        assert!(found.iter().any(|found| found.contains("etc/passwd is missing")), "{found:?}");
    }
}
