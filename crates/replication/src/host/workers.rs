//! Threads for the bytes of objects: they hash, compress, read and write them.
//!
//! A few of their own, rather than as many as there happen to be tasks: each thread keeps memory that others cannot
//! use. They end with the last handle. Of a busy machine they get what the others leave, so that small writes do not
//! wait for large values.

use std::{
    sync::{Arc, mpsc},
    thread,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Threads of one pool.
const THREADS: usize = 8;
/// Their niceness: about a tenth of the time that others of the same core get.
const NICENESS: i32 = 10;

type Task = Box<dyn FnOnce() + Send>;

/// A handle on the threads. Clones share them.
#[derive(Clone)]
pub struct Workers(Arc<mpsc::Sender<Task>>);

/// The task was not done, or not to its end: it has panicked, or there is no thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the work was not done")]
pub struct NotDone;

impl Workers {
    /// Starts the threads, named after their pool.
    #[must_use]
    pub fn start(name: &str) -> Self {
        let (sender, tasks) = mpsc::channel::<Task>();
        let tasks = Arc::new(Mutex::new(tasks));
        for number in 0..THREADS {
            let tasks = tasks.clone();
            let run = move || {
                // Of this thread alone, on Linux. Without it, it only gets more time than it should.
                let _ = rustix::process::setpriority_process(None, NICENESS);
                loop {
                    let task = tasks.lock().recv();
                    let Ok(task) = task else { return };
                    // Whoever waits for it is told by the end of its channel.
                    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(task));
                }
            };
            if let Err(error) = thread::Builder::new().name(format!("{name}-{number}")).spawn(run) {
                tracing::warn!(%error, "a thread for objects does not start");
            }
        }
        Self(Arc::new(sender))
    }

    /// Does a task on one of the threads.
    ///
    /// # Errors
    /// See [`NotDone`].
    pub async fn run<T: Send + 'static>(&self, task: impl FnOnce() -> T + Send + 'static) -> Result<T, NotDone> {
        let (done, result) = oneshot::channel();
        let task = move || drop(done.send(task()));
        self.0.send(Box::new(task)).map_err(|_| NotDone)?;
        result.await.map_err(|_| NotDone)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn tasks_are_done_by_a_few_threads_also_after_some_have_panicked() {
        let workers = Workers::start("test");
        for _ in 0..2 * THREADS {
            assert_eq!(workers.run(|| panic!("as a test")).await, Err::<(), _>(NotDone));
        }
        let names = join_all((0..1_000).map(|_| workers.run(|| thread::current().name().map(str::to_owned)))).await;
        let names: BTreeSet<_> = names.into_iter().map(|name| name.expect("done")).collect();
        assert!((1..=THREADS).contains(&names.len()), "{names:?}");
    }
}
