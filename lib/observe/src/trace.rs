//! The trace programs: loaded at the start, linked for as long as someone looks. They hook the
//! whole host, so that every socket of it pays while they are linked.

use aya::programs::{Program, ProgramError};

use crate::observer::Observer;
use crate::report::Trace;

/// Why no trace runs.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// There is nothing to link.
    #[error("trace is not available: {0}; set ebpf.trace=true and grant CAP_PERFMON")]
    Unavailable(String),
    /// The kernel refused.
    #[error("trace could not be linked: {0}")]
    Refused(#[from] ProgramError),
}

impl Observer {
    /// Links the trace programs, or takes the links away. Which sockets are looked at is in their
    /// tags ([`culvert_abi::Ident::TRACE`]).
    ///
    /// # Errors
    /// When there is nothing to link, or the kernel refuses.
    pub fn trace(&self, on: bool) -> Result<(), TraceError> {
        let (ready, kernel) = match (&self.report().trace, &self.shared.kernel) {
            (Trace::Ready(ready), Some(kernel)) => (ready, kernel),
            (Trace::Unavailable(why), _) => return Err(TraceError::Unavailable(why.clone())),
            _ => {
                return Err(TraceError::Unavailable(
                    "it was not asked for at the start".to_owned(),
                ));
            }
        };
        let mut links = kernel.trace_links.lock();
        links.clear();
        if !on {
            return Ok(());
        }
        let mut programs = kernel.programs.lock();
        for name in ready {
            let Some(Program::BtfTracePoint(program)) = programs.program_mut(name) else {
                continue;
            };
            let id = program.attach()?;
            links.push(program.take_link(id)?);
        }
        Ok(())
    }

    /// Whether the trace programs are linked.
    pub fn is_tracing(&self) -> bool {
        let kernel = self.shared.kernel.as_ref();
        kernel.is_some_and(|it| !it.trace_links.lock().is_empty())
    }
}
