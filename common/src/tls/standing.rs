//! Calls that are under way when their caller's certificate is revoked: the stream ends at its next piece, in either direction.
//!
//! [`super::require_role`] asks when a call begins, and a transfer or a restore may take hours.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tonic::{Status, body::Body};

use super::server::{PeerInfo, refuse_revoked};

/// Puts [`RevocationGuard`] around a server's services.
#[derive(Debug, Clone, Copy, Default)]
pub struct RevocationGuardLayer;

impl<S> tower::Layer<S> for RevocationGuardLayer {
    type Service = RevocationGuard<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RevocationGuard(inner)
    }
}

/// Ends the streams of a caller whose certificate is revoked.
#[derive(Debug, Clone)]
pub struct RevocationGuard<S>(S);

impl<S> tower::Service<http::Request<Body>> for RevocationGuard<S>
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Some(peer) = request.extensions().get::<PeerInfo>().cloned() else {
            return Box::pin(self.0.call(request));
        };
        let guard = |inner: Body, peer: PeerInfo| Body::new(Guarded { inner, peer });
        let answer = self.0.call(request.map(|body| guard(body, peer.clone())));
        Box::pin(async move { Ok(answer.await?.map(|body| guard(body, peer))) })
    }
}

/// A body that ends when its caller is revoked.
struct Guarded {
    inner: Body,
    peer: PeerInfo,
}

impl hyper::body::Body for Guarded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        // The end of a stream brings nothing.
        if !hyper::body::Body::is_end_stream(&self.inner)
            && let Err(refused) = refuse_revoked(&self.peer)
        {
            return Poll::Ready(Some(Err(refused)));
        }
        hyper::body::Body::poll_frame(Pin::new(&mut self.inner), context)
    }

    fn is_end_stream(&self) -> bool {
        hyper::body::Body::is_end_stream(&self.inner)
    }

    fn size_hint(&self) -> SizeHint {
        hyper::body::Body::size_hint(&self.inner)
    }
}
