//! What a test needs of its host, and the one place that decides between running and skipping.

use std::process::{Command, Stdio};

/// Something of the host without which a test cannot run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// User id 0.
    Root,
    /// `ip netns` and `nft` work.
    Namespaces,
    /// A program of this name is in the path.
    Program(&'static str),
}

impl Need {
    fn lacking(self) -> Option<String> {
        match self {
            Need::Root => (!rustix::process::geteuid().is_root()).then(|| "needs root".to_owned()),
            Need::Namespaces => ["ip", "nft"]
                .into_iter()
                .find_map(|name| Need::Program(name).lacking()),
            Need::Program(name) => {
                let found = Command::new("sh")
                    .args(["-c", "command -v \"$0\"", name])
                    .stdout(Stdio::null())
                    .status()
                    .is_ok_and(|status| status.success());
                (!found).then(|| format!("{name} is not installed (perf/packages.txt)"))
            }
        }
    }
}

/// Whether `test` may run. If not it prints `SKIP <name>: <reason>`.
///
/// # Panics
/// When something is missing and `CULVERT_REQUIRE=all` says that it must be there.
pub fn met(test: &str, needs: &[Need]) -> bool {
    let Some(reason) = needs.iter().find_map(|need| need.lacking()) else {
        return true;
    };
    #[expect(
        clippy::print_stdout,
        reason = "a skipped test says so where the runner shows it"
    )]
    {
        println!("SKIP {test}: {reason}");
    }
    assert!(
        std::env::var_os("CULVERT_REQUIRE").is_none_or(|value| value != "all"),
        "{test} must run here: {reason}"
    );
    false
}
