//! Follows the source of endpoints: opens a connection to each endpoint that appears, and drains
//! the connection to each one that disappears.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::connection::Connection;
use super::discovery::{Discovery, Endpoint, EndpointState, Endpoints};
use super::member::Member;
use super::shared::{Phase, Shared};
use zmtp::endpoint::ConnectEndpoint;

/// Runs until the client is closed. Aborting it aborts its tasks too.
pub(super) async fn run(shared: Arc<Shared>, discovery: Box<dyn Discovery>) {
    let (sender, mut source) = watch::channel(Endpoints::new());
    let mut follower = JoinSet::new();
    follower.spawn(discovery.follow(sender));
    let mut connections = JoinSet::new();
    let mut wanted = Endpoints::new();
    let mut following = true;
    loop {
        // Each of these is cancel-safe: none consumes anything before its arm runs.
        tokio::select! {
            changed = source.changed(), if following => match changed {
                Ok(()) => {
                    wanted = source.borrow_and_update().clone();
                    warn_if_too_many(&shared, wanted.len());
                }
                // The source has ended. Its last set of endpoints stays in use.
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

/// Starts and drains connections until they match the wanted endpoints.
fn reconcile(shared: &Arc<Shared>, wanted: &Endpoints, connections: &mut JoinSet<()>) {
    shared.roster.set_known(wanted.len());
    for member in shared.roster.members_where(|endpoint| !wanted.contains_key(endpoint)) {
        let addresses = member.wanted.borrow().addresses.clone();
        want(&member, &Endpoint::new(EndpointState::Draining, addresses));
    }
    for (endpoint, known) in wanted {
        match shared.roster.get(endpoint) {
            // A draining endpoint may be wanted again.
            Some(member) => want(&member, known),
            None if known.state == EndpointState::Draining => {}
            None if shared.roster.len() < shared.config.max_endpoints => {
                connect(shared, endpoint, known, connections);
            }
            // There is no room. It gets a connection once another endpoint has gone.
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

/// Passes the state that the source reports for an endpoint to its connection.
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
    // Bounded by the limit of outstanding requests: each submission holds a slot.
    let (submissions, queue) = mpsc::unbounded_channel();
    let metrics = shared.metrics.clone();
    let member = Arc::new(Member::new(endpoint.clone(), known.clone(), submissions, metrics));
    shared.roster.insert(Arc::clone(&member));
    connections.spawn(Connection::new(Arc::clone(shared), member, queue).run());
}
