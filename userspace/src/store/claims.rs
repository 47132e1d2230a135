//! What every store must do, tried with each of them.

use std::sync::Arc;
use std::time::Duration;

use super::etcd::testing::Cluster;
use super::{
    ANNOUNCED, Applied, Change, Condition, EmbeddedStore, EtcdStore, Outcome, Store, StoreError, Transaction,
    Watch,
};

/// A store, and what it needs.
struct World {
    store: Arc<dyn Store>,
    /// Another server's, where there can be one.
    other: Option<Arc<dyn Store>>,
    _directory: tempfile::TempDir,
    _cluster: Option<Cluster>,
}

/// Every kind of store that this machine can have.
async fn worlds() -> Vec<World> {
    let directory = tempfile::tempdir().unwrap();
    let embedded = EmbeddedStore::open(&directory.path().join("db")).unwrap();
    let mut worlds =
        vec![World { store: Arc::new(embedded), other: None, _directory: directory, _cluster: None }];
    if let Some(cluster) = Cluster::start(1).await {
        let (store, other) = (cluster.store("one").await, cluster.store("other").await);
        worlds.push(World {
            store: Arc::new(store),
            other: Some(Arc::new(other)),
            _directory: tempfile::tempdir().unwrap(),
            _cluster: Some(cluster),
        });
    }
    worlds
}

fn change(change: Change) -> Transaction {
    Transaction { conditions: vec![], changes: vec![change] }
}

fn put(key: &str, value: &str) -> Transaction {
    change(Change::Put(key.to_owned(), value.into()))
}

fn announce(name: &str, value: &str) -> Transaction {
    change(Change::Announce(format!("{ANNOUNCED}{name}"), value.into()))
}

async fn applied(store: &dyn Store, transaction: Transaction) -> u64 {
    match store.commit(transaction).await.unwrap() {
        Outcome::Applied(revision) => revision,
        Outcome::Conflict => panic!("a conflict"),
    }
}

async fn next(watch: &mut Box<dyn Watch>) -> Arc<Applied> {
    tokio::time::timeout(Duration::from_secs(30), watch.next()).await.unwrap().unwrap()
}

#[tokio::test]
async fn what_was_put_is_there_with_its_revision_and_a_list_is_in_order() {
    for world in worlds().await {
        let store = &*world.store;
        let first = applied(store, put("a/2", "x")).await;
        let second = applied(store, put("a/1", "y")).await;
        let third = applied(store, put("b", "z")).await;
        assert!(first < second && second < third);
        let (revision, entries) = store.list("a/").await.unwrap();
        assert_eq!(revision, third);
        let found: Vec<_> = entries.iter().map(|entry| (entry.key.as_str(), entry.revision)).collect();
        assert_eq!(found, [("a/1", second), ("a/2", first)]);
        assert_eq!(store.get("b").await.unwrap().unwrap().value, b"z");
        applied(store, change(Change::Delete("b".to_owned()))).await;
        assert!(store.get("b").await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_conflict_changes_nothing() {
    for world in worlds().await {
        let store = &*world.store;
        let revision = applied(store, put("a", "x")).await;
        let unchanged = |revision| Condition::Unchanged("a".to_owned(), revision);
        for condition in [Condition::Absent("a".to_owned()), unchanged(revision + 9)] {
            let transaction = Transaction { conditions: vec![condition], ..put("a", "z") };
            assert_eq!(store.commit(transaction).await.unwrap(), Outcome::Conflict);
        }
        assert_eq!(store.get("a").await.unwrap().unwrap().value, b"x");
        applied(store, Transaction { conditions: vec![unchanged(revision)], ..put("a", "z") }).await;
    }
}

#[tokio::test]
async fn of_many_racing_for_one_key_exactly_one_wins() {
    for world in worlds().await {
        let racers = (0..16).map(|racer| {
            let even = racer % 2 == 0;
            let store = world.other.clone().filter(|_| even).unwrap_or_else(|| world.store.clone());
            let absent = Condition::Absent("token".to_owned());
            let transaction = Transaction { conditions: vec![absent], ..put("token", &racer.to_string()) };
            tokio::spawn(async move { store.commit(transaction).await.unwrap() })
        });
        let mut winners = 0;
        for racer in racers.collect::<Vec<_>>() {
            winners += usize::from(racer.await.unwrap() != Outcome::Conflict);
        }
        assert_eq!(winners, 1);
    }
}

#[tokio::test]
async fn a_watch_sees_every_transaction_whole_and_in_order() {
    for world in worlds().await {
        let store = &*world.store;
        let before = applied(store, put("a", "0")).await;
        let mut watch = world.other.as_ref().unwrap_or(&world.store).watch(before);
        let mut revisions = Vec::new();
        for value in ["1", "2", "3"] {
            let mut transaction = put("a", value);
            transaction.changes.push(Change::Put("b".to_owned(), value.into()));
            revisions.push((applied(store, transaction.clone()).await, transaction.changes));
        }
        revisions.push((
            applied(store, change(Change::Delete("a".to_owned()))).await,
            vec![Change::Delete("a".to_owned())],
        ));
        for (revision, changes) in revisions {
            let told = next(&mut watch).await;
            assert_eq!(told.revision, revision);
            assert_eq!(told.changes, changes);
        }
    }
}

#[tokio::test]
async fn what_is_announced_is_there_like_anything_else_while_its_server_is() {
    for world in worlds().await {
        let store = &*world.store;
        let before = applied(store, put("a", "0")).await;
        let mut watch = store.watch(before);
        let revision = applied(store, announce("leader", "one")).await;
        let key = format!("{ANNOUNCED}leader");
        assert_eq!(next(&mut watch).await.changes, [Change::Put(key.clone(), b"one".to_vec())]);
        let entry = store.get(&key).await.unwrap().unwrap();
        assert_eq!((entry.revision, entry.value.as_slice()), (revision, b"one".as_slice()));
        assert_eq!(store.list(ANNOUNCED).await.unwrap().1.len(), 1);
        let absent = Condition::Absent(key.clone());
        let late = Transaction { conditions: vec![absent], ..announce("leader", "two") };
        assert_eq!(store.commit(late).await.unwrap(), Outcome::Conflict);
        let fenced = Condition::Unchanged(key.clone(), revision);
        applied(store, Transaction { conditions: vec![fenced], ..put("a", "1") }).await;
        applied(store, change(Change::Delete(key.clone()))).await;
        assert!(store.get(&key).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn what_was_announced_goes_with_its_server_and_the_rest_stays() {
    for world in worlds().await {
        let Some(other) = &world.other else { continue };
        applied(&*world.store, announce("one", "x")).await;
        applied(&**other, announce("other", "y")).await;
        applied(&**other, put("durable", "z")).await;
        let mut watch = world.store.watch(world.store.list("").await.unwrap().0);
        other.close().await;
        let gone = next(&mut watch).await;
        assert_eq!(gone.changes, [Change::Delete(format!("{ANNOUNCED}other"))]);
        assert!(world.store.get("durable").await.unwrap().is_some());
        assert!(world.store.get(&format!("{ANNOUNCED}one")).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn nothing_is_lost_and_watches_go_on_when_a_member_of_etcd_is_killed() {
    let Some(mut cluster) = Cluster::start(3).await else { return };
    let store = cluster.store("one").await;
    let mut last = applied(&store, put("count", "0")).await;
    let mut watch = store.watch(last);
    cluster.kill(cluster.leader().await);
    for round in 1..20 {
        // Exactly as after a lost answer: a conflict would mean that it was applied twice or by another.
        let unchanged = Condition::Unchanged("count".to_owned(), last);
        last =
            applied(&store, Transaction { conditions: vec![unchanged], ..put("count", &round.to_string()) })
                .await;
        let told = next(&mut watch).await;
        assert_eq!((told.revision, &told.changes), (last, &put("count", &round.to_string()).changes));
    }
}

#[tokio::test]
async fn without_a_majority_of_etcd_every_call_says_so_and_works_again_afterwards() {
    let Some(mut cluster) = Cluster::start(3).await else { return };
    let store = cluster.store("one").await;
    let before = applied(&store, put("a", "0")).await;
    cluster.kill(0);
    cluster.kill(1);
    for error in [store.get("a").await.map(|_| ()), store.commit(put("a", "1")).await.map(|_| ())] {
        assert!(matches!(error, Err(StoreError::NoQuorum { .. })), "{error:?}");
    }
    cluster.restart(0).await;
    let mut watch = store.watch(before);
    applied(&store, put("b", "2")).await;
    loop {
        // The refused one may have been made after all.
        let told = next(&mut watch).await;
        if told.changes == put("b", "2").changes {
            break;
        }
        assert_eq!(told.changes, put("a", "1").changes);
    }
}

#[tokio::test]
async fn a_watch_from_before_the_history_must_list_again() {
    let Some(cluster) = Cluster::start(1).await else { return };
    let store = cluster.store("one").await;
    applied(&store, put("a", "0")).await;
    let last = applied(&store, put("a", "1")).await;
    cluster.compact(last).await;
    assert!(matches!(store.watch(0).next().await, Err(StoreError::Compacted(0))));
}

#[tokio::test]
async fn etcd_is_spoken_to_over_tls_and_knows_the_server_by_its_certificate() {
    let Some(cluster) = Cluster::start_with_tls().await else { return };
    applied(&cluster.store("one").await, put("a", "0")).await;
    let mut stranger = cluster.options("two");
    stranger.tls.client = None;
    let refused = EtcdStore::open(&stranger).await.unwrap().get("a").await;
    assert!(matches!(refused, Err(StoreError::NoQuorum { .. })), "{refused:?}");
}
