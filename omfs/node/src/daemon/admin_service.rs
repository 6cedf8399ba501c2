//! The admin API of this node. The caller is whom the kernel says (`SO_PEERCRED`).

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use omfs_authz::admin::{Action, may_ask};
use omfs_cluster::control::{Caller, ControlError};
use omfs_config::ExportEntry;
use omfs_pki::{Authority, PkiError};
use omfs_service::peers::{Liveness, Peer, PeerDirectory};
use proto::v1;
use proto::v1::admin_server::Admin;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

use super::export_store::Change;
use super::members::wire_node;
use super::server::Services;
use super::status_files::state_word;
use crate::jobs::{Jobs, Progress};

/// Steps that wait for a slow reader.
const PROGRESS_QUEUE: usize = 64;
/// A token works this long if nobody says otherwise.
const TOKEN_TTL: Duration = Duration::from_secs(3_600);

/// Implements `omfs.v1.Admin`.
#[derive(Debug)]
pub struct AdminService {
    services: Services,
}

type ProgressStream = Pin<Box<dyn Stream<Item = Result<v1::MigrateProgress, Status>> + Send>>;

impl AdminService {
    /// For this node.
    pub fn new(services: Services) -> Self {
        Self { services }
    }

    /// Milliseconds since 1970; 0 when it was never seen.
    fn last_seen(&self, peer: &Peer) -> u64 {
        if matches!(peer.liveness, Liveness::Alive | Liveness::Myself) {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            return u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        }
        self.services.history.last_seen(peer.id).unwrap_or(0)
    }

    fn status_reply(&self) -> v1::StatusReply {
        let services = &self.services;
        let peers = services.directory.peers();
        let answers = |peer: &&Peer| {
            matches!(
                peer.liveness,
                Liveness::Alive | Liveness::Myself | Liveness::Suspect
            )
        };
        let (guests, away) = services.jobs.counts();
        v1::StatusReply {
            cluster: services.identity.cluster().to_string(),
            node: services
                .directory
                .by_id(services.myself.id)
                .as_ref()
                .map(wire_node),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            policy: Some(services.jobs.policy()),
            nodes_alive: u32::try_from(peers.iter().filter(answers).count()).unwrap_or(u32::MAX),
            nodes_known: u32::try_from(peers.len()).unwrap_or(u32::MAX),
            guests,
            away,
            mounts: omfs_mounts(),
        }
    }
}

/// Where the cluster file system is mounted, as this daemon sees it.
fn omfs_mounts() -> Vec<String> {
    let mounts = omfs_client::mount::mounted().into_iter();
    mounts.map(|point| point.display().to_string()).collect()
}

fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let info = request.extensions().get::<UdsConnectInfo>();
    let credentials = info.and_then(|info| info.peer_cred);
    let Some(credentials) = credentials else {
        return Err(Status::unauthenticated(
            "the kernel does not say who you are",
        ));
    };
    Ok(Caller {
        uid: credentials.uid(),
        gid: credentials.gid(),
        pid: credentials.pid(),
    })
}

fn check<T>(request: &Request<T>, action: Action) -> Result<(), Status> {
    let allowed = may_ask(caller(request)?.identity(), action);
    allowed.map_err(|no| Status::permission_denied(no.to_string()))
}

/// Works on the files of the CA, off the threads that serve calls.
async fn with_authority<T: Send + 'static>(
    services: &Services,
    work: impl FnOnce(&Authority) -> Result<T, PkiError> + Send + 'static,
) -> Result<T, Status> {
    let Some(authority) = services.authority.clone() else {
        return Err(Status::failed_precondition(
            "this node does not hold the cluster's CA key: ask the node that made the cluster",
        ));
    };
    let done = tokio::task::spawn_blocking(move || work(&authority)).await;
    done.map_err(|error| Status::internal(error.to_string()))?
        .map_err(|error| Status::internal(error.to_string()))
}

/// Runs a move beside the caller, who may go away: what was begun is brought to an end.
fn follow<F, W>(jobs: &Arc<Jobs>, work: W) -> Response<ProgressStream>
where
    W: FnOnce(Arc<Jobs>, Progress) -> F,
    F: Future<Output = Result<(), ControlError>> + Send + 'static,
{
    let (progress, steps) = mpsc::channel(PROGRESS_QUEUE);
    let work = work(Arc::clone(jobs), progress);
    let (ended, end) = mpsc::channel(1);
    tokio::spawn(async move {
        if let Err(error) = work.await {
            let _ = ended.send(Err(Status::from(error))).await;
        }
    });
    let steps = ReceiverStream::new(steps).map(Ok);
    Response::new(Box::pin(steps.chain(ReceiverStream::new(end))))
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(&self, _: Request<v1::Empty>) -> Result<Response<v1::StatusReply>, Status> {
        Ok(Response::new(self.status_reply()))
    }

    async fn nodes(&self, _: Request<v1::Empty>) -> Result<Response<v1::NodesReply>, Status> {
        let loads = self.services.jobs.loads().into_iter();
        let mut loads: HashMap<_, _> = loads.map(|load| (load.node_id, load)).collect();
        let peers = self.services.directory.peers();
        let nodes = peers.iter().map(|peer| v1::NodeStatus {
            node: Some(wire_node(peer)),
            state: state_word(peer.liveness).to_owned(),
            load: loads.remove(&peer.id.0),
            last_seen_unix_ms: self.last_seen(peer),
        });
        Ok(Response::new(v1::NodesReply {
            nodes: nodes.collect(),
        }))
    }

    async fn ps(
        &self,
        request: Request<v1::PsRequest>,
    ) -> Result<Response<v1::ProcessesReply>, Status> {
        let caller = caller(&request)?;
        let all = request.into_inner().all;
        let processes = self.services.jobs.processes(caller, all).await;
        Ok(Response::new(v1::ProcessesReply { processes }))
    }

    type MigrateStream = ProgressStream;

    async fn migrate(
        &self,
        request: Request<v1::MigrateRequest>,
    ) -> Result<Response<ProgressStream>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        Ok(follow(
            &self.services.jobs,
            move |jobs, progress| async move { jobs.migrate(caller, request, progress).await },
        ))
    }

    type BringStream = ProgressStream;

    async fn bring(&self, request: Request<v1::Empty>) -> Result<Response<ProgressStream>, Status> {
        check(&request, Action::Bring)?;
        Ok(follow(&self.services.jobs, |jobs, progress| async move {
            jobs.bring(progress).await
        }))
    }

    type ExpelStream = ProgressStream;

    async fn expel(&self, request: Request<v1::Empty>) -> Result<Response<ProgressStream>, Status> {
        check(&request, Action::Expel)?;
        Ok(follow(&self.services.jobs, |jobs, progress| async move {
            jobs.expel(progress).await
        }))
    }

    async fn set_policy(
        &self,
        request: Request<v1::PolicyRequest>,
    ) -> Result<Response<v1::StatusReply>, Status> {
        check(&request, Action::ChangePolicy)?;
        self.services.jobs.set_policy(request.into_inner()).await?;
        Ok(Response::new(self.status_reply()))
    }

    async fn lock(&self, request: Request<v1::LockRequest>) -> Result<Response<v1::Empty>, Status> {
        let caller = caller(&request)?;
        let v1::LockRequest { pid, locked } = request.into_inner();
        self.services.jobs.lock(caller, pid, locked).await?;
        Ok(Response::new(v1::Empty {}))
    }

    async fn token(
        &self,
        request: Request<v1::TokenRequest>,
    ) -> Result<Response<v1::TokenReply>, Status> {
        check(&request, Action::MakeTokens)?;
        let request = request.into_inner();
        let lifetime = match request.ttl_s {
            0 => TOKEN_TTL,
            seconds => Duration::from_secs(seconds),
        };
        let uses = request.uses.max(1);
        let issue = move |authority: &Authority| authority.issue_token(lifetime, uses);
        let token = with_authority(&self.services, issue).await?;
        Ok(Response::new(v1::TokenReply {
            token: token.to_string(),
        }))
    }

    async fn exports(&self, _: Request<v1::Empty>) -> Result<Response<v1::ExportsReply>, Status> {
        let entries = self.services.exports.entries();
        Ok(Response::new(exports_reply(entries)))
    }

    async fn change_exports(
        &self,
        request: Request<v1::ChangeExportsRequest>,
    ) -> Result<Response<v1::ExportsReply>, Status> {
        check(&request, Action::ChangeExports)?;
        let change = change_of(request.into_inner())?;
        tracing::info!(?change, "exports");
        let store = Arc::clone(&self.services.exports);
        let changed = tokio::task::spawn_blocking(move || store.change(change)).await;
        let entries = changed.map_err(|error| Status::internal(error.to_string()))??;
        Ok(Response::new(exports_reply(entries)))
    }

    async fn tokens(
        &self,
        request: Request<v1::Empty>,
    ) -> Result<Response<v1::TokensReply>, Status> {
        check(&request, Action::ListTokens)?;
        let list = |authority: &Authority| authority.tokens().list();
        let tokens = with_authority(&self.services, list).await?.into_iter();
        let tokens = tokens.map(|token| v1::TokenEntry {
            id: token.id,
            expires_unix_s: token.expires_s,
            uses: token.uses,
        });
        Ok(Response::new(v1::TokensReply {
            tokens: tokens.collect(),
        }))
    }

    async fn withdraw_token(
        &self,
        request: Request<v1::WithdrawTokenRequest>,
    ) -> Result<Response<v1::Empty>, Status> {
        check(&request, Action::WithdrawTokens)?;
        let id = request.into_inner().id;
        let missing = Status::not_found(format!("there is no join token {id:?}"));
        let withdraw = move |authority: &Authority| authority.tokens().withdraw(&id);
        if with_authority(&self.services, withdraw).await? {
            return Ok(Response::new(v1::Empty {}));
        }
        Err(missing)
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<v1::Node>, Status> {
        check(&request, Action::RemoveNodes)?;
        let services = &self.services;
        let wanted = request.into_inner().node;
        let Some(peer) = services.directory.by_name_or_id(&wanted) else {
            return Err(Status::not_found(format!("there is no node {wanted}")));
        };
        if peer.id == services.myself.id {
            return Err(Status::failed_precondition(
                "this node cannot remove itself: it holds the cluster's CA key",
            ));
        }
        let removals = services.removals.clone();
        let remove = move |authority: &Authority| removals.learn(&[authority.revoke(peer.id)?]);
        with_authority(services, remove).await?;
        services.removals.clone().spread().await;
        Ok(Response::new(wire_node(&peer)))
    }
}

fn exports_reply(entries: Vec<ExportEntry>) -> v1::ExportsReply {
    let entries = entries.into_iter().map(|entry| v1::ExportEntry {
        squash: entry.squash.word().to_owned(),
        path: entry.path,
        nodes: entry.nodes,
        read_only: entry.ro,
        min_id: entry.min_id,
    });
    v1::ExportsReply {
        entries: entries.collect(),
    }
}

fn change_of(request: v1::ChangeExportsRequest) -> Result<Change, Status> {
    use v1::change_exports_request::Change as Wish;
    match request.change {
        Some(Wish::Add(entry)) => {
            let v1::ExportEntry {
                path,
                nodes,
                read_only,
                squash,
                min_id,
            } = entry;
            let entry = ExportEntry::checked(path, nodes, read_only, &squash, min_id);
            entry.map(Change::Add).map_err(Status::invalid_argument)
        }
        Some(Wish::Remove(path)) => Ok(Change::Remove(path)),
        Some(Wish::Reset(true)) => Ok(Change::Reset),
        Some(Wish::Reset(false)) | None => Err(Status::invalid_argument("no change")),
    }
}
