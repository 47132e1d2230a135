//! What only an administrator of the server may change. Every change is logged with who made it.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use tracing::{error, info};

use super::policy::{PolicyChangeError, PolicyRecords};
use super::registry::RegistryError;
use super::rotation::{Rotation, RotationError};
use super::web::Doors;
use crate::api::v1::administration_server::Administration;
use crate::api::{unix_seconds, v1};
use crate::local::caller;
use crate::policy::Defaults;

/// Serves the `Administration` interface.
pub struct AdministrationService {
    pub policy: Arc<PolicyRecords>,
    pub rotation: Rotation,
    /// `None` where there is no page.
    pub page: Option<Doors>,
}

#[tonic::async_trait]
impl Administration for AdministrationService {
    async fn add_rule(&self, request: Request<v1::AddRuleRequest>) -> Result<Response<v1::Rule>, Status> {
        let caller = caller(&request);
        let rule = self.policy.add_rule(request.get_ref()).await.map_err(refusal)?;
        info!(%caller, id = %rule.id, %rule, dry_run = rule.dry_run, "rule added");
        Ok(Response::new((&rule).into()))
    }

    async fn delete_rule(
        &self,
        request: Request<v1::DeleteRuleRequest>,
    ) -> Result<Response<v1::Rule>, Status> {
        let caller = caller(&request);
        let rule = self.policy.delete_rule(request.get_ref().id).await.map_err(refusal)?;
        info!(%caller, id = %rule.id, %rule, dry_run = rule.dry_run, "rule deleted");
        Ok(Response::new((&rule).into()))
    }

    async fn set_defaults(
        &self,
        request: Request<v1::SetDefaultsRequest>,
    ) -> Result<Response<v1::Defaults>, Status> {
        let caller = caller(&request);
        let defaults = self.policy.set_defaults(request.get_ref()).await.map_err(refusal)?;
        let Defaults { mesh, egress, mode, existing, unconfirmed } = defaults;
        let (back, forced) =
            (unconfirmed.map(|unconfirmed| unconfirmed.to_string()), request.get_ref().force);
        info!(%caller, %mesh, %egress, %mode, %existing, back, forced, "defaults of the policy set");
        Ok(Response::new(defaults.into()))
    }

    async fn set_service(
        &self,
        request: Request<v1::SetServiceRequest>,
    ) -> Result<Response<v1::Service>, Status> {
        let caller = caller(&request);
        let service = self.policy.set_service(request.get_ref()).await.map_err(refusal)?;
        info!(%caller, %service, forced = request.get_ref().force, "service set");
        Ok(Response::new((&service).into()))
    }

    async fn remove_service(
        &self,
        request: Request<v1::RemoveServiceRequest>,
    ) -> Result<Response<v1::Service>, Status> {
        let caller = caller(&request);
        let service = self.policy.remove_service(request.get_ref()).await.map_err(refusal)?;
        info!(%caller, %service, forced = request.get_ref().force, "service removed");
        Ok(Response::new((&service).into()))
    }

    async fn confirm_service(
        &self,
        request: Request<v1::ConfirmServiceRequest>,
    ) -> Result<Response<v1::Service>, Status> {
        let caller = caller(&request);
        let service = self.policy.confirm_service(&request.get_ref().name).await.map_err(refusal)?;
        info!(%caller, %service, "mode of a service confirmed");
        Ok(Response::new((&service).into()))
    }

    async fn confirm_defaults(
        &self,
        request: Request<v1::ConfirmDefaultsRequest>,
    ) -> Result<Response<v1::Defaults>, Status> {
        let caller = caller(&request);
        let defaults = self.policy.confirm_defaults().await.map_err(refusal)?;
        info!(%caller, mode = %defaults.mode, "default mode confirmed");
        Ok(Response::new(defaults.into()))
    }

    async fn drain_service(
        &self,
        request: Request<v1::DrainServiceRequest>,
    ) -> Result<Response<v1::Service>, Status> {
        let caller = caller(&request);
        let service = self.policy.drain_service(request.get_ref()).await.map_err(refusal)?;
        let v1::DrainServiceRequest { node, drained, .. } = request.into_inner();
        info!(%caller, %service, node, drained, "instance of a service drained, or taken back");
        Ok(Response::new((&service).into()))
    }

    async fn drain_host(
        &self,
        request: Request<v1::DrainHostRequest>,
    ) -> Result<Response<v1::Drained>, Status> {
        let caller = caller(&request);
        let all = self.policy.drain_host(request.get_ref()).await.map_err(refusal)?;
        let v1::DrainHostRequest { node, drained } = request.into_inner();
        info!(%caller, node, drained, "host drained, or taken back");
        Ok(Response::new(all))
    }

    async fn remove_host(
        &self,
        request: Request<v1::RemoveHostRequest>,
    ) -> Result<Response<v1::RemovedHost>, Status> {
        let caller = caller(&request);
        let removed = self.policy.remove_host(&request.get_ref().node).await.map_err(refusal)?;
        info!(%caller, node = removed.node, "host removed from the mesh");
        Ok(Response::new(removed))
    }

    async fn roots(&self, _request: Request<v1::RootsRequest>) -> Result<Response<v1::RootsStatus>, Status> {
        Ok(Response::new(self.rotation.status().await.map_err(rotation_refusal)?))
    }

    async fn rotate_roots(
        &self,
        request: Request<v1::RotateRootsRequest>,
    ) -> Result<Response<v1::RootsStatus>, Status> {
        let (caller, step) = (caller(&request), request.get_ref().step());
        let status = self.rotation.step(step).await.map_err(rotation_refusal)?;
        info!(%caller, step = step.as_str_name(), phase = status.phase, "replacement of the root");
        Ok(Response::new(status))
    }

    async fn open_page(
        &self,
        request: Request<v1::OpenPageRequest>,
    ) -> Result<Response<v1::OpenPageResponse>, Status> {
        let caller = caller(&request);
        let Some(page) = &self.page else {
            return Err(Status::failed_precondition(
                "this server has no page: it is switched off, or its address is taken, see --page and the log",
            ));
        };
        let (url, expires_at) = page.link().map_err(|_| Status::internal("no randomness"))?;
        info!(%caller, "link to the page made");
        Ok(Response::new(v1::OpenPageResponse { url, expires_at: unix_seconds(expires_at) }))
    }
}

fn rotation_refusal(error: RotationError) -> Status {
    let message = error.to_string();
    match error {
        RotationError::Order(_) | RotationError::Waiting(_) => Status::failed_precondition(message),
        RotationError::Registry(_) | RotationError::Behind => {
            error!(error = message, "the root could not be replaced");
            Status::unavailable(message)
        }
    }
}

fn refusal(error: PolicyChangeError) -> Status {
    use PolicyChangeError as Refused;
    let message = error.to_string();
    match error {
        Refused::Pattern(_)
        | Refused::Name(_)
        | Refused::Message(_)
        | Refused::Incomplete(_)
        | Refused::NothingToGoBackFrom
        | Refused::ConfirmTime => Status::invalid_argument(message),
        Refused::UnknownRule(_)
        | Refused::UnknownService(_)
        | Refused::UnknownHost(_)
        | Refused::NoSuchHost(_) => Status::not_found(message),
        Refused::TooMany { .. } | Refused::NoNumber => Status::resource_exhausted(message),
        Refused::PortTaken { .. }
        | Refused::InUse { .. }
        | Refused::LocksOut(_)
        | Refused::NothingToConfirm(_)
        | Refused::NotItsHost { .. }
        | Refused::NoCheck(_) => Status::failed_precondition(message),
        Refused::Behind | Refused::Registry(RegistryError::Store(_)) => {
            error!(error = message, "the policy could not be changed");
            Status::unavailable(message)
        }
        Refused::Registry(_) => {
            error!(error = message, "the policy could not be changed");
            Status::internal(message)
        }
    }
}
