//! Where in the file system this process's own cgroup is.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// The cgroup that the programs are linked to.
#[derive(Debug)]
pub struct Cgroup {
    /// As `/proc/self/cgroup` names it.
    pub path: String,
    /// Its directory, open.
    pub dir: OwnedFd,
}

/// Opens the own cgroup2 directory.
///
/// # Errors
/// When the process is in none that it can see.
pub fn open() -> io::Result<Cgroup> {
    let own = std::fs::read_to_string("/proc/self/cgroup")?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let missing = |what: &str| io::Error::new(io::ErrorKind::NotFound, what.to_owned());
    let path = path_in(&own).ok_or_else(|| missing("/proc/self/cgroup has no line 0::"))?;
    let mut last = missing("no cgroup2 is mounted where this process can see its own");
    for dir in directories(&mounts, path) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(&dir, flags, Mode::empty()) {
            Ok(dir) => {
                let path = path.to_owned();
                return Ok(Cgroup { path, dir });
            }
            Err(why) => last = why.into(),
        }
    }
    Err(last)
}

/// The path of the unified hierarchy in the text of `/proc/self/cgroup`.
pub fn path_in(cgroups: &str) -> Option<&str> {
    cgroups.lines().find_map(|line| line.strip_prefix("0::"))
}

/// Where `path` may be found, most recent mount first, by the text of `/proc/self/mountinfo`.
pub fn directories(mounts: &str, path: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| below(line, path))
        .collect();
    found.reverse();
    found
}

/// `path` below the mount of one line, when that is a cgroup2 that holds it.
fn below(line: &str, path: &str) -> Option<PathBuf> {
    let (fields, source) = line.split_once(" - ")?;
    if source.split(' ').next() != Some("cgroup2") {
        return None;
    }
    let mut fields = fields.split(' ').skip(3);
    let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
    let rest = Path::new(path).strip_prefix(&root).ok()?;
    Some(match rest.as_os_str().is_empty() {
        true => PathBuf::from(point),
        false => Path::new(&point).join(rest),
    })
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.get(..3).and_then(|it| u8::from_str_radix(it, 8).ok());
        match digits {
            Some(byte) => {
                whole.push(char::from(byte));
                whole.push_str(&part[3..]);
            }
            None => {
                whole.push('\\');
                whole.push_str(part);
            }
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";

    fn found(mounts: &str, path: &str) -> Vec<String> {
        let shown = |it: &PathBuf| it.to_string_lossy().into_owned();
        directories(mounts, path).iter().map(shown).collect()
    }

    #[test]
    fn the_unified_line_is_found_among_those_of_v1() {
        let hybrid = "9:name=systemd:/\n4:memory:/a/b\n0::/system.slice/culvert.service\n";
        assert_eq!(path_in(hybrid), Some("/system.slice/culvert.service"));
        assert_eq!(path_in("4:memory:/a\n"), None, "cgroup v1 alone");
        assert_eq!(path_in("0::/\n"), Some("/"));
    }

    #[test]
    fn a_path_is_sought_below_every_cgroup2_that_holds_it() {
        assert_eq!(found(V2, "/"), ["/sys/fs/cgroup"]);
        assert_eq!(found(V2, "/a b/c"), ["/sys/fs/cgroup/a b/c"]);
        // A container in the host's cgroup namespace sees its own directory as the root of the mount.
        let host = "30 23 0:26 /docker/7f /sys/fs/cgroup ro - cgroup2 cgroup rw";
        assert_eq!(found(host, "/docker/7f"), ["/sys/fs/cgroup"]);
        assert_eq!(found(host, "/docker/7f/x"), ["/sys/fs/cgroup/x"]);
        assert_eq!(found(host, "/docker/7"), [""; 0], "not a parent");
        assert_eq!(found(host, "/../elsewhere"), [""; 0]);
    }

    #[test]
    fn later_mounts_come_first_and_other_file_systems_never() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw shared:9 master:1 - cgroup2 cgroup2 rw\n\
            42 31 0:38 /a /mnt/own\\040one rw - cgroup2 none rw\n\
            garbage\n";
        assert_eq!(
            found(mounts, "/a/b"),
            ["/mnt/own one/b", "/sys/fs/cgroup/unified/a/b"]
        );
    }

    #[test]
    fn escapes_that_are_none_stay_as_they_are() {
        assert_eq!(unescape("a\\134b\\"), "a\\b\\");
        assert_eq!(unescape("\\9zz\\04"), "\\9zz\\04");
        assert_eq!(unescape("\\é"), "\\é");
    }
}
