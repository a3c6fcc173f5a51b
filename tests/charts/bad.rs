//! Wrong values are refused before anything reaches a cluster, with a message that says where and what.

use super::{read, render, root};

/// Lines of a message; the reason must not drown.
const LINES: usize = 12;

#[test]
fn bad_values_are_refused() {
    let folder = std::fs::read_dir(root().join("tests/charts/bad")).expect("the folder can be read");
    let mut files: Vec<String> =
        folder.map(|file| format!("tests/charts/bad/{}", file.expect("a file").file_name().display())).collect();
    files.sort();
    assert!(files.len() >= 50, "only {} bad files of values", files.len());
    let problems: Vec<String> = files.iter().filter_map(|file| refused(file).err()).collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    println!("{} bad files of values refused", files.len());
}

fn refused(file: &str) -> Result<(), String> {
    let text = read(file);
    let expected = text.lines().next().and_then(|line| line.strip_prefix("# expect: "));
    let expected = expected.ok_or_else(|| format!("{file}: its first line is not `# expect: …`"))?;
    match render("torpor", &[file]) {
        Ok(_) => Err(format!("{file} was accepted; expected: {expected}")),
        Err(message) if !message.contains(expected) => Err(format!("{file}: expected {expected:?}, was {message}")),
        Err(message) if message.lines().count() > LINES => Err(format!("{file}: a long message: {message}")),
        Err(_) => Ok(()),
    }
}
