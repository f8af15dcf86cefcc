//! Follows the source of endpoints: makes a connection for each that comes, and
//! drains that of each that goes.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::connection::Connection;
use super::discovery::{Discovery, Endpoint, EndpointState, Endpoints};
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
        let addresses = member.wanted.borrow().addresses.clone();
        want(&member, &Endpoint::new(EndpointState::Draining, addresses));
    }
    for (endpoint, known) in wanted {
        match shared.roster.get(endpoint) {
            // One that is still draining may be wanted again.
            Some(member) => want(&member, known),
            None if known.state == EndpointState::Draining => {}
            None if shared.roster.len() < shared.config.max_endpoints => {
                connect(shared, endpoint, known, connections);
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

/// Tells the endpoint's connection what the source says of it now.
fn want(member: &Member, known: &Endpoint) {
    let mut before = None;
    member.wanted.send_if_modified(|now| {
        let changed = *now != *known;
        before = changed.then(|| std::mem::replace(now, known.clone()));
        changed
    });
    if before.is_some_and(|before| before.state != known.state) {
        let draining = known.state == EndpointState::Draining;
        info!(endpoint = %member.endpoint, draining, "endpoint changed");
    }
}

fn connect(
    shared: &Arc<Shared>,
    endpoint: &ConnectEndpoint,
    known: &Endpoint,
    connections: &mut JoinSet<()>,
) {
    info!(%endpoint, "endpoint added");
    let (submissions, queue) = mpsc::unbounded_channel();
    let metrics = shared.metrics.clone();
    let member = Arc::new(Member::new(endpoint.clone(), known.clone(), submissions, metrics));
    shared.roster.insert(Arc::clone(&member));
    connections.spawn(Connection::new(Arc::clone(shared), member, queue).run());
}
