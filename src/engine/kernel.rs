//! What the kernel says of an engine's process, for [`super::pulse`] and [`super::growth`].

use std::fs;

use super::pulse::Thread;
use crate::units::Bytes;

/// The first thread of a process, which owns the model there; `None` where there is no such process.
#[must_use]
pub fn first_thread(pid: u32) -> Option<Thread> {
    stat(&fs::read_to_string(format!("/proc/{pid}/task/{pid}/stat")).ok()?)
}

/// Memory of a process that is nobody else's and in no file; `None` where that is not known.
#[must_use]
pub fn anonymous(pid: u32) -> Option<Bytes> {
    rss_anon(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

/// proc_pid_stat(5), by the numbers there. The name in parentheses may hold anything.
fn stat(text: &str) -> Option<Thread> {
    let rest: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| rest.get(number - 3).copied();
    let number = |at| field(at)?.parse::<u64>().ok();
    Some(Thread {
        state: field(3)?.chars().next()?,
        ticks: number(14)?.saturating_add(number(15)?),
        major_faults: number(12)?,
    })
}

/// proc_pid_status(5).
fn rss_anon(text: &str) -> Option<Bytes> {
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Bytes(kib.checked_mul(1024)?))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    #[test]
    fn the_numbers_are_counted_behind_the_name() {
        let text = "812 (temperd) S 9 (x) R 1 812 812 0 -1 4194560 3012 0 17 0 250 31 0 0 20 0 4 0 12345 1 2";
        assert_eq!(stat(text), Some(Thread { state: 'R', ticks: 281, major_faults: 17 }));
        for torn in ["", "812 (x", "812 (x) R 1", "812 (x) R 1 812 812 0 -1 0 1 0 a 0 1 1"] {
            assert_eq!(stat(torn), None, "{torn}");
        }
        assert_eq!(rss_anon("VmRSS:\t  9 kB\nRssAnon:\t     7 kB\nRssFile:\t 2 kB\n"), Some(Bytes(7 << 10)));
        assert_eq!(rss_anon("RssAnon:\t     7 MB\n"), None);
        assert_eq!(rss_anon(""), None);
    }

    #[test]
    fn a_process_that_was_stopped_is_seen_to_stand_still() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::STOP).unwrap();
        while first_thread(child.id()).unwrap().state != 'T' {}
        let before = first_thread(child.id()).unwrap();
        assert_eq!(first_thread(child.id()), Some(before));
        assert!(anonymous(child.id()).unwrap() > Bytes(0));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(first_thread(child.id()), None);
    }
}
