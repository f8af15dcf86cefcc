//! The EndpointSlices of a Kubernetes Service: listed once, and watched from there.
//!
//! Needs `list` and `watch` on `endpointslices` in the API group `discovery.k8s.io`,
//! in the Service's namespace.
//!
//! A watch that ends or breaks is made again from the last version that was seen,
//! after a wait with jitter. Where the API has forgotten that version (410 Gone) the
//! slices are listed anew; until that list is there, the last set stands.
//!
//! What the API does say counts at once, an empty set too: unlike DNS it knows.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::api::{ListParams, WatchParams};
use kube::client::{Body, ConfigExt};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tower::{BoxError, ServiceBuilder};
use tracing::debug;
use zmq_echo::log::chain;

use super::addresses::LeftOut;
use super::answers::{Event, Status, Token, read_event, read_page};
use super::following::{Outage, Publisher, Waits, until_unheard};
use super::lines::Lines;
use super::retry_after::retry_after;
use super::service_port::ServicePort;
use super::slices::Slices;
use super::{Discovery, DiscoveryError, Endpoints, FailureKind, Failures, SourceFailure};

/// The wait after the first of several failures, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long a watch must have stood, or it must have said something, to be one that
/// works: only then is the next wait a short one.
const STEADY: Duration = Duration::from_secs(1);

/// Slices in one answer to a list: 2,000 endpoints as the API fills its slices.
const PAGE: u32 = 20;

/// Answers to one list: far more than are kept of them.
const MAX_PAGES: usize = 50;

/// Bytes in one answer to a list, or in one event: 20 slices of 1,000 endpoints, the
/// most that a slice can have.
const MAX_ANSWER: usize = 16 << 20;

/// How long the API may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For an answer to begin, and for a list to be read: 10 s, as an API server under
    /// load takes seconds.
    pub answer: Duration,
    /// After which the API is asked to end a watch, in whole seconds: 60 s, long
    /// beside what it costs to begin one, and short enough to find out about a
    /// connection that has died in silence.
    pub watch: Duration,
    /// How much longer than that a watch may be silent: 10 s.
    pub grace: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(10),
            watch: Duration::from_secs(60),
            grace: Duration::from_secs(10),
        }
    }
}

/// The API's client of this process: `$KUBECONFIG`, `~/.kube/config`, or the service
/// account of the pod that this runs in.
///
/// # Errors
///
/// Neither is there, or the one that is cannot be used.
pub async fn client() -> Result<Client, DiscoveryError> {
    let config =
        kube::Config::infer().await.map_err(|error| DiscoveryError::Kubernetes(error.into()))?;
    client_of(config).map_err(DiscoveryError::Kubernetes)
}

/// The API's client of a configuration.
///
/// It is not the one of `Client::try_from`, which logs each failure as an error and
/// repeats requests by itself: here a failure is logged once, and repeating is
/// [`Kubernetes`]' own. Proxies are left out, as they are in the features of kube.
///
/// # Errors
///
/// Its certificates or credentials cannot be used.
pub fn client_of(config: kube::Config) -> Result<Client, BoxError> {
    choose_crypto();
    let connector = config.rustls_https_connector()?;
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        // A connection that has been idle may be dead, and a list is rare.
        .pool_max_idle_per_host(0)
        .build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace))
}

/// Where a program that has copied this brings a second provider for TLS, rustls
/// panics unless one of them was chosen. A choice that was made stands.
fn choose_crypto() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Fails only where another thread has chosen in between.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

/// Lists and watches the EndpointSlices of a Service.
pub struct Kubernetes {
    port: ServicePort,
    client: Client,
    patience: Patience,
    outage: Outage,
}

impl Kubernetes {
    /// The endpoints of this port, from the API that `client` talks to.
    pub fn new(port: ServicePort, client: Client) -> Self {
        let outage = Outage::new(port.to_string());
        Self { port, client, patience: Patience::default(), outage }
    }

    /// Waits for the API as long as this.
    #[must_use]
    pub fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// The request that lists the slices from `page` on.
    fn list_request(&self, page: Option<String>) -> Result<Request<Vec<u8>>, Failure> {
        let mut params = ListParams::default().labels(&self.selector()).limit(PAGE);
        params.continue_token = page;
        Ok(self.resource().list(&params)?)
    }

    /// The request that watches them from `version` on.
    fn watch_request(&self, version: &str) -> Result<Request<Vec<u8>>, Failure> {
        let seconds = u32::try_from(self.patience.watch.as_secs()).unwrap_or(u32::MAX);
        let params = WatchParams::default().labels(&self.selector()).timeout(seconds);
        Ok(self.resource().watch(&params, version)?)
    }

    fn selector(&self) -> String {
        format!("kubernetes.io/service-name={}", self.port.service)
    }

    fn resource(&self) -> kube::core::Request {
        let url =
            format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", self.port.namespace);
        kube::core::Request::new(url)
    }

    /// Sends a request. The answer's body has a limit where it is read as one.
    async fn open(&self, request: Request<Vec<u8>>) -> Result<Body, Failure> {
        let response = timeout(self.patience.answer, self.client.send(request.map(Body::from)))
            .await
            .map_err(|_| Failure::Late(self.patience.answer))??;
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        let retry_after = retry_after(response.headers(), SystemTime::now());
        let body = self.read(response.into_body()).await.unwrap_or_default();
        // A proxy in between answers with something else than a Status.
        let message =
            serde_json::from_slice(&body).map_or(String::new(), |status: Status| status.message);
        Err(Failure::refused(status.as_u16(), message, retry_after))
    }

    /// Reads a whole answer. Its frames are not kept: there may be one for each byte.
    async fn read(&self, mut body: Body) -> Result<BytesMut, Failure> {
        let read = async {
            let mut bytes = BytesMut::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| Failure::Broken(error.into()))?;
                bytes.extend_from_slice(&frame.into_data().unwrap_or_default());
                if bytes.len() > MAX_ANSWER {
                    return Err(Failure::TooLarge);
                }
            }
            Ok(bytes)
        };
        let late = |_| Failure::Late(self.patience.answer);
        timeout(self.patience.answer, read).await.map_err(late)?
    }
}

impl Discovery for Kubernetes {
    fn follow(self: Box<Self>, endpoints: watch::Sender<Endpoints>) -> BoxFuture<'static, ()> {
        until_unheard(self.port.to_string(), endpoints, |publisher| {
            let follower = Follower {
                left_out: LeftOut::new(self.port.to_string()),
                slices: Slices::new(self.port.port.clone()),
                api: *self,
                publisher,
                waits: Waits::new(BACKOFF.0, BACKOFF.1),
                changed: false,
                version: None,
            };
            follower.run()
        })
        .boxed()
    }

    fn failures(&self) -> Failures {
        self.outage.failures()
    }
}

/// Why a list or a watch ended early.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Ends no outage and begins none: the API forgets versions as a rule.
    #[error("the API has forgotten the version")]
    Gone { retry_after: Option<Duration> },
    #[error("the API answered {code}{message}")]
    Refused { code: u16, message: String, retry_after: Option<Duration> },
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("the watch was silent for {0:?}")]
    Silent(Duration),
    #[error("an answer of more than {MAX_ANSWER} bytes")]
    TooLarge,
    #[error("the answer broke: {}", chain(&**.0))]
    Broken(BoxError),
    #[error("an answer that is not understood: {0}")]
    NotUnderstood(#[from] serde_json::Error),
    #[error("{}", chain(.0))]
    Unreachable(#[from] kube::Error),
    #[error("{0}")]
    Request(#[from] kube::core::request::Error),
}

impl Failure {
    /// The longest message of the API that is logged.
    const MESSAGE: usize = 300;

    fn refused(code: u16, message: String, retry_after: Option<Duration>) -> Self {
        if code == StatusCode::GONE.as_u16() {
            return Self::Gone { retry_after };
        }
        let cut: String = message.chars().take(Self::MESSAGE).collect();
        let message = if cut.is_empty() { cut } else { format!(": {cut}") };
        Self::Refused { code, message, retry_after }
    }

    /// How long the API asks to wait.
    fn retry_after(&self) -> Duration {
        match self {
            Self::Gone { retry_after } | Self::Refused { retry_after, .. } => {
                retry_after.unwrap_or_default()
            }
            _ => Duration::ZERO,
        }
    }
}

impl From<&Failure> for SourceFailure {
    fn from(failure: &Failure) -> Self {
        let kind = match failure {
            Failure::Refused { code: 401 | 403, .. } => FailureKind::Denied,
            Failure::Late(_)
            | Failure::Silent(_)
            | Failure::Broken(_)
            | Failure::Unreachable(_) => FailureKind::Unreachable,
            _ => FailureKind::Failed,
        };
        Self::new(kind, &failure.to_string())
    }
}

struct Follower {
    api: Kubernetes,
    publisher: Publisher,
    waits: Waits,
    slices: Slices,
    left_out: LeftOut,
    /// Whether the slices have changed since they were published last.
    changed: bool,
    /// Of the last list, event or bookmark; none where a list is due.
    version: Option<Token>,
}

impl Follower {
    async fn run(mut self) -> Infallible {
        loop {
            let ended = self.turn().await;
            let asked = ended.as_ref().map_or_else(Failure::retry_after, |()| Duration::ZERO);
            if let Err(failure) = ended {
                self.failed(&failure);
            }
            sleep(self.waits.next().max(asked)).await;
        }
    }

    fn failed(&mut self, failure: &Failure) {
        if matches!(failure, Failure::Gone { .. }) {
            debug!(source = %self.api.port, "the version is too old, listing anew");
            self.version = None;
            return;
        }
        // The same event would come again from the same version.
        if matches!(failure, Failure::NotUnderstood(_) | Failure::TooLarge) {
            self.version = None;
        }
        self.api.outage.failed(failure.into(), self.publisher.len());
    }

    /// Lists where that is due, and watches until that ends.
    async fn turn(&mut self) -> Result<(), Failure> {
        let version = match self.version.clone() {
            Some(version) => version,
            None => self.list().await?,
        };
        self.watch(version.as_str()).await?;
        if self.slices.is_cut() {
            self.version = None;
        }
        Ok(())
    }

    /// Replaces all slices by those that there are now.
    async fn list(&mut self) -> Result<Token, Failure> {
        let mut slices = Slices::new(self.api.port.port.clone());
        let mut next = None;
        let mut version = Token::default();
        for _ in 0..MAX_PAGES {
            let body = self.api.open(self.api.list_request(next)?).await?;
            let page = read_page(&self.api.read(body).await?, |slice| {
                slices.put(&slice);
            })?;
            version = page.resource_version;
            next = page.r#continue.map(Token::into_string).filter(|token| !token.is_empty());
            if next.is_none() {
                break;
            }
        }
        self.slices = slices;
        self.version = Some(version.clone());
        self.api.outage.recovered();
        self.changed = true;
        self.publish();
        Ok(version)
    }

    /// Takes events until the API ends the watch.
    async fn watch(&mut self, version: &str) -> Result<(), Failure> {
        let mut body = self.api.open(self.api.watch_request(version)?).await?;
        let idle = self.api.patience.watch + self.api.patience.grace;
        let mut lines = Lines::default();
        let mut steady = false;
        loop {
            let limit = if steady { idle } else { STEADY };
            match timeout(limit, body.frame()).await {
                Ok(None) => return Ok(()),
                Ok(Some(Ok(frame))) => {
                    lines.push(&frame.into_data().unwrap_or_default());
                    let taken = self.take_events(&mut lines);
                    // What came before a failure counts.
                    self.publish();
                    taken?;
                }
                Ok(Some(Err(error))) => return Err(Failure::Broken(error.into())),
                Err(_) if !steady => {
                    steady = true;
                    self.is_well();
                }
                Err(_) => return Err(Failure::Silent(limit)),
            }
        }
    }

    /// Takes the events that are whole, a line each. What came together is published
    /// together: an endpoint that moves from one slice to another does not blink.
    fn take_events(&mut self, lines: &mut Lines) -> Result<(), Failure> {
        while let Some(line) = lines.next() {
            self.take(read_event(&line)?)?;
            self.is_well();
        }
        if lines.unfinished() > MAX_ANSWER { Err(Failure::TooLarge) } else { Ok(()) }
    }

    fn take(&mut self, event: Event) -> Result<(), Failure> {
        let metadata = match event {
            Event::Put(slice) => {
                self.changed |= self.slices.put(&slice);
                slice.metadata
            }
            Event::Remove(metadata) => {
                self.changed |= self.slices.remove(metadata.name.as_ref());
                metadata
            }
            Event::Bookmark(metadata) => metadata,
            Event::Error(Status { code, message }) => {
                return Err(Failure::refused(code, message, None));
            }
        };
        self.version = metadata.resource_version;
        Ok(())
    }

    /// Publishes the set once for all that has changed. It is made anew each time, which would
    /// cost more than the bytes of an event that changes nothing.
    fn publish(&mut self) {
        if std::mem::take(&mut self.changed) {
            self.publisher.publish(self.slices.endpoints());
        }
        self.left_out.report(self.slices.left_out());
        let no_port = |text: &str| SourceFailure::new(FailureKind::NoSuchPort, text);
        self.api.outage.names_none(self.slices.no_port().map(no_port));
    }

    fn is_well(&mut self) {
        self.waits.reset();
        self.api.outage.recovered();
    }
}
