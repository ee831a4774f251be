//! Answers that never end in one piece: each chunk must arrive before the next one is made.

use std::time::Duration;

use anyhow::Result;

use crate::client::{Answer, Live};
use crate::hub::{Rig, internal, ready};

#[test]
fn each_event_arrives_before_the_next_is_made() -> Result<()> {
    if !ready("each_event_arrives_before_the_next_is_made", &[]) {
        return Ok(());
    }
    let rig = Rig::start()?;
    let mut live = Live::get(&rig.bed.client, internal(), "/tunnel/dev/step")?;
    for number in 0..20 {
        let event = format!("id: {number}\ndata: tick\n\n");
        rig.upstream.step(&event);
        let took = live.read_text(&event, Duration::from_secs(2))?;
        assert!(
            took < Duration::from_secs(1),
            "event {number} took {took:?}"
        );
    }
    rig.upstream.finish();
    live.read_until(Duration::from_secs(2), |all| all.ends_with(b"0\r\n\r\n"))?;
    let answer = Answer::parse(&live.received)?;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    assert!(answer.whole);
    assert_eq!(answer.text().matches("data: tick").count(), 20);
    Ok(())
}

#[test]
fn an_answer_cut_by_the_death_of_the_agent_never_looks_whole() -> Result<()> {
    if !ready(
        "an_answer_cut_by_the_death_of_the_agent_never_looks_whole",
        &[],
    ) {
        return Ok(());
    }
    let mut rig = Rig::start()?;
    let mut live = Live::get(&rig.bed.client, internal(), "/tunnel/dev/step")?;
    rig.upstream.step("half of it");
    live.read_text("half of it", Duration::from_secs(2))?;
    rig.agent.kill_9()?;
    live.read_end(Duration::from_secs(5))?;
    assert!(
        !Answer::parse(&live.received)?.whole,
        "truncated as complete"
    );
    Ok(())
}
