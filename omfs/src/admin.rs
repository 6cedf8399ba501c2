//! The client's side of the admin socket.

use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use omfs_config::Config;
use proto::v1::admin_client::AdminClient;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::error::{CommandError, Exit};

/// The daemon accepts at once or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to the daemon of this node.
///
/// # Errors
/// Status 69 with what to do when it does not run.
pub async fn connect(config: &Config) -> Result<AdminClient<Channel>, CommandError> {
    let path = config.admin_socket();
    let connector = tower::service_fn({
        let path = path.clone();
        move |_: Uri| {
            let path = path.clone();
            async move {
                tokio::net::UnixStream::connect(path)
                    .await
                    .map(TokioIo::new)
            }
        }
    });
    // The address is never looked at: the connector knows the way.
    let endpoint = Endpoint::from_static("http://admin.invalid").connect_timeout(CONNECT_TIMEOUT);
    match endpoint.connect_with_connector(connector).await {
        Ok(channel) => Ok(AdminClient::new(channel)),
        Err(error) => Err(unreachable(&path, &error)),
    }
}

fn unreachable(path: &Path, error: &(dyn std::error::Error + 'static)) -> CommandError {
    let io = std::iter::successors(Some(error), |error| error.source())
        .find_map(|error| error.downcast_ref::<std::io::Error>());
    let reason = io.map_or_else(|| error.to_string(), ToString::to_string);
    CommandError::new(
        Exit::Unavailable,
        format_args!(
            "the omfs daemon does not answer at {}: {reason}",
            path.display()
        ),
    )
    .hint("start it with `omfs daemon`, or give its configuration with --config")
}

/// Runs a client's work to its end on this thread.
///
/// # Errors
/// The work's, or there is no runtime to be had.
pub fn block_on<T>(work: impl Future<Output = Result<T, CommandError>>) -> Result<T, CommandError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

/// A status of the daemon as an error of the command.
pub fn failed(status: tonic::Status) -> CommandError {
    omfs_cluster::control::ControlError::from(status).into()
}
