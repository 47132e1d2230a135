//! The root of the mesh is replaced.

use std::time::Duration;

use super::{World, until};
use crate::api::v1::{self, RotationStep};
use crate::control::{self, Control};
use crate::identity::{Subject, issuer};
use crate::local::connect_to_server;
use crate::seal::Sealer;

async fn step(world: &World, step: RotationStep) -> Result<v1::RootsStatus, tonic::Status> {
    let mut server = connect_to_server(&world.directory.path().join("run")).await.unwrap();
    let request = v1::RotateRootsRequest { step: step.into() };
    server.rotate_roots(request).await.map(tonic::Response::into_inner)
}

/// Takes the step as soon as the hosts are ready for it, as an operator does who tries again.
async fn step_when_ready(world: &World, wanted: RotationStep) -> v1::RootsStatus {
    loop {
        match step(world, wanted).await {
            Ok(status) => return status,
            Err(refused) => assert!(refused.message().contains("not ready"), "{refused}"),
        }
        tokio::task::yield_now().await;
    }
}

async fn until_roots(control: &Control, count: usize) {
    control.identity.clone().wait_for(|identity| identity.bundle.len() == count).await.unwrap();
}

async fn until_signed_by_newest(control: &Control) {
    let is_newest = |leaf: &_, roots: &[_]| issuer(leaf, &roots[roots.len() - 1..]).unwrap().is_some();
    let mut identity = control.identity.clone();
    identity.wait_for(|identity| is_newest(&identity.chain[0], &identity.bundle)).await.unwrap();
}

async fn world(lifetime: Duration) -> World {
    World::start_with(tempfile::tempdir().unwrap(), |options| options.certificate_lifetime = lifetime).await
}

#[tokio::test]
async fn hosts_go_over_to_the_new_root_step_by_step_and_no_step_comes_too_early() {
    let world = world(Duration::from_secs(40)).await;
    let (one, two) = (world.agent("one").await, world.agent("two").await);
    for host in [&one, &two] {
        until(host, |catalog| catalog.hosts.len() == 2).await;
    }
    for early in [RotationStep::Activate, RotationStep::Unspecified] {
        assert!(step(&world, early).await.is_err());
    }
    let before = one.identity.borrow().bundle.clone();
    let prepared = step(&world, RotationStep::Prepare).await.unwrap();
    assert_eq!(
        (prepared.phase.as_str(), step(&world, RotationStep::Prepare).await.unwrap().trust),
        ("prepared", prepared.trust)
    );
    assert!(step(&world, RotationStep::Retire).await.is_err());
    until_roots(&one, 2).await;
    until_roots(&two, 2).await;
    assert_eq!(step_when_ready(&world, RotationStep::Activate).await.phase, "activated");
    until_signed_by_newest(&one).await;
    until_signed_by_newest(&two).await;
    let workload = Subject::Workload("one".parse().unwrap(), "user-root".parse().unwrap());
    assert_eq!(
        one.issuer().issue(&workload).await.unwrap().chain.len(),
        2,
        "it comes with a certificate by the old root"
    );
    assert_eq!(step_when_ready(&world, RotationStep::Retire).await.phase, "steady");
    until_roots(&one, 1).await;
    until_roots(&two, 1).await;
    assert_ne!(one.identity.borrow().bundle, before);
    assert_eq!(one.issuer().issue(&workload).await.unwrap().chain.len(), 1);
    world.agent("three").await;
}

#[tokio::test]
async fn who_was_away_comes_back_inside_the_overlap_and_with_a_new_token_after_it() {
    let world = world(Duration::from_secs(10)).await;
    let (old_token, unused) = (world.token().await, world.token().await);
    let away = world.agent_with("away", old_token).await;
    let late = world.agent("late").await;
    drop((away, late));
    let mut status = step(&world, RotationStep::Prepare).await.unwrap();
    while status.hosts.iter().any(|host| host.connected) {
        status = step(&world, RotationStep::Prepare).await.unwrap();
    }
    step(&world, RotationStep::Activate).await.unwrap();
    // It knows the old root only, and so does the token.
    let start =
        |node: &str, token| control::start(world.control_options(node, token), world.shutdown.clone());
    let back = start("away", None).await.unwrap();
    until_roots(&back, 2).await;
    until_signed_by_newest(&back).await;
    let joined = world.agent_with("new", unused).await;
    until_signed_by_newest(&joined).await;

    let directory = world.stop().await;
    let world =
        World::start_with(directory, |options| options.certificate_lifetime = Duration::from_secs(10)).await;
    assert_eq!(
        step_when_ready(&world, RotationStep::Retire).await.phase,
        "steady",
        "resumed after a restart"
    );
    let options = world.control_options("late", None);
    let sealer = Sealer::new(&options.seal.load(None).unwrap()).unwrap();
    let stranded = control::Membership::load(&options.data_dir, &sealer).unwrap().unwrap();
    assert!(stranded.identity().unwrap().bundle.len() == 1);
    let options = world.control_options("late", Some(world.token().await));
    let recovered = control::start(options, world.shutdown.clone()).await.unwrap();
    until_signed_by_newest(&recovered).await;
}
