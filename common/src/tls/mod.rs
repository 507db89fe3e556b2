//! TLS between the agents: version 1.3 only, certificates on both sides, one pinned CA, and a role in each
//! certificate.
//!
//! The crypto provider is passed explicitly and no session is resumed, so that each connection checks
//! certificates anew. There is no switch that turns a check off.
//!
//! | checked | by |
//! | --- | --- |
//! | own files: readable by nobody else, fitting, valid now, of the right role | [`Credentials::load`] |
//! | the server: issuer, validity, host name, role | [`connect`] |
//! | the client: issuer, validity, exactly one identity | [`incoming`] |
//! | the client's role | [`require_role`], in each call |
//! | that a caller is not revoked meanwhile | [`require_role`], and [`RevocationGuardLayer`] with each piece of a stream |

mod chain;
mod client;
mod connections;
mod credentials;
pub mod renewal;
pub mod revocation;
mod server;
mod standing;

pub use self::{
    client::{ConnectError, ConnectOptions, WireCounter, connect, connect_error_of, explain_rpc_error},
    connections::{Connections, Meter, MeteredChannel},
    credentials::{Credentials, TlsError, TlsFiles, client_config, server_config},
    server::{
        IncomingLimits, PeerInfo, TlsConnection, incoming, incoming_renewed, require_role, server_builder,
    },
    standing::{RevocationGuard, RevocationGuardLayer},
};
pub use crate::pki::{IdentityError, PeerIdentity, Role};

#[cfg(test)]
mod tests;
