//! The host memory still available.

use std::path::{Path, PathBuf};

/// Bytes still available to processes before others are swapped out, or before a control group (a
/// container's, a job's) kills this one. `None` if unknown: only Linux reports it.
pub(super) fn available_memory() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let of_machine = meminfo_available(&read("/proc/meminfo"));
    let of_groups = of_groups(&read("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"));
    of_machine.into_iter().chain(of_groups).min()
}

/// `MemAvailable` of `/proc/meminfo`, which has it in kB.
fn meminfo_available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| 1024 * kilobytes)
}

/// The least memory available to any control group of the process: those in `/proc/self/cgroup`
/// (`text`) and all above them, in the tree at `root`. `None` if no group has a limit.
fn of_groups(text: &str, root: &Path) -> Option<u64> {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            match controllers {
                // Version 2 has one tree.
                "" => Some((root.to_owned(), path, &V2)),
                // Version 1 has a tree for each controller.
                _ if controllers.split(',').any(|controller| controller == "memory") => {
                    Some((root.join("memory"), path, &V1))
                }
                _ => None,
            }
        })
        .flat_map(|(tree, path, names)| {
            let group = tree.join(path.trim_start_matches('/'));
            // In a container the path may be the host's: groups missing here are skipped, and the
            // root is the container's own.
            let groups: Vec<PathBuf> = group.ancestors().map(Path::to_owned).collect();
            groups
                .into_iter()
                .take_while(move |group| group.starts_with(&tree))
                .filter_map(|group| available_to(&group, names))
        })
        .min()
}

/// The file names in a version of control groups.
struct Names {
    limit: &'static str,
    used: &'static str,
    /// In `memory.stat`: file pages that the system reclaims before it kills any process.
    files: &'static str,
}

const V2: Names = Names { limit: "memory.max", used: "memory.current", files: "inactive_file" };
const V1: Names = Names {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    files: "total_inactive_file",
};

/// The memory still available to a group; `None` if it has no limit (`max`) or does not exist.
fn available_to(group: &Path, names: &Names) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(group.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let (limit, used) = (number(names.limit)?, number(names.used)?);
    let files = read("memory.stat").and_then(|text| {
        let value = |line: &str| line.strip_prefix(names.files)?.strip_prefix(' ')?.parse().ok();
        text.lines().find_map(value)
    });
    Some(limit.saturating_sub(used.saturating_sub(files.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_has_left_is_in_kilobytes() {
        let text = "MemTotal:       32 kB\nMemFree:  1 kB\nMemAvailable:    7 kB\nBuffers: 2 kB\n";
        assert_eq!(meminfo_available(text), Some(7 * 1024));
        assert_eq!(meminfo_available("MemTotal: 1 kB\n"), None);
    }

    /// Creates a group with these files below `root`.
    fn group(root: &Path, path: &str, files: &[(&str, &str)]) {
        let group = root.join(path);
        std::fs::create_dir_all(&group).unwrap();
        for (name, text) in files {
            std::fs::write(group.join(name), text).unwrap();
        }
    }

    #[test]
    fn the_tightest_of_all_groups_above_counts() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!(of_groups("0::/a/b\n", root), None);
        group(root, "a/b", &[("memory.max", "max\n"), ("memory.current", "70\n")]);
        assert_eq!(of_groups("0::/a/b\n", root), None);
        group(root, "a", &[("memory.max", "1000\n"), ("memory.current", "300\n")]);
        assert_eq!(of_groups("0::/a/b\n", root), Some(700));
        let stat = ("memory.stat", "anon 100\nfile 250\ninactive_file 200\nactive_file 50\n");
        group(root, "a", &[stat]);
        assert_eq!(of_groups("0::/a/b\n", root), Some(900));
        group(root, "a/b", &[("memory.max", "90\n")]);
        assert_eq!(of_groups("0::/a/b\n", root), Some(20));
        // In a container, the group is the root and the path is the host's.
        group(root, "", &[("memory.max", "15"), ("memory.current", "10")]);
        assert_eq!(of_groups("0::/elsewhere/c\n", root), Some(5));
        // Usage may exceed the limit for a moment.
        group(root, "", &[("memory.current", "16")]);
        assert_eq!(of_groups("0::/\n", root), Some(0));
    }

    #[test]
    fn groups_of_version_1_have_a_tree_for_memory() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let text = "5:cpu,cpuacct:/x\n4:hugetlb,memory:/job/7\n1:name=systemd:/\n";
        assert_eq!(of_groups(text, root), None);
        let stat = ("memory.stat", "inactive_file 1\ntotal_inactive_file 30\n");
        let limits = [("memory.limit_in_bytes", "500\n"), ("memory.usage_in_bytes", "400\n"), stat];
        group(root, "memory/job", &limits);
        assert_eq!(of_groups(text, root), Some(130));
    }
}
