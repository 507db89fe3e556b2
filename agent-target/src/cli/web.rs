//! `web login`: a link to the page for a browser.

use assay_common::cli::show;
use assay_proto::v1::{CreateWebLoginRequest, WebLogin, target_service_client::TargetServiceClient};
use tonic::{Status, transport::Channel};

/// The page for a browser.
#[derive(Debug, clap::Subcommand)]
pub(super) enum WebCommand {
    /// Print a link that opens one session of the page for a browser: it can be used once, within five minutes
    ///
    /// The session lasts twelve hours, shows what `status` and `explain` show, and changes nothing. Whoever has the link can open it.
    Login,
}

impl WebCommand {
    /// Asks the agent.
    pub(super) async fn call(&self, client: &mut TargetServiceClient<Channel>) -> Result<WebLogin, Status> {
        let Self::Login = self;
        Ok(client.create_web_login(CreateWebLoginRequest {}).await?.into_inner())
    }
}

/// For a person. The link has a line of its own, to be copied.
pub(super) fn text(login: &WebLogin) -> String {
    let until = show::time(login.expires.as_ref());
    format!("{}\nIt opens one session, once, until {until}.\n", login.url)
}
