//! Follows the source of endpoints: makes a connection for each that comes, and
//! drains that of each that goes.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::connection::Connection;
use super::discovery::{Discovery, EndpointState, Endpoints};
use super::member::Member;
use super::shared::{Phase, Shared};
use zmtp::endpoint::ConnectEndpoint;

/// Runs until the client is closed. Where it is aborted its tasks are as well.
pub(super) async fn run(shared: Arc<Shared>, discovery: Box<dyn Discovery>) {
    let (sender, mut source) = watch::channel(Endpoints::new());
    let mut follower = JoinSet::new();
    follower.spawn(discovery.follow(sender));
    let mut connections = JoinSet::new();
    let mut wanted = Endpoints::new();
    let mut following = true;
    loop {
        // Each of these is cancel-safe: nothing is taken before the arm runs.
        tokio::select! {
            changed = source.changed(), if following => match changed {
                Ok(()) => {
                    wanted = source.borrow_and_update().clone();
                    warn_if_too_many(&shared, wanted.len());
                }
                // The source has ended; what it said last stands.
                Err(_) => following = false,
            },
            Some(_) = connections.join_next() => {}
            () = shared.closed() => break,
        }
        reconcile(&shared, &wanted, &mut connections);
    }
    reconcile(&shared, &Endpoints::new(), &mut connections);
    while connections.join_next().await.is_some() {}
    shared.phase.send_replace(Phase::Closed);
}

/// Makes what is there into what is wanted.
fn reconcile(shared: &Arc<Shared>, wanted: &Endpoints, connections: &mut JoinSet<()>) {
    shared.roster.set_known(wanted.len());
    for member in shared.roster.members_where(|endpoint| !wanted.contains_key(endpoint)) {
        drain(&member, true);
    }
    for (endpoint, state) in wanted {
        let draining = *state == EndpointState::Draining;
        match shared.roster.get(endpoint) {
            // One that is still draining may be wanted again.
            Some(member) => drain(&member, draining),
            None if draining => {}
            None if shared.roster.len() < shared.config.max_endpoints => {
                connect(shared, endpoint, connections);
            }
            // Its turn comes when another has gone.
            None => {}
        }
    }
}

fn warn_if_too_many(shared: &Shared, endpoints: usize) {
    let limit = shared.config.max_endpoints;
    if endpoints > limit {
        warn!(endpoints, limit, "more endpoints than the limit");
    }
}

fn drain(member: &Member, draining: bool) {
    let changed =
        member.draining.send_if_modified(|now| std::mem::replace(now, draining) != draining);
    if changed {
        info!(endpoint = %member.endpoint, draining, "endpoint changed");
    }
}

fn connect(shared: &Arc<Shared>, endpoint: &ConnectEndpoint, connections: &mut JoinSet<()>) {
    info!(%endpoint, "endpoint added");
    let (submissions, queue) = mpsc::unbounded_channel();
    let member = Arc::new(Member::new(endpoint.clone(), submissions, shared.metrics.clone()));
    shared.roster.insert(Arc::clone(&member));
    connections.spawn(Connection::new(Arc::clone(shared), member, queue).run());
}
