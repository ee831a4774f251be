//! Enrolment where several control processes share a database.

use culvert_control::cluster::Spec;
use culvert_control::enrol::CaState;
use culvert_enrol::{Key, Request};
use culvert_rpc::Hub as _;

use super::postgres::{cause, hub, id, until};
use super::server::Server;

fn request() -> Request {
    Request::read(&Key::generate().unwrap().request().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_share_one_ca_and_one_token() {
    let Some(server) = Server::start().await else {
        return;
    };
    let dsn = server.database("enrol").await;
    let (a, b) = (hub(&dsn).await, hub(&dsn).await);
    a.create(&cause(), id("dev"), Spec::default())
        .await
        .unwrap();
    until("b hears of it", || b.cluster(&id("dev")).is_ok()).await;
    // Both make the first CA at once: there is one.
    let (one, other) = tokio::join!(a.ensure_agent_ca(), b.ensure_agent_ca());
    one.unwrap();
    other.unwrap();
    let cas = a.agent_cas().await.unwrap();
    assert_eq!(cas.len(), 1);
    until("both publish it", || {
        a.feed().generation() == b.feed().generation()
    })
    .await;

    for _ in 0..8 {
        let minted = a.mint_enrol_token(&cause(), &id("dev")).await.unwrap();
        let token = minted.text.expose().to_owned();
        let uses = [a.clone(), b.clone(), a.clone(), b.clone()].map(|hub| {
            let token = token.clone();
            tokio::spawn(async move {
                let got = hub.register(&cause(), &token, "dev", &request()).await;
                got.is_ok()
            })
        });
        let mut won = 0;
        for used in uses {
            won += usize::from(used.await.unwrap());
        }
        assert_eq!(won, 1, "of two uses at once one wins, wherever they come");
    }

    // What one stages the other promotes, and both sign with it.
    let staged = a.stage_agent_ca(&cause()).await.unwrap();
    let promoted = b.promote_agent_ca(&cause()).await.unwrap();
    assert_eq!(promoted.id, staged.id);
    let states: Vec<_> = a.agent_cas().await.unwrap();
    let states: Vec<_> = states.iter().map(|ca| ca.state).collect();
    assert!(states.contains(&CaState::Signing) && states.contains(&CaState::Trusted));
    let cause = cause();
    let (one, other) = tokio::join!(
        a.retire_agent_ca(&cause, &cas[0].id),
        b.retire_agent_ca(&cause, &cas[0].id)
    );
    assert_eq!(usize::from(one.is_ok()) + usize::from(other.is_ok()), 1);
    assert_eq!(b.agent_cas().await.unwrap().len(), 1);
}
