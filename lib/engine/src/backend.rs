//! io_uring or epoll: what is asked for, what there is, and why.

use std::io;

use rustix::io::Errno;

/// What an operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoEngine {
    /// io_uring where the kernel allows it, else epoll.
    Auto,
    /// io_uring, or no start.
    IoUring,
    /// epoll.
    Epoll,
}

impl IoEngine {
    /// The words of a setting.
    pub const CHOICES: [(&str, Self); 3] = [
        ("auto", Self::Auto),
        ("io_uring", Self::IoUring),
        ("epoll", Self::Epoll),
    ];

    /// Tries io_uring by `attempt`, unless epoll is asked for. The attempt runs
    /// on a thread of its own: rings and runtimes belong to theirs.
    ///
    /// # Errors
    /// When io_uring is required and the attempt failed.
    pub fn choose(
        self,
        attempt: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Backend> {
        let backend = |uring, reason| Ok(Backend { uring, reason });
        if self == Self::Epoll {
            return backend(false, "requested");
        }
        let tried = std::thread::spawn(attempt).join();
        let tried = tried.unwrap_or_else(|_| Err(io::Error::other("the probe panicked")));
        match (tried, self) {
            (Ok(()), Self::Auto) => backend(true, "available"),
            (Ok(()), _) => backend(true, "requested"),
            (Err(why), Self::Auto) => backend(false, refusal(&why)),
            (Err(why), _) => {
                let cause = refusal(&why);
                let text = format!(
                    "--io-engine io_uring: the kernel refuses it ({cause}): {why}; use auto"
                );
                Err(io::Error::new(why.kind(), text))
            }
        }
    }
}

/// What threads run on, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend {
    /// Whether the ring is used.
    pub uring: bool,
    /// One word for the metric: `available`, `requested`, `seccomp`, `sysctl`,
    /// `kernel`, `memlock`, `limit` or `error`.
    pub reason: &'static str,
}

impl Backend {
    /// The backend's name.
    pub fn name(self) -> &'static str {
        if self.uring { "io_uring" } else { "epoll" }
    }
}

/// One word for why the kernel refuses io_uring.
pub fn refusal(why: &io::Error) -> &'static str {
    let disabled = || {
        let path = "/proc/sys/kernel/io_uring_disabled";
        std::fs::read_to_string(path).is_ok_and(|value| value.trim() != "0")
    };
    match why.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSYS | Errno::INVAL) => "kernel",
        Some(Errno::PERM | Errno::ACCESS) if disabled() => "sysctl",
        Some(Errno::PERM | Errno::ACCESS) => "seccomp",
        Some(Errno::NOMEM) => "memlock",
        Some(Errno::MFILE | Errno::NFILE) => "limit",
        _ => "error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(how: Result<(), Errno>) -> impl FnOnce() -> io::Result<()> + Send {
        move || how.map_err(io::Error::from)
    }

    #[test]
    fn what_is_asked_for_is_had_or_refused_and_auto_says_why_not() {
        let refused = || attempt(Err(Errno::NOMEM));
        let auto = IoEngine::Auto.choose(refused()).unwrap();
        assert_eq!((auto.name(), auto.reason), ("epoll", "memlock"));
        let epoll = IoEngine::Epoll.choose(|| panic!("asked all the same"));
        assert_eq!(epoll.unwrap().reason, "requested");
        let required = IoEngine::IoUring.choose(refused()).unwrap_err();
        assert!(required.to_string().contains("memlock"), "{required}");
        let ring = IoEngine::IoUring.choose(attempt(Ok(()))).unwrap();
        assert_eq!((ring.name(), ring.reason), ("io_uring", "requested"));
    }
}
