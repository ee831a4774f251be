//! Data channels on their way in: who is let in, and who is not.

use std::time::Duration;

use culvert_proto::channel::{ChannelAnswer, Form, PREFACE_BYTES, Preface};
use culvert_proto::id::Epoch;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::agent::{Agent, Introduction};
use crate::flows::{TRUSTING, channels, echoes, free, introduction, parked, reach, routed};
use crate::hub::{Hub, OTHER_TOKEN, TOKEN, metric, until};
use crate::private::{Private, answer};

async fn said(private: &Private, form: Form, words: &[u8]) -> Option<ChannelAnswer> {
    let mut wire = private.dial(form, words).await.unwrap();
    answer(&mut wire).await
}

/// A hub and an agent that keeps the tickets it gets.
async fn keeping() -> (Hub, Agent, std::sync::Arc<Private>) {
    let hub = Hub::with(&routed(&[("echo", free())]), TRUSTING);
    let private = Private::new(hub.at.public, false);
    let agent = Agent::with(hub.at.public, introduction(&private, channels())).await;
    until("two tickets", || async {
        (private.tickets.lock().len() >= 2).then_some(())
    })
    .await;
    (hub, agent, private)
}

#[tokio::test]
async fn a_ticket_opens_one_channel_and_only_for_its_session() {
    let (hub, _agent, private) = keeping().await;
    let (form, ticket) = private.tickets.lock()[0].clone();
    assert_eq!(form, Form::Plain);
    let good = private.preface(form, &ticket);

    let mut forged = good;
    forged[PREFACE_BYTES - 1] ^= 1;
    assert_eq!(
        said(&private, form, &forged).await,
        Some(ChannelAnswer::BadTicket)
    );
    let stale = Preface {
        form,
        ticket: ticket.id,
        epoch: Epoch(1),
    };
    let stale = stale.encode(&culvert_net::crypto::hmac_sha256(
        &ticket.key,
        &stale.signed_part(),
    ));
    assert_eq!(
        said(&private, form, &stale).await,
        Some(ChannelAnswer::StaleEpoch)
    );
    // Of another session of the same hub.
    let other = Private::new(hub.at.public, false);
    let _second = Agent::with(hub.at.public, introduction(&other, channels())).await;
    let borrowed = other.preface(form, &ticket);
    assert_eq!(
        said(&private, form, &borrowed).await,
        Some(ChannelAnswer::BadTicket)
    );
    // Form 1 without TLS, and no preface at all.
    let wrong = private.preface(Form::Tls, &ticket);
    assert_eq!(said(&private, form, &wrong).await, None);
    assert_eq!(
        said(&private, form, &[b"CVDC".as_slice(), &[9; 60]].concat()).await,
        None
    );

    // All of that used nothing up.
    let mut wire = private.dial(form, &good).await.unwrap();
    assert_eq!(answer(&mut wire).await, Some(ChannelAnswer::Parked));
    parked(&hub, "plain", 1.0).await;
    assert_eq!(
        said(&private, form, &good).await,
        Some(ChannelAnswer::BadTicket)
    );
    for (reason, least) in [
        ("bad_ticket", 3.0),
        ("stale_epoch", 1.0),
        ("form", 1.0),
        ("preface_bad", 1.0),
    ] {
        let line = format!("culvert_channels_failed_total{{reason=\"{reason}\"}} ");
        let seen = metric(hub.at.internal, &line).await;
        assert!(seen.unwrap_or(0.0) >= least, "{reason}: {seen:?}");
    }
}

#[tokio::test]
async fn a_preface_may_come_byte_by_byte_and_http_that_begins_like_one_is_http() {
    let (hub, _agent, private) = keeping().await;
    let (form, ticket) = private.tickets.lock()[0].clone();
    let mut wire = private.dial(form, b"").await.unwrap();
    for byte in private.preface(form, &ticket) {
        wire.write_all(&[byte]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(answer(&mut wire).await, Some(ChannelAnswer::Parked));
    let connect = b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n";
    let answer = crate::client::exchange(hub.at.public, connect).await;
    assert_eq!(answer.status, 400);
}

#[tokio::test]
async fn a_channel_that_speaks_or_leaves_while_it_waits_is_replaced() {
    let (hub, _agent, private) = keeping().await;
    let tickets: Vec<_> = private.tickets.lock().drain(..).collect();
    let mut wires = Vec::new();
    for (form, ticket) in &tickets {
        let mut wire = private
            .dial(*form, &private.preface(*form, ticket))
            .await
            .unwrap();
        assert_eq!(answer(&mut wire).await, Some(ChannelAnswer::Parked));
        wires.push(wire);
    }
    parked(&hub, "plain", 2.0).await;
    wires[0].write_all(b"?").await.unwrap();
    let spoke = wires.remove(0);
    drop(wires);
    parked(&hub, "plain", 0.0).await;
    until("others are asked for", || async {
        (private.tickets.lock().len() >= 2).then_some(())
    })
    .await;
    drop(spoke);
}

#[tokio::test]
async fn a_session_that_is_replaced_takes_its_channels_along() {
    let at = free();
    let hub = Hub::with(&routed(&[("echo", at)]), TRUSTING);
    let private = Private::new(hub.at.public, true);
    let intro = |private| Introduction {
        instance: [7; 16],
        ..introduction(private, channels())
    };
    let _old = Agent::with(hub.at.public, intro(&private)).await;
    parked(&hub, "plain", 2.0).await;
    let newer = Private::new(hub.at.public, true);
    let _new = Agent::with(hub.at.public, intro(&newer)).await;
    let mut stream = reach(at).await;
    echoes(&mut stream, b"by the newer one").await;
    assert!(private.carried.lock().is_empty());
    parked(&hub, "plain", 2.0).await;
}

#[tokio::test]
async fn without_routes_no_channel_waits() {
    let clusters =
        format!(r#"[{{"id":"dev","token":"{TOKEN}"}},{{"id":"other","token":"{OTHER_TOKEN}"}}]"#);
    let hub = Hub::with(&clusters, TRUSTING);
    let private = Private::new(hub.at.public, false);
    let _agent = Agent::with(hub.at.public, introduction(&private, channels())).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(private.tickets.lock().is_empty());
    // A route that comes later brings them.
    hub.rewrite_clusters(&routed(&[("echo", free())]));
    until("tickets", || async {
        (!private.tickets.lock().is_empty()).then_some(())
    })
    .await;
    assert!(private.granted.lock().iter().any(|name| &**name == "echo"));
}

#[tokio::test]
async fn a_silent_preface_has_a_deadline() {
    let (_hub, _agent, private) = keeping().await;
    let mut wire = private.dial(Form::Plain, b"CVDC").await.unwrap();
    let began = std::time::Instant::now();
    let ended = wire.read_u8().await;
    assert!(ended.is_err());
    assert!(
        began.elapsed() < Duration::from_secs(12),
        "{:?}",
        began.elapsed()
    );
}
