//! What the machine says of its memory: on Linux the kernel and the control groups, on macOS `sysctl`.

#[cfg(any(not(target_os = "macos"), test))]
use std::path::Path;

/// Bytes that the system could give to this process now, where it says so: of the machine's, and of the control groups' that
/// it is in, beyond which the kernel would end it.
#[cfg(not(target_os = "macos"))]
pub fn available_memory() -> Option<u64> {
    let machine = meminfo("MemAvailable:")?;
    groups(cgroup_available).chain([machine]).min()
}

/// What `of` says of the control groups that this process is in.
#[cfg(not(target_os = "macos"))]
fn groups(of: fn(&Path, &str, &GroupFiles) -> Option<u64>) -> impl Iterator<Item = u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let root = Path::new("/sys/fs/cgroup");
    let second = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    // `4:memory:/…`, `3:cpu,memory:/…`.
    let first = groups.lines().find_map(|line| {
        let (controllers, group) = line.split_once(':')?.1.split_once(":/")?;
        controllers.split(',').any(|controller| controller == "memory").then_some(group)
    });
    let first = first.and_then(|group| of(&root.join("memory"), group, &FIRST));
    [of(root, second, &SECOND), first].into_iter().flatten()
}

/// What the system says of its memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineMemory {
    /// All that the machine has.
    pub physical: Option<u64>,
    /// The least limit of a control group around this process, where it is less.
    pub limit: Option<u64>,
    /// What the system could give to this process now.
    pub available: Option<u64>,
}

impl MachineMemory {
    /// Asks the system.
    #[cfg(not(target_os = "macos"))]
    pub fn query() -> Self {
        let physical = meminfo("MemTotal:");
        let limit = groups(cgroup_limit).min().filter(|&limit| physical.is_none_or(|all| limit < all));
        Self { physical, limit, available: available_memory() }
    }

    /// Asks the system.
    #[cfg(target_os = "macos")]
    pub fn query() -> Self {
        Self { physical: sysctl(c"hw.memsize"), limit: None, available: available_memory() }
    }
}

/// A line of `/proc/meminfo`, in bytes.
#[cfg(not(target_os = "macos"))]
fn meminfo(name: &str) -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Three quarters of the machine's bytes: macOS compresses and swaps for whoever asks, and has no figure for what is left.
#[cfg(target_os = "macos")]
pub fn available_memory() -> Option<u64> {
    sysctl(c"hw.memsize").map(|bytes| bytes / 4 * 3)
}

/// Bytes that Apple's GPU may use, where MLX does not say it.
#[cfg(not(target_os = "macos"))]
pub fn gpu_memory() -> Option<u64> {
    None
}

/// Bytes that Apple's GPU may use, where MLX does not say it.
#[cfg(target_os = "macos")]
pub fn gpu_memory() -> Option<u64> {
    sysctl(c"hw.memsize").map(|bytes| wired_limit(bytes, sysctl(c"iogpu.wired_limit_mb")))
}

/// Bytes that macOS lets its GPU hold of a machine with `bytes`: what `iogpu.wired_limit_mb` was set to, else two thirds, or
/// three quarters beyond 36 GiB.
#[cfg(any(target_os = "macos", test))]
fn wired_limit(bytes: u64, limit_mb: Option<u64>) -> u64 {
    /// Seen of `recommendedMaxWorkingSetSize`, which Apple does not document.
    const LARGE: u64 = 36 << 30;
    match limit_mb {
        Some(limit) if limit > 0 => limit.saturating_mul(1 << 20).min(bytes),
        _ if bytes <= LARGE => bytes / 3 * 2,
        _ => bytes / 4 * 3,
    }
}

/// An integer of the kernel's, of four or eight bytes.
#[cfg(target_os = "macos")]
fn sysctl(name: &std::ffi::CStr) -> Option<u64> {
    let mut value = 0_u64;
    let mut size = size_of::<u64>();
    // SAFETY: the name is NUL-terminated; value and size are of our own, and the call writes at most `size` bytes.
    let status = unsafe {
        let to = std::ptr::from_mut(&mut value).cast();
        libc::sysctlbyname(name.as_ptr(), to, &mut size, std::ptr::null_mut(), 0)
    };
    // Four bytes are the lower half: Macs are little-endian.
    (status == 0 && matches!(size, 4 | 8)).then_some(value)
}

/// The files of a control group that say its limit and what it holds, and what its `memory.stat` calls files.
#[cfg(any(not(target_os = "macos"), test))]
struct GroupFiles {
    limit: &'static str,
    held: &'static str,
    files: &'static str,
}

/// Version 1, where a limit without one is a number near 2^63.
#[cfg(any(not(target_os = "macos"), test))]
const FIRST: GroupFiles =
    GroupFiles { limit: "memory.limit_in_bytes", held: "memory.usage_in_bytes", files: "total_cache " };

/// Version 2.
#[cfg(any(not(target_os = "macos"), test))]
const SECOND: GroupFiles = GroupFiles { limit: "memory.max", held: "memory.current", files: "file " };

/// What is left below the least limit of a control group and those around it; what they hold of files can be had back.
#[cfg(any(not(target_os = "macos"), test))]
fn cgroup_available(root: &Path, group: &str, of: &GroupFiles) -> Option<u64> {
    let left = |dir: &Path| -> Option<u64> {
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).ok();
        let number = |text: String| text.trim().parse::<u64>().ok();
        // `max` where there is no limit.
        let limit = number(read(of.limit)?)?;
        let stat = read("memory.stat").unwrap_or_default();
        let files = stat.lines().find_map(|line| line.strip_prefix(of.files)).map(str::to_owned);
        let held = number(read(of.held)?)?;
        Some(limit.saturating_sub(held.saturating_sub(files.and_then(number).unwrap_or(0))))
    };
    let dir = root.join(group);
    dir.ancestors().take_while(|dir| dir.starts_with(root)).filter_map(left).min()
}

/// The least limit of a control group and those around it.
#[cfg(any(not(target_os = "macos"), test))]
fn cgroup_limit(root: &Path, group: &str, of: &GroupFiles) -> Option<u64> {
    let limit = |dir: &Path| std::fs::read_to_string(dir.join(of.limit)).ok()?.trim().parse().ok();
    root.join(group).ancestors().take_while(|dir| dir.starts_with(root)).filter_map(limit).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_control_groups_count() {
        let root = tempfile::tempdir().unwrap();
        let group = |path: &str, of: &GroupFiles, [max, current, stat]: [&str; 3]| {
            let dir = root.path().join(path);
            std::fs::create_dir_all(&dir).unwrap();
            for (name, text) in [(of.limit, max), (of.held, current), ("memory.stat", stat)] {
                std::fs::write(dir.join(name), text).unwrap();
            }
        };
        assert_eq!(cgroup_available(root.path(), "a/b", &SECOND), None);
        group("a", &SECOND, ["1000\n", "700\n", "anon 500\nfile 200\nslab 1\n"]);
        assert_eq!(cgroup_available(root.path(), "a/b", &SECOND), Some(500));
        group("a/b", &SECOND, ["max\n", "600\n", "file 0\n"]);
        assert_eq!(cgroup_available(root.path(), "a/b", &SECOND), Some(500));
        group("a/b", &SECOND, ["650\n", "600\n", "file 10\n"]);
        assert_eq!(cgroup_available(root.path(), "a/b", &SECOND), Some(60));
        assert_eq!(cgroup_available(root.path(), "a", &SECOND), Some(500));
        assert_eq!(cgroup_limit(root.path(), "a/b", &SECOND), Some(650));
        assert_eq!(cgroup_limit(root.path(), "a", &SECOND), Some(1000));
        assert_eq!(cgroup_limit(root.path(), "", &SECOND), None);
        assert_eq!(cgroup_available(root.path(), "", &SECOND), None);
        let none = (1_u64 << 63) - 4096;
        group("v1", &FIRST, [&format!("{none}\n"), "700\n", "cache 9\ntotal_cache 200\n"]);
        assert_eq!(cgroup_available(root.path(), "v1/c", &FIRST), Some(none - 500));
        group("v1/c", &FIRST, ["1000\n", "700\n", "cache 9\ntotal_cache 200\n"]);
        assert_eq!(cgroup_available(root.path(), "v1/c", &FIRST), Some(500));
    }

    #[test]
    fn the_limit_of_apples_gpu_is_what_was_set_or_a_part_of_the_machine() {
        let gib = 1_u64 << 30;
        assert_eq!(wired_limit(24 * gib, None), 16 * gib);
        assert_eq!(wired_limit(24 * gib, Some(0)), 16 * gib);
        assert_eq!(wired_limit(64 * gib, None), 48 * gib);
        assert_eq!(wired_limit(64 * gib, Some(56 << 10)), 56 * gib);
        // No more than there is.
        assert_eq!(wired_limit(64 * gib, Some(1 << 20)), 64 * gib);
        assert_eq!(wired_limit(64 * gib, Some(u64::MAX)), 64 * gib);
    }

    /// A machine that says nothing gets a cache of a fixed size, whatever it has.
    #[test]
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    fn this_machine_says_what_it_has() {
        let memory = MachineMemory::query();
        let (physical, available) = (memory.physical.unwrap(), memory.available.unwrap());
        assert!((1 << 20..1 << 50).contains(&available), "{memory:?}");
        assert!(available <= physical && memory.limit.is_none_or(|limit| limit < physical), "{memory:?}");
    }
}
