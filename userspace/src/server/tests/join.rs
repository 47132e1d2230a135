//! Joining and renewing: who gets a certificate, and who does not.

use std::time::SystemTime;

use tonic::Code;

use super::{World, join_request};
use crate::api::v1;
use crate::control::{self, ControlError, DialError};
use crate::identity::HostKey;

#[tokio::test]
async fn a_lost_answer_to_a_join_is_given_again() {
    let world = World::start().await;
    let (token, key) = (world.token().await, HostKey::generate().unwrap());
    let mut client = world.call_anonymously(&token).await;
    for _ in 0..2 {
        let answer = client.join(join_request(&token, "fcs00", &key)).await.unwrap().into_inner();
        assert_eq!((answer.chain.len(), answer.bundle.len()), (1, 1));
    }
}

#[tokio::test]
async fn a_token_lets_one_host_in_once() {
    let world = World::start().await;
    let (token, key) = (world.token().await, HostKey::generate().unwrap());
    let mut client = world.call_anonymously(&token).await;
    client.join(join_request(&token, "fcs00", &key)).await.unwrap();
    let other_key = HostKey::generate().unwrap();
    for (node, key) in [("fcs01", &key), ("fcs00", &other_key)] {
        let refused = client.join(join_request(&token, node, key)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().contains("murmesh token create"), "{}", refused.message());
    }
}

#[tokio::test]
async fn of_hosts_racing_for_one_token_exactly_one_joins() {
    let world = World::start().await;
    let token = world.token().await;
    let client = world.call_anonymously(&token).await;
    let racers: Vec<_> = (0..8)
        .map(|number| {
            let (mut client, key) = (client.clone(), HostKey::generate().unwrap());
            let request = join_request(&token, &format!("racer{number}"), &key);
            tokio::spawn(async move { client.join(request).await.is_ok() })
        })
        .collect();
    let mut joined = 0;
    for racer in racers {
        joined += usize::from(racer.await.unwrap());
    }
    assert_eq!(joined, 1);
}

#[tokio::test]
async fn an_expired_or_unknown_token_is_refused() {
    let world = World::start().await;
    let (mut token, key) = (world.token_for(1).await.unwrap(), HostKey::generate().unwrap());
    let mut client = world.call_anonymously(&token).await;
    let left = token.expires_at.duration_since(SystemTime::now()).unwrap_or_default();
    tokio::time::sleep(left).await;
    let refused = client.join(join_request(&token, "fcs00", &key)).await.unwrap_err();
    assert!(refused.message().contains("expired"), "{}", refused.message());
    token.secret = [9; 32].into();
    let refused = client.join(join_request(&token, "fcs00", &key)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(world.token_for(0).await.is_err());
}

#[tokio::test]
async fn a_name_stays_with_the_key_that_took_it() {
    let world = World::start().await;
    let (first, second) = (world.token().await, world.token().await);
    let mut client = world.call_anonymously(&first).await;
    client.join(join_request(&first, "fcs00", &HostKey::generate().unwrap())).await.unwrap();
    let (thief, request) = (HostKey::generate().unwrap(), "fcs00");
    let refused = client.join(join_request(&second, request, &thief)).await.unwrap_err();
    assert!(refused.message().contains("already a member"), "{}", refused.message());
    // The refusal did not use up the token.
    client.join(join_request(&second, "fcs01", &thief)).await.unwrap();
}

#[tokio::test]
async fn only_the_key_that_joined_can_renew() {
    let world = World::start().await;
    let (token, key) = (world.token().await, HostKey::generate().unwrap());
    let mut client = world.call_anonymously(&token).await;
    client.join(join_request(&token, "fcs00", &key)).await.unwrap();
    let renewal = |node: &str, key: &HostKey| v1::RenewRequest {
        node: node.to_owned(),
        certificate_request: key.certificate_request().unwrap(),
    };
    client.renew(renewal("fcs00", &key)).await.unwrap();
    for request in [renewal("fcs00", &HostKey::generate().unwrap()), renewal("fcs01", &key)] {
        assert_eq!(client.renew(request).await.unwrap_err().code(), Code::PermissionDenied);
    }
}

#[tokio::test]
async fn a_server_with_another_root_is_not_trusted() {
    let world = World::start().await;
    let mut token = world.token().await;
    token.ca_fingerprint[0] ^= 1;
    let failed = control::start(world.control_options("fcs00", Some(token)), world.shutdown.clone()).await;
    assert!(matches!(failed, Err(ControlError::Dial(DialError::Untrusted { .. }))));
}
