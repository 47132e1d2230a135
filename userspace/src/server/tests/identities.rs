//! Certificates for workloads and services: a joined host gets its own and nobody else's, whatever it sends.

use std::time::{Duration, SystemTime};

use tonic::{Code, Status};

use super::World;
use crate::api::v1;
use crate::control::{Control, ControlError};
use crate::identity::{HostKey, Identity, Subject};
use crate::local::connect_to_server;

impl World {
    /// Asks as `identity`, speaking the API directly.
    async fn sign(&self, identity: &Identity, spiffe_id: &str) -> Result<v1::CertificateResponse, Status> {
        let certificate_request = HostKey::generate().unwrap().certificate_request().unwrap();
        let request = v1::SignWorkloadRequest { spiffe_id: spiffe_id.to_owned(), certificate_request };
        Ok(self.call_as(identity).await.sign_workload(request).await?.into_inner())
    }

    async fn register(&self, name: &str, host: &str) {
        let request = v1::SetServiceRequest {
            name: name.to_owned(),
            hosts: vec![host.to_owned()],
            port: Some(8181),
            ..v1::SetServiceRequest::default()
        };
        let mut server = connect_to_server(&self.directory.path().join("run")).await.unwrap();
        server.set_service(request).await.unwrap();
    }
}

fn current(control: &Control) -> std::sync::Arc<Identity> {
    control.identity.borrow().clone()
}

fn workload(node: &str, unit: &str) -> Subject {
    Subject::Workload(node.parse().unwrap(), unit.parse().unwrap())
}

#[tokio::test]
async fn a_host_gets_identities_for_its_workloads_and_registered_services() {
    let world = World::start().await;
    let host = world.agent("fcs00").await;
    world.register("fortune", "fcs00").await;
    let issuer = host.issuer();
    for (subject, id) in [
        (workload("fcs00", "nginx.service"), "spiffe://mesh.test/host/fcs00/nginx.service"),
        (Subject::Service("fortune".parse().unwrap()), "spiffe://mesh.test/service/fortune"),
    ] {
        let identity = issuer.issue(&subject).await.unwrap();
        assert_eq!(identity.id.to_string(), id);
        let left = identity.not_after.duration_since(SystemTime::now()).unwrap();
        assert!(left <= Duration::from_secs(3600) && left > Duration::from_secs(3500), "{left:?}");
        assert_ne!(identity.key.secret_der(), current(&host).key.secret_der(), "each has a key of its own");
    }
}

#[tokio::test]
async fn a_hostile_host_is_nobody_but_itself() {
    let world = World::start().await;
    let (hostile, _victim) = (world.agent("hostile").await, world.agent("victim").await);
    world.register("fortune", "victim").await;
    let identity = current(&hostile);
    for stolen in [
        "spiffe://mesh.test/host/victim/nginx.service",
        "spiffe://mesh.test/host/victim",
        "spiffe://mesh.test/host/hostile",
        "spiffe://mesh.test/server/murmesh00",
        "spiffe://mesh.test/service/fortune",
        "spiffe://mesh.test/service/not-registered",
        "spiffe://other.test/host/hostile/nginx.service",
    ] {
        let refused = world.sign(&identity, stolen).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{stolen}");
        assert!(refused.message().contains("host hostile may not have"), "{}", refused.message());
    }
    for crooked in [
        "",
        "host/hostile/nginx.service",
        "spiffe://mesh.test/host/hostile/../victim",
        "spiffe://mesh.test/host/hostile/..",
        "spiffe://mesh.test/host/hostile/a/b",
        "spiffe://mesh.test/host/hostile/a%2fb",
        "spiffe://mesh.test/host/VICTIM/a",
        "spiffe://mesh.test/host/hostile/a?/host/victim/a",
    ] {
        let refused = world.sign(&identity, crooked).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{crooked}");
    }
    let refused = hostile.issuer().issue(&workload("victim", "nginx.service")).await.unwrap_err();
    assert!(matches!(refused, ControlError::Refused { retry: false, .. }), "{refused}");
}

#[tokio::test]
async fn names_in_the_request_count_for_nothing() {
    let world = World::start().await;
    let host = world.agent("fcs00").await;
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let stolen = "spiffe://mesh.test/host/victim/nginx.service".try_into().unwrap();
    let mut parameters = rcgen::CertificateParams::new(["victim".to_owned()]).unwrap();
    parameters.subject_alt_names.push(rcgen::SanType::URI(stolen));
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate_request = parameters.serialize_request(&key).unwrap().der().to_vec();
    let spiffe_id = "spiffe://mesh.test/host/fcs00/nginx.service".to_owned();
    let request = v1::SignWorkloadRequest { spiffe_id: spiffe_id.clone(), certificate_request };
    // Refused or signed under the name that was asked for: never under the one in the request.
    if let Ok(answer) = world.call_as(&current(&host)).await.sign_workload(request).await {
        let chain: Vec<_> = answer.into_inner().chain.into_iter().map(Into::into).collect();
        assert_eq!(crate::identity::peer_identity(&chain).unwrap().id.to_string(), spiffe_id);
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        assert!(!leaf.is_ca());
    }
}

#[tokio::test]
async fn a_service_that_moved_is_signed_for_its_new_host_only() {
    let world = World::start().await;
    let (before, after) = (world.agent("before").await, world.agent("after").await);
    let id = "spiffe://mesh.test/service/fortune";
    world.register("fortune", "before").await;
    world.sign(&current(&before), id).await.unwrap();
    world.register("fortune", "after").await;
    assert_eq!(world.sign(&current(&before), id).await.unwrap_err().code(), Code::PermissionDenied);
    world.sign(&current(&after), id).await.unwrap();
}

#[tokio::test]
async fn the_certificate_of_a_workload_does_not_speak_for_its_host() {
    let world = World::start().await;
    let host = world.agent("fcs00").await;
    let identity = host.issuer().issue(&workload("fcs00", "nginx.service")).await.unwrap();
    let tls = crate::identity::tls::api_client(&identity).unwrap();
    // TLS 1.3: the client may only learn of it by the first call.
    if let Ok(mut client) = crate::control::dial(&world.address, tls, None).await {
        assert!(client.watch(v1::WatchRequest {}).await.is_err(), "a workload watched as a host");
    }
}
