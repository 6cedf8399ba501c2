//! Limits on requests: a layer in front of a gRPC server's services.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Extensions, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

/// Decides whether a request is carried out.
pub trait Gate: Send + Sync + 'static {
    /// What is held until the request's answer has gone out.
    type Held: Send + 'static;

    /// A request has come; what later layers need may be added to its extensions.
    ///
    /// # Errors
    /// The answer, if it is not carried out.
    fn enter(&self, extensions: &mut Extensions, path: &str) -> Result<Self::Held, Status>;
}

/// Puts a gate in front of services.
#[derive(Debug)]
pub struct GateLayer<G>(Arc<G>);

impl<G> GateLayer<G> {
    /// With this gate.
    pub fn new(gate: G) -> Self {
        Self(Arc::new(gate))
    }
}

impl<G> Clone for GateLayer<G> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S, G> Layer<S> for GateLayer<G> {
    type Service = Gated<S, G>;

    fn layer(&self, inner: S) -> Self::Service {
        Gated {
            inner,
            gate: Arc::clone(&self.0),
        }
    }
}

/// Services behind a gate.
#[derive(Debug)]
pub struct Gated<S, G> {
    inner: S,
    gate: Arc<G>,
}

impl<S: Clone, G> Clone for Gated<S, G> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            gate: Arc::clone(&self.gate),
        }
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S, G> Service<Request<Body>> for Gated<S, G>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
    G: Gate,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Answering {
        let path = request.uri().path().to_owned();
        match self.gate.enter(request.extensions_mut(), &path) {
            Ok(held) => {
                let answering = self.inner.call(request);
                Box::pin(async move {
                    let answer = answering.await?;
                    Ok(answer.map(|body| Body::new(HeldBody { body, _held: held })))
                })
            }
            Err(status) => Box::pin(std::future::ready(Ok(status.into_http()))),
        }
    }
}

/// The body of an answer, during which something is held.
struct HeldBody<H> {
    body: Body,
    _held: H,
}

impl<H> Unpin for HeldBody<H> {}

impl<H> HttpBody for HeldBody<H> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
