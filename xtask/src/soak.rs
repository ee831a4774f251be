//! `cargo xtask soak`: the proofs that are too long for every change.

use anyhow::Result;

use crate::{fuzz, run};

/// Connections of the engine's integrity suite, which ends them in every way.
/// All at once: their descriptors have to fit.
const ENGINE_CONNECTIONS: u64 = 2_000;

/// Bytes offered over each datapath; resets leave about two thirds of them, 10 GiB.
const PATTERN_BYTES: u64 = 17 << 30;
const PATTERN_CONNECTIONS: u64 = 2_000;

/// Bytes of one observed connection: two wraps of its sequence numbers.
const WRAP_BYTES: u64 = 9 << 30;

/// Relays whose bytes kernel and application count alike, over each version of IP.
const OBSERVED_RELAYS: u64 = 10_000;

/// Options of the verb.
#[derive(clap::Args)]
pub struct Args {
    /// Seeds of the mux model, about 20 ms each; CI runs a slice of them.
    #[arg(long, default_value_t = 1_000_000)]
    seeds: u64,
    /// Seeds of the engine's model, about 0.3 ms each; CI runs a slice of them.
    #[arg(long, default_value_t = 5_000_000)]
    engine_seeds: u64,
    /// Connections that come and go through each kind of engine.
    #[arg(long, default_value_t = 100_000)]
    churn: u64,
    /// Cases of every property test and of the session and registry models.
    #[arg(long, default_value_t = 100_000)]
    cases: u64,
    /// Time for each fuzz target, in seconds; CI gives them a few.
    #[arg(long, default_value_t = 300)]
    fuzz_seconds: u32,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let mut models = run::cargo(&["test", "--locked", "--release"]);
    models.args(["--package", "culvert-mux", "--package", "culvert-proto"]);
    models.env("CULVERT_MODEL_SEEDS", args.seeds.to_string());
    models.env("PROPTEST_CASES", args.cases.to_string());
    run::wait(models)?;
    // A process for each test: they count descriptors and change who they are.
    let mut engine = run::cargo(&["nextest", "run", "--locked", "--release"]);
    engine.args(["--package", "culvert-engine", "--profile", "soak"]);
    engine.args(["--success-output", "final"]);
    engine.env("CULVERT_ENGINE_SEEDS", args.engine_seeds.to_string());
    engine.env("CULVERT_ENGINE_CHURN", args.churn.to_string());
    engine.env("CULVERT_ENGINE_CONNECTIONS", ENGINE_CONNECTIONS.to_string());
    run::wait(engine)?;
    observer()?;
    scrape()?;
    routed(args.churn)?;
    hubs()?;
    fuzz::run(&fuzz::Args {
        seconds: args.fuzz_seconds,
        only: String::new(),
    })
}

/// The eBPF observer: a stream past the wrap, a million cases of the arithmetic, and the bytes of
/// many connections of random sizes.
fn observer() -> Result<()> {
    let mut tests = run::cargo(&["nextest", "run", "--locked", "--profile", "soak"]);
    tests.args(["--package", "culvert-abi", "--package", "culvert-ebpf"]);
    tests.args(["--package", "culvert-observe"]);
    tests.env("CULVERT_OBSERVE_RELAYS", OBSERVED_RELAYS.to_string());
    tests.env("CULVERT_EBPF_WRAP_BYTES", WRAP_BYTES.to_string());
    tests.env("PROPTEST_CASES", "1000000");
    run::wait(tests)
}

/// What a scrape and a step of the state cost, which only a build for release can promise.
fn scrape() -> Result<()> {
    let mut test = run::cargo(&["nextest", "run", "--locked", "--release"]);
    test.args(["--package", "culvert-dataplane", "--profile", "soak"]);
    test.args(["--run-ignored", "only", "--success-output", "final"]);
    let measured =
        "test(a_scrape_of_a_thousand_clusters) | test(a_step_among_ten_thousand_clusters)";
    test.args(["-E", measured]);
    run::wait(test)
}

/// The real binaries: every byte of [`PATTERN_BYTES`] over each datapath and through pairs, churn, and
/// what the observer counts of it.
fn routed(churn: u64) -> Result<()> {
    run::wait(run::cargo(&["build", "--locked", "--workspace", "--bins"]))?;
    let mut tests = run::cargo(&["nextest", "run", "--locked", "--profile", "soak"]);
    tests.args(["--package", "culvert-cli", "--success-output", "final"]);
    tests.args([
        "-E",
        "test(/^heavy::(routed::(integrity|churn)|pair::bytes)|^observe::(bytes|lives)/)",
    ]);
    tests.env("CULVERT_BIN_DIR", run::target_dir().join("debug"));
    tests.env("CULVERT_PATTERN_BYTES", PATTERN_BYTES.to_string());
    tests.env(
        "CULVERT_PATTERN_CONNECTIONS",
        PATTERN_CONNECTIONS.to_string(),
    );
    tests.env("CULVERT_CHURN", churn.to_string());
    tests.env("CULVERT_OBSERVE_CONNECTIONS", OBSERVED_RELAYS.to_string());
    tests.env("CULVERT_OBSERVE_SHORT", churn.to_string());
    run::wait(tests)
}

/// Whole hubs, by a build for release: thousands of audited writes through kill -9 of each process,
/// how many a second become durable, and certificates of a minute for half an hour.
fn hubs() -> Result<()> {
    run::wait(run::cargo(&[
        "build",
        "--locked",
        "--release",
        "--workspace",
        "--bins",
    ]))?;
    let mut tests = run::cargo(&["nextest", "run", "--locked", "--profile", "soak"]);
    tests.args(["--package", "culvert-cli", "--success-output", "final"]);
    tests.args([
        "--run-ignored",
        "only",
        "-E",
        "test(/^(audit|certified)::.*soak_/)",
    ]);
    tests.env("CULVERT_BIN_DIR", run::target_dir().join("release"));
    run::wait(tests)
}
