//! Loads and links the programs, one at a time, so that one that fails takes no other with it.

use std::error::Error;
use std::os::fd::BorrowedFd;

use aya::programs::{CgroupAttachMode, CgroupSkbAttachType, ProgramError};
use aya::{Btf, Ebpf, EbpfError, EbpfLoader};
use culvert_abi::maps;
use rustix::io::Errno;

use crate::report::{Failure, Trace};
use crate::settings::Settings;

/// The end of the verifier's words is where it says what it disliked.
const TEXT_MAX: usize = 400;

/// Why there are no maps.
pub enum NoMaps {
    /// The object cannot be read.
    Object(String),
    /// The kernel refuses them.
    Refused(Errno, String),
}

/// Reads the object and makes the maps, in the sizes that are asked for.
pub fn maps(object: &[u8], settings: &Settings) -> Result<Ebpf, NoMaps> {
    let (slots, rows) = (settings.pair_slots(), u32::from(settings.cluster_rows()));
    let mut loader = EbpfLoader::new();
    // No program relocates against the kernel's types: one object fits every kernel.
    loader.btf(None);
    for (name, entries) in sizes(slots, rows) {
        loader.map_max_entries(name, entries);
    }
    loader.load(object).map_err(|why| match why {
        EbpfError::MapError(why) => NoMaps::Refused(errno(&why), sentence(&why)),
        why => match io_errno(&why) {
            Some(errno) => NoMaps::Refused(errno, sentence(&why)),
            None => NoMaps::Object(sentence(&why)),
        },
    })
}

fn sizes(slots: u32, rows: u32) -> [(&'static str, u32); 4] {
    [
        (maps::PAIR, maps::pair_entries(slots)),
        (maps::PRES, maps::pres_entries(slots)),
        (maps::HIST, maps::hist_entries(rows)),
        (maps::CNT, maps::cnt_entries(rows)),
    ]
}

/// What the maps of these sizes take, without what sockets store.
pub fn maps_bytes(settings: &Settings) -> u64 {
    let (slots, rows) = (settings.pair_slots(), u32::from(settings.cluster_rows()));
    let [pairs, lanes, histograms, counters] = sizes(slots, rows).map(|(_, it)| u64::from(it));
    let arrays = pairs * 32 + lanes * 8 + histograms * 8 + counters * 64;
    arrays + u64::from(maps::SELF_CELLS) * 8 + u64::from(maps::CLOSE_BYTES)
}

/// Loads and links `cv_sockops`.
pub fn sockops(programs: &mut Ebpf, cgroup: BorrowedFd<'_>) -> Result<(), Failure> {
    let name = maps::SOCK_OPS;
    let program: &mut aya::programs::SockOps = program(programs, name)?;
    program.load().map_err(|why| failure(name, "load", &why))?;
    // A link to a cgroup always allows others beside it, and refuses the flag that says so.
    let linked = program.attach(cgroup, CgroupAttachMode::Single);
    linked.map(drop).map_err(|why| failure(name, "link", &why))
}

/// Loads and links `cv_in` and `cv_out`, or neither.
pub fn skb(programs: &mut Ebpf, cgroup: BorrowedFd<'_>) -> Result<(), Failure> {
    let both = [
        (maps::INGRESS, CgroupSkbAttachType::Ingress),
        (maps::EGRESS, CgroupSkbAttachType::Egress),
    ];
    let linked = both.iter().try_for_each(|(name, attach_type)| {
        let program: &mut aya::programs::CgroupSkb = program(programs, name)?;
        program.load().map_err(|why| failure(name, "load", &why))?;
        let linked = program.attach(cgroup, *attach_type, CgroupAttachMode::Single);
        linked.map(drop).map_err(|why| failure(name, "link", &why))
    });
    if linked.is_err() {
        unload_skb(programs);
    }
    linked
}

/// Takes `cv_in` and `cv_out` out of the kernel.
pub fn unload_skb(programs: &mut Ebpf) {
    for name in [maps::INGRESS, maps::EGRESS] {
        if let Some(aya::programs::Program::CgroupSkb(program)) = programs.program_mut(name) {
            // One that was never loaded has nothing to unload.
            let _ = program.unload();
        }
    }
}

/// The hooks of the trace programs, each with its programs, best first: the kernel tells why it
/// resets from 6.10 on.
pub const TRACE: [(&str, &[&str]); 2] = [
    ("tcp_rcv_space_adjust", &[maps::RX_WAIT]),
    ("tcp_send_reset", &[maps::RESETS, maps::RESETS_OLD]),
];

/// Loads the trace programs and links none.
pub fn trace(programs: &mut Ebpf) -> (Trace, Vec<Failure>) {
    let btf = match Btf::from_sys_fs() {
        Ok(btf) => btf,
        Err(why) => {
            return (
                Trace::Unavailable(format!("no kernel BTF: {why}")),
                Vec::new(),
            );
        }
    };
    let (mut ready, mut failures) = (Vec::new(), Vec::new());
    for (hook, names) in TRACE {
        let mut load = |name| {
            let program: &mut aya::programs::BtfTracePoint = program(programs, name)?;
            let loaded = program.load(hook, &btf);
            loaded
                .map(|()| name)
                .map_err(|why| failure(name, "load", &why))
        };
        let mut refused = Vec::new();
        let loaded = names
            .iter()
            .find_map(|name| load(name).map_err(|why| refused.push(why)).ok());
        match loaded {
            Some(name) => ready.push(name),
            None => failures.extend(refused),
        }
    }
    let trace = match (ready.is_empty(), failures.first()) {
        (true, Some(why)) => Trace::Unavailable(why.text.clone()),
        _ => Trace::Ready(ready),
    };
    (trace, failures)
}

fn program<'a, T>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a mut T, Failure>
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let missing = || Failure {
        program: name,
        step: "load",
        errno: Errno::NOENT,
        text: format!("the object has no program {name}"),
    };
    let program = programs.program_mut(name).ok_or_else(missing)?;
    program
        .try_into()
        .map_err(|why| failure(name, "load", &why))
}

fn failure(program: &'static str, step: &'static str, why: &ProgramError) -> Failure {
    Failure {
        program,
        step,
        errno: errno(why),
        text: sentence(why),
    }
}

fn errno(why: &(dyn Error + 'static)) -> Errno {
    io_errno(why).unwrap_or(Errno::INVAL)
}

/// The error number at the bottom of a chain of errors.
fn io_errno(why: &(dyn Error + 'static)) -> Option<Errno> {
    let (mut next, mut found) = (Some(why), None);
    while let Some(why) = next {
        let io = why.downcast_ref::<std::io::Error>();
        found = io.and_then(Errno::from_io_error).or(found);
        next = why.source();
    }
    found
}

/// A chain of errors in one line of bounded length.
fn sentence(why: &dyn Error) -> String {
    let mut text = why.to_string();
    let mut next = why.source();
    while let Some(why) = next {
        text = format!("{text}: {why}");
        next = why.source();
    }
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().rev().nth(TEXT_MAX) {
        Some((at, _)) => format!("…{}", &text[at..]),
        None => text,
    }
}
