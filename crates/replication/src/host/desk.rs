//! Work that has a thread of its own, and is done at once by the raft thread where that is quicker.
//!
//! Handing work over costs two wake-ups and two context switches, often more than the work. So what has been quick of late is done in
//! place when nothing of it waits; what has been slow, or finds a queue, goes to the thread, and the raft thread goes on meanwhile.
//! Only a job that is slow all of a sudden holds the raft thread up: then the node falls silent for so long, as if it were paused.
//!
//! Invariant: jobs of one sender are done in the order in which it gave them.

use std::{
    sync::{
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// What takes no longer than this on average is done in place.
const QUICK: Duration = Duration::from_micros(400);
/// How much one duration counts in the average: one part in so many.
const WEIGHT: u64 = 8;

/// Does jobs.
pub(super) trait Worker: Send {
    type Job: Send;

    /// Jobs taken from the queue at a time.
    const JOBS_MAX: usize;

    /// Whether this job may be done in place.
    fn is_small(job: &Self::Job) -> bool;

    /// Does jobs, in order.
    fn work(&mut self, jobs: Vec<Self::Job>) -> Progress;
}

/// What came of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// They are done, and how long that took says how long such jobs take.
    Done,
    /// There was nothing to do that takes time.
    Nothing,
    /// The worker cannot go on.
    Ended,
}

/// A worker and what waits for it.
pub(super) struct Desk<W: Worker> {
    worker: Mutex<W>,
    /// `None` closes it.
    queue: mpsc::Sender<Option<W::Job>>,
    jobs: Mutex<mpsc::Receiver<Option<W::Job>>>,
    /// Jobs that are queued or were taken from the queue and are not done.
    queued: AtomicUsize,
    mean_ns: AtomicU64,
}

impl<W: Worker> Desk<W> {
    pub(super) fn new(worker: W) -> Self {
        let (queue, jobs) = mpsc::channel();
        let (queued, mean_ns) = (AtomicUsize::new(0), AtomicU64::new(0));
        Self { worker: Mutex::new(worker), queue, jobs: Mutex::new(jobs), queued, mean_ns }
    }

    /// Leaves a job to the thread.
    pub(super) fn leave(&self, job: W::Job) {
        self.queued.fetch_add(1, Ordering::AcqRel);
        let _ = self.queue.send(Some(job));
    }

    /// The thread ends behind what was left to it so far.
    pub(super) fn close(&self) {
        let _ = self.queue.send(None);
    }

    /// Does a job in place if that is quick, or leaves it. `false`: the worker has ended.
    pub(super) fn offer(&self, job: W::Job) -> bool {
        let is_quick = u128::from(self.mean_ns.load(Ordering::Relaxed)) < QUICK.as_nanos();
        if is_quick
            && W::is_small(&job)
            && self.queued.load(Ordering::Acquire) == 0
            && let Some(mut worker) = self.worker.try_lock()
        {
            return self.timed(&mut worker, vec![job]);
        }
        self.leave(job);
        true
    }

    /// The thread: until the worker ends.
    pub(super) fn run(&self) {
        let jobs = self.jobs.lock();
        while let Ok(Some(first)) = jobs.recv() {
            let mut waiting = vec![first];
            let mut closed = false;
            while waiting.len() < W::JOBS_MAX && !closed {
                match jobs.try_recv() {
                    Ok(Some(job)) => waiting.push(job),
                    Ok(None) => closed = true,
                    Err(_) => break,
                }
            }
            let count = waiting.len();
            if !self.timed(&mut self.worker.lock(), waiting) || closed {
                return;
            }
            self.queued.fetch_sub(count, Ordering::AcqRel);
        }
    }

    fn timed(&self, worker: &mut W, jobs: Vec<W::Job>) -> bool {
        let start = Instant::now();
        let progress = worker.work(jobs);
        if progress == Progress::Done {
            self.took(start.elapsed());
        }
        progress != Progress::Ended
    }

    /// Counts a duration in the mean. Only whoever holds the worker may.
    fn took(&self, duration: Duration) {
        let took_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let mean_ns = self.mean_ns.load(Ordering::Relaxed);
        self.mean_ns.store(mean_ns - mean_ns / WEIGHT + took_ns / WEIGHT, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        thread::{self, ThreadId},
    };

    use super::*;

    type Done = Mutex<Vec<(ThreadId, u32)>>;

    /// Notes who did what. A job of zero ends it.
    struct Clerk(Arc<Done>);

    /// Larger jobs are not for the raft thread.
    const SMALL_MAX: u32 = 100;
    const SLOW: u32 = 99;
    /// Takes no time.
    const FREE: u32 = 98;

    impl Worker for Clerk {
        type Job = u32;

        const JOBS_MAX: usize = 4;

        fn is_small(job: &u32) -> bool {
            *job <= SMALL_MAX
        }

        fn work(&mut self, jobs: Vec<u32>) -> Progress {
            assert!(jobs.len() <= Self::JOBS_MAX);
            if jobs.contains(&SLOW) {
                thread::sleep(QUICK * 2 * WEIGHT as u32);
            }
            self.0.lock().extend(jobs.iter().map(|job| (thread::current().id(), *job)));
            match jobs[..] {
                [FREE] => Progress::Nothing,
                _ if jobs.contains(&0) => Progress::Ended,
                _ => Progress::Done,
            }
        }
    }

    fn desk() -> (Desk<Clerk>, Arc<Done>) {
        let done = Arc::default();
        (Desk::new(Clerk(Arc::clone(&done))), done)
    }

    /// Outweighs whatever held this thread up, and what was slow.
    fn was_quick(desk: &Desk<Clerk>) {
        (0..16 * WEIGHT).for_each(|_| desk.took(Duration::ZERO));
    }

    /// The desk's own thread.
    fn run_to_its_end(desk: &Desk<Clerk>) {
        thread::scope(|scope| {
            scope.spawn(|| desk.run());
        });
    }

    /// Jobs that this thread did, and those that another one did.
    fn split(done: &Done) -> (Vec<u32>, Vec<u32>) {
        let done = done.lock();
        let (here, there) = done.iter().partition::<Vec<_>, _>(|(thread, _)| *thread == thread::current().id());
        let jobs = |done: Vec<(ThreadId, u32)>| done.into_iter().map(|(_, job)| job).collect();
        (jobs(here), jobs(there))
    }

    #[test]
    fn what_is_quick_and_small_is_done_in_place() {
        let (desk, done) = desk();
        for job in [1, SMALL_MAX, SMALL_MAX + 1] {
            assert!(desk.offer(job));
            was_quick(&desk);
        }
        assert_eq!(split(&done), (vec![1, SMALL_MAX], vec![]));
        desk.close();
        run_to_its_end(&desk);
        assert_eq!(split(&done), (vec![1, SMALL_MAX], vec![SMALL_MAX + 1]));
    }

    #[test]
    fn nothing_overtakes_what_waits() {
        let (desk, done) = desk();
        desk.leave(1);
        (2..=9).for_each(|job| assert!(desk.offer(job)));
        assert_eq!(split(&done), (vec![], vec![]));
        desk.close();
        run_to_its_end(&desk);
        assert_eq!(split(&done), (vec![], (1..=9).collect()));
    }

    #[test]
    fn what_was_slow_is_left_until_it_was_quick_for_a_while() {
        let (desk, done) = desk();
        assert!(desk.offer(SLOW) && desk.offer(1));
        assert_eq!(split(&done), (vec![SLOW], vec![]));
        thread::scope(|scope| {
            scope.spawn(|| desk.run());
            while desk.queued.load(Ordering::Acquire) > 0 {
                thread::yield_now();
            }
            was_quick(&desk);
            assert!(desk.offer(2));
            desk.close();
        });
        assert_eq!(split(&done), (vec![SLOW, 2], vec![1]));
    }

    #[test]
    fn what_takes_no_time_says_nothing_about_what_does() {
        let (desk, done) = desk();
        assert!(desk.offer(SLOW));
        for _ in 0..8 * WEIGHT {
            assert!(desk.timed(&mut desk.worker.lock(), vec![FREE]));
        }
        assert!(desk.offer(1));
        assert_eq!(done.lock().last().map(|(_, job)| *job), Some(FREE), "the next one is left");
    }

    #[test]
    fn a_worker_that_has_ended_says_so_and_gets_nothing_more() {
        let (desk, done) = desk();
        assert!(!desk.offer(0));
        desk.leave(0);
        desk.leave(1);
        run_to_its_end(&desk);
        assert!(desk.offer(2), "it is left to nobody");
        assert_eq!(split(&done).0, [0], "nothing is done in place behind what was not done");
    }
}
