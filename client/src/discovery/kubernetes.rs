//! Discovery by the Kubernetes API: the EndpointSlices of a Service, listed once and then watched.
//!
//! Use it through [`Source`](super::Source) with the URL `k8s://NAMESPACE/SERVICE[:PORT]`. The
//! pod's service account needs `list` and `watch` on `endpointslices` in the API group
//! `discovery.k8s.io`, in the Service's namespace.
//!
//! If a watch ends or breaks, it is resumed from the last version seen, after a wait with jitter.
//! If the API has forgotten that version (410 Gone), the slices are listed again, and the last set
//! stays until then.
//!
//! Unlike DNS, the API knows which endpoints exist. So its answers apply at once, including an
//! empty set.

use std::convert::Infallible;
use std::error::Error as _;
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

/// The bound of the wait after a first failure, and the longest bound.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A watch counts as working once it has lasted this long or delivered an event. Only then does the
/// next wait start short again.
const STEADY: Duration = Duration::from_secs(1);

/// Slices in one page of a list: 2,000 endpoints, as the API fills its slices.
const PAGE: u32 = 20;

/// The most pages of one list: far more than are kept.
const MAX_PAGES: usize = 50;

/// The largest page of a list, and the largest event, in bytes: 20 slices of 1,000 endpoints, the
/// most that a slice can have.
const MAX_ANSWER: usize = 16 << 20;

/// Time limits for the API.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How long an answer may take to begin, and a list to be read: 10 s. An API server under load
    /// takes seconds.
    pub answer: Duration,
    /// How long the API is asked to keep a watch open, in whole seconds: 60 s. It is long compared
    /// with the cost of a new watch, and short enough to notice a connection that has died
    /// silently.
    pub watch: Duration,
    /// How much longer than [`Self::watch`] a watch may be silent: 10 s.
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

/// A client for the Kubernetes API, configured by `$KUBECONFIG`, `~/.kube/config` or the service
/// account of the pod.
///
/// # Errors
///
/// If there is no configuration, or if it cannot be used.
pub async fn client() -> Result<Client, DiscoveryError> {
    let config = kube::Config::infer().await.map_err(|error| {
        // Outside of a pod only the kubeconfig matters, which is the error's source.
        let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        let source = error.source().filter(|_| !in_pod).map(ToString::to_string);
        DiscoveryError::Kubernetes(source.unwrap_or_else(|| error.to_string()).into())
    })?;
    client_of(config).map_err(DiscoveryError::Kubernetes)
}

/// A client for the Kubernetes API with this configuration.
///
/// Unlike `Client::try_from`, it neither logs each failure as an error nor repeats requests:
/// [`Kubernetes`] logs each outage once and retries by itself. Proxies are not supported.
///
/// # Errors
///
/// If its certificates or credentials cannot be used.
pub fn client_of(config: kube::Config) -> Result<Client, BoxError> {
    choose_crypto();
    let connector = config.rustls_https_connector()?;
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        // An idle connection may be dead, and lists are rare.
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

/// If the program contains a second TLS provider, rustls panics unless one is chosen. An earlier
/// choice stands.
fn choose_crypto() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // This fails only if another thread has chosen in the meantime.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

/// A source that lists and watches the EndpointSlices of a Service.
pub struct Kubernetes {
    port: ServicePort,
    client: Client,
    patience: Patience,
    outage: Outage,
}

impl Kubernetes {
    /// A source for this port, using the API that `client` talks to.
    pub fn new(port: ServicePort, client: Client) -> Self {
        let outage = Outage::new(port.to_string());
        Self { port, client, patience: Patience::default(), outage }
    }

    /// Replaces the time limits.
    #[must_use]
    pub fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// The request for a page of the list.
    fn list_request(&self, page: Option<String>) -> Result<Request<Vec<u8>>, Failure> {
        let mut params = ListParams::default().labels(&self.selector()).limit(PAGE);
        params.continue_token = page;
        Ok(self.resource().list(&params)?)
    }

    /// The request to watch the slices from `version` on.
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

    /// Sends a request. The size of the body is limited where it is read.
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
        // A proxy in between may answer with something other than a Status.
        let message =
            serde_json::from_slice(&body).map_or(String::new(), |status: Status| status.message);
        Err(Failure::refused(status.as_u16(), message, retry_after))
    }

    /// Reads a whole answer. Frames are copied rather than kept: there may be one for each byte.
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

/// Why a list or a watch failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The API has dropped an old version, as it regularly does. This neither starts nor ends an
    /// outage.
    #[error("the API no longer has this resource version")]
    Gone { retry_after: Option<Duration> },
    #[error("the API answered {code}{message}")]
    Refused { code: u16, message: String, retry_after: Option<Duration> },
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("the watch was silent for {0:?}")]
    Silent(Duration),
    #[error("the answer has more than {MAX_ANSWER} bytes")]
    TooLarge,
    #[error("the connection broke during the answer: {}", chain(&**.0))]
    Broken(BoxError),
    #[error("cannot parse the answer: {0}")]
    NotUnderstood(#[from] serde_json::Error),
    #[error("{}", chain(.0))]
    Unreachable(#[from] kube::Error),
    #[error("{0}")]
    Request(#[from] kube::core::request::Error),
}

impl Failure {
    /// The longest message of the API that is logged, in characters.
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
    /// Whether the slices have changed since they were last published.
    changed: bool,
    /// The version of the last list, event or bookmark. `None` if a list is due.
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
            debug!(source = %self.api.port, "the resource version has expired; listing again");
            self.version = None;
            return;
        }
        // Resuming from the same version would deliver the same event again.
        if matches!(failure, Failure::NotUnderstood(_) | Failure::TooLarge) {
            self.version = None;
        }
        self.api.outage.failed(failure.into(), self.publisher.len());
    }

    /// Lists the slices if that is due, then watches until the watch ends.
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

    /// Replaces all slices with a fresh list.
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

    /// Processes events until the API ends the watch.
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
                    // Events before a failure still count.
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

    /// Processes the complete events, one per line. Events that arrive together are published
    /// together, so that an endpoint that moves from one slice to another does not disappear in
    /// between.
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

    /// Publishes the set once for all changes. The set is built anew each time, so this is skipped
    /// if nothing changed.
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
