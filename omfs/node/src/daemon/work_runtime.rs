//! The threads that carry out what users and other nodes ask for.
//!
//! They are not those of the membership: whatever is done here, however long it reads /proc or waits
//! for a disk, no answer of the failure detector waits for it.

use std::io;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tonic::Status;

/// Threads that run what does not block.
const WORKER_THREADS: usize = 2;
/// Threads that block, for disks and /proc.
const BLOCKING_THREADS_MAX: usize = 32;
/// Threads that come with demand end after so long.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// A runtime that may be dropped anywhere; what it does then is abandoned.
#[derive(Debug)]
pub struct WorkRuntime(Option<Runtime>);

impl WorkRuntime {
    /// Starts its threads.
    ///
    /// # Errors
    /// The kernel gives none.
    pub fn start() -> io::Result<Self> {
        let mut builder = Builder::new_multi_thread();
        builder
            .thread_name("omfs-work")
            .worker_threads(WORKER_THREADS);
        builder
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_keep_alive(IDLE_MAX);
        builder
            .enable_all()
            .build()
            .map(|runtime| Self(Some(runtime)))
    }

    /// To start work on it.
    ///
    /// # Errors
    /// None that can be seen: it lives as long as `self`.
    pub fn handle(&self) -> io::Result<Handle> {
        let runtime = self.0.as_ref().map(|runtime| runtime.handle().clone());
        runtime.ok_or_else(|| io::Error::other("the runtime has ended"))
    }
}

impl Drop for WorkRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Does something on the work's threads and waits for it, on the membership's.
///
/// # Errors
/// A defect in it, or the daemon ends.
pub async fn on<T: Send + 'static>(
    work: &Handle,
    what: impl Future<Output = T> + Send + 'static,
) -> Result<T, Status> {
    let done = work.spawn(what).await;
    done.map_err(|error| Status::internal(error.to_string()))
}
