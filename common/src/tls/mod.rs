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

mod client;
mod credentials;
mod server;

pub use self::{
    client::{ConnectError, ConnectOptions, WireCounter, connect, explain_rpc_error},
    credentials::{Credentials, TlsError, TlsFiles, client_config, server_config},
    server::{IncomingLimits, PeerInfo, TlsConnection, incoming, require_role, server_builder},
};
pub use crate::pki::{IdentityError, PeerIdentity, Role};

/// HTTP/2 window of one stream. The default of 64 KiB means 1 MB/s at 64 ms of round trip.
pub const STREAM_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// HTTP/2 window of one connection: two streams at full pace.
pub const CONNECTION_WINDOW_BYTES: u32 = 32 * 1024 * 1024;
/// Largest HTTP/2 frame: fewer frames for the same bulk, and still far below a window.
const MAX_FRAME_BYTES: u32 = 256 * 1024;
/// Bound of all headers of one call, which hold a status with its details at most.
const MAX_HEADER_LIST_BYTES: u32 = 32 * 1024;

#[cfg(test)]
mod tests;
