//! The control groups below which each node's pods live, on machines with either version of them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// The group of all nodes, below the root of each hierarchy.
const GROUP: &str = "torpor-e2e";

/// What the kubelet calls a node's group.
pub(super) fn name(node: &str) -> String {
    format!("/{GROUP}/{node}")
}

/// Makes a node's group in every hierarchy: the kubelet wants to find its root.
pub(super) fn create(node: &str) -> Result<()> {
    for hierarchy in hierarchies(&fs::read_to_string("/proc/mounts")?) {
        let unified = hierarchy.join("cgroup.controllers");
        if unified.exists() && fs::read_to_string(&unified)?.trim().is_empty() {
            // The second version beside the first holds no controllers.
            continue;
        }
        let mut group = hierarchy;
        for part in [GROUP, node] {
            let parent = group.clone();
            group = group.join(part);
            fs::create_dir_all(&group)
                .with_context(|| format!("cannot create the control group {}", group.display()))?;
            pass_on(&parent, &group)?;
        }
    }
    Ok(())
}

/// A new group may use what its parent may: the first version leaves its sets empty, the second its controllers off.
fn pass_on(parent: &Path, group: &Path) -> Result<()> {
    for set in ["cpuset.cpus", "cpuset.mems"] {
        let file = group.join(set);
        if group.join("cpuset.sched_load_balance").exists() && fs::read_to_string(&file)?.trim().is_empty() {
            fs::write(&file, fs::read_to_string(parent.join(set))?)?;
        }
    }
    let there = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
    let switch = parent.join("cgroup.subtree_control");
    for controller in there.split_whitespace() {
        // One that can't be passed on must not keep the others from it; the kubelet says which it misses.
        let _ = fs::write(&switch, format!("+{controller}"));
    }
    Ok(())
}

/// Removes the groups of all nodes, once nothing runs in them.
pub(super) fn remove() -> Result<()> {
    for hierarchy in hierarchies(&fs::read_to_string("/proc/mounts")?) {
        let group = hierarchy.join(GROUP);
        if group.exists() {
            remove_tree(&group).with_context(|| format!("cannot remove the control group {}", group.display()))?;
        }
    }
    Ok(())
}

/// The files of a group go with it; only groups inside it are in the way.
fn remove_tree(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    let mut tries = 0;
    loop {
        match fs::remove_dir(group) {
            // The kernel counts the last process out a moment after its end.
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy && tries < 200 => {
                tries += 1;
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

/// Controllers that can be used, whichever hierarchy they are in.
pub(super) fn controllers() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let unified = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let first = mounts.lines().filter(|line| line.split(' ').nth(2) == Some("cgroup"));
    let first = first.filter_map(|line| line.split(' ').nth(3)).flat_map(|options| options.split(','));
    first.chain(unified.split_whitespace()).map(String::from).collect()
}

/// Where the hierarchies are mounted.
fn hierarchies(mounts: &str) -> Vec<PathBuf> {
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields
        .filter(|fields| matches!(fields.get(2), Some(&("cgroup" | "cgroup2"))))
        .map(|fields| fields[1].into())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
            cgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0\n\
            cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(
            hierarchies(mounts),
            [PathBuf::from("/sys/fs/cgroup/memory"), PathBuf::from("/sys/fs/cgroup/unified")]
        );
    }
}
