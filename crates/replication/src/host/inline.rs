//! An executor that runs jobs inline on the raft thread while they are fast, and otherwise on a thread of
//! their own.
//!
//! Handing a job over costs two wake-ups and two context switches, often more than the job itself. So a job
//! runs inline if recent ones were fast and none is queued; otherwise it goes to the thread, and the raft
//! thread continues. Only a job that is unexpectedly slow blocks the raft thread, and the node is silent for
//! that time, as if paused. A disk that stalls does so again, however fast it is in between: after each stall
//! no job runs inline for a while, and longer when the last stall was not long ago.
//!
//! Invariant: jobs of one sender run in the order in which it submitted them.

use std::{
    sync::{
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Mean duration of recent jobs up to which the next one runs inline.
const INLINE_MEAN_MAX: Duration = Duration::from_micros(400);
/// Divisor of the moving average: each duration has a weight of one in this many.
const MEAN_WEIGHT: u64 = 8;
/// Duration from which a job is a stall: it delays the heartbeats of every group, which leave every 100 ms by
/// default.
const STALL: Duration = Duration::from_millis(100);
/// Time without inline jobs after the first stall; doubles with each further one.
const STALL_PAUSE_MIN: Duration = Duration::from_secs(10);
/// Upper bound of that time. After as much time without a stall, the next one counts as the first again.
const STALL_PAUSE_MAX: Duration = Duration::from_secs(640);

/// Performs the jobs of an executor.
pub(super) trait Worker: Send {
    type Job: Send;

    /// Jobs taken from the queue at a time, at most.
    const JOBS_MAX: usize;

    /// Whether this job is small enough to run inline.
    fn may_run_inline(job: &Self::Job) -> bool;

    /// Performs jobs, in order.
    fn work(&mut self, jobs: Vec<Self::Job>) -> Progress;
}

/// The outcome of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// The jobs are done, and their duration counts in the mean.
    Done,
    /// The jobs were trivial, and their duration does not count.
    Nothing,
    /// The worker has failed and takes no more jobs.
    Ended,
}

/// A worker and its queue.
pub(super) struct InlineExecutor<W: Worker> {
    worker: Mutex<W>,
    /// `None` ends the thread.
    queue: mpsc::Sender<Option<W::Job>>,
    jobs: Mutex<mpsc::Receiver<Option<W::Job>>>,
    /// Jobs that are queued, or were taken from the queue and are not done yet.
    queued: AtomicUsize,
    mean_ns: AtomicU64,
    created: Instant,
    stalls: Mutex<Stalls>,
    /// No job runs inline before this time, milliseconds since `created`.
    inline_from_ms: AtomicU64,
}

/// How long jobs stay off the raft thread because earlier ones stalled. Times count from any fixed moment.
#[derive(Debug, Default)]
struct Stalls {
    last: Option<Duration>,
    pause: Duration,
}

impl Stalls {
    /// Counts a stall that has just ended. Returns until when no job runs inline.
    fn stalled(&mut self, now: Duration) -> Duration {
        let repeated = self.last.is_some_and(|last| now.saturating_sub(last) < STALL_PAUSE_MAX);
        self.pause = if repeated { (2 * self.pause).min(STALL_PAUSE_MAX) } else { STALL_PAUSE_MIN };
        self.last = Some(now);
        now + self.pause
    }
}

impl<W: Worker> InlineExecutor<W> {
    pub(super) fn new(worker: W) -> Self {
        let (queue, jobs) = mpsc::channel();
        Self {
            worker: Mutex::new(worker),
            queue,
            jobs: Mutex::new(jobs),
            queued: AtomicUsize::new(0),
            mean_ns: AtomicU64::new(0),
            created: Instant::now(),
            stalls: Mutex::default(),
            inline_from_ms: AtomicU64::new(0),
        }
    }

    /// Queues a job for the thread.
    pub(super) fn enqueue(&self, job: W::Job) {
        self.queued.fetch_add(1, Ordering::AcqRel);
        let _ = self.queue.send(Some(job));
    }

    /// Ends the thread after the jobs that are queued so far.
    pub(super) fn close(&self) {
        let _ = self.queue.send(None);
    }

    /// Runs a job inline if that is likely fast, else queues it. Returns `false` if the worker ended while
    /// running it.
    pub(super) fn run_or_enqueue(&self, job: W::Job) -> bool {
        if self.expects_fast(self.created.elapsed())
            && W::may_run_inline(&job)
            && self.queued.load(Ordering::Acquire) == 0
            && let Some(mut worker) = self.worker.try_lock()
        {
            return self.run_timed(&mut worker, vec![job]);
        }
        self.enqueue(job);
        true
    }

    /// Whether recent jobs were fast and none has stalled lately.
    fn expects_fast(&self, now: Duration) -> bool {
        u128::from(self.mean_ns.load(Ordering::Relaxed)) < INLINE_MEAN_MAX.as_nanos()
            && now.as_millis() >= u128::from(self.inline_from_ms.load(Ordering::Relaxed))
    }

    /// The body of the thread: runs queued jobs until the executor is closed or the worker ends.
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
            if !self.run_timed(&mut self.worker.lock(), waiting) || closed {
                return;
            }
            self.queued.fetch_sub(count, Ordering::AcqRel);
        }
    }

    fn run_timed(&self, worker: &mut W, jobs: Vec<W::Job>) -> bool {
        let start = Instant::now();
        let progress = worker.work(jobs);
        if progress == Progress::Done {
            self.record_duration(start.elapsed(), self.created.elapsed());
        }
        progress != Progress::Ended
    }

    /// Adds a duration to the moving average, and counts a stall. The caller must hold the worker's lock.
    fn record_duration(&self, duration: Duration, now: Duration) {
        if duration >= STALL {
            let inline_from = self.stalls.lock().stalled(now);
            self.inline_from_ms.store(u64::try_from(inline_from.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        let duration_ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let mean_ns = self.mean_ns.load(Ordering::Relaxed);
        self.mean_ns.store(mean_ns - mean_ns / MEAN_WEIGHT + duration_ns / MEAN_WEIGHT, Ordering::Relaxed);
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

    /// Records which thread ran each job.
    struct Recorder(Arc<Done>);

    /// Ends the worker.
    const END: u32 = 0;
    /// Reported as [`Progress::Nothing`].
    const TRIVIAL: u32 = 98;
    const SLOW: u32 = 99;
    /// Larger jobs never run inline.
    const INLINE_MAX: u32 = 100;

    impl Worker for Recorder {
        type Job = u32;

        const JOBS_MAX: usize = 4;

        fn may_run_inline(job: &u32) -> bool {
            *job <= INLINE_MAX
        }

        fn work(&mut self, jobs: Vec<u32>) -> Progress {
            assert!(jobs.len() <= Self::JOBS_MAX);
            if jobs.contains(&SLOW) {
                thread::sleep(INLINE_MEAN_MAX * 2 * MEAN_WEIGHT as u32);
            }
            self.0.lock().extend(jobs.iter().map(|job| (thread::current().id(), *job)));
            match jobs[..] {
                [TRIVIAL] => Progress::Nothing,
                _ if jobs.contains(&END) => Progress::Ended,
                _ => Progress::Done,
            }
        }
    }

    fn executor() -> (InlineExecutor<Recorder>, Arc<Done>) {
        let done = Arc::default();
        (InlineExecutor::new(Recorder(Arc::clone(&done))), done)
    }

    /// Resets the mean to about zero, whatever was slow before.
    fn record_fast_jobs(executor: &InlineExecutor<Recorder>) {
        (0..16 * MEAN_WEIGHT).for_each(|_| executor.record_duration(Duration::ZERO, executor.created.elapsed()));
    }

    /// Runs the executor's thread until it ends.
    fn run_thread(executor: &InlineExecutor<Recorder>) {
        thread::scope(|scope| {
            scope.spawn(|| executor.run());
        });
    }

    /// Jobs that ran inline on this thread, and those that ran on another one.
    fn split(done: &Done) -> (Vec<u32>, Vec<u32>) {
        let done = done.lock();
        let (inline, queued) = done.iter().partition::<Vec<_>, _>(|(thread, _)| *thread == thread::current().id());
        let jobs = |done: Vec<(ThreadId, u32)>| done.into_iter().map(|(_, job)| job).collect();
        (jobs(inline), jobs(queued))
    }

    #[test]
    fn fast_and_small_jobs_run_inline() {
        let (executor, done) = executor();
        for job in [1, INLINE_MAX, INLINE_MAX + 1] {
            assert!(executor.run_or_enqueue(job));
            record_fast_jobs(&executor);
        }
        assert_eq!(split(&done), (vec![1, INLINE_MAX], vec![]));
        executor.close();
        run_thread(&executor);
        assert_eq!(split(&done), (vec![1, INLINE_MAX], vec![INLINE_MAX + 1]));
    }

    #[test]
    fn queued_jobs_are_not_overtaken() {
        let (executor, done) = executor();
        executor.enqueue(1);
        (2..=9).for_each(|job| assert!(executor.run_or_enqueue(job)));
        assert_eq!(split(&done), (vec![], vec![]));
        executor.close();
        run_thread(&executor);
        assert_eq!(split(&done), (vec![], (1..=9).collect()));
    }

    #[test]
    fn jobs_are_queued_after_a_slow_one_until_the_mean_is_fast_again() {
        let (executor, done) = executor();
        assert!(executor.run_or_enqueue(SLOW) && executor.run_or_enqueue(1));
        assert_eq!(split(&done), (vec![SLOW], vec![]));
        thread::scope(|scope| {
            scope.spawn(|| executor.run());
            while executor.queued.load(Ordering::Acquire) > 0 {
                thread::yield_now();
            }
            record_fast_jobs(&executor);
            assert!(executor.run_or_enqueue(2));
            executor.close();
        });
        assert_eq!(split(&done), (vec![SLOW, 2], vec![1]));
    }

    #[test]
    fn trivial_jobs_do_not_lower_the_mean() {
        let (executor, done) = executor();
        assert!(executor.run_or_enqueue(SLOW));
        for _ in 0..8 * MEAN_WEIGHT {
            assert!(executor.run_timed(&mut executor.worker.lock(), vec![TRIVIAL]));
        }
        assert!(executor.run_or_enqueue(1));
        assert_eq!(done.lock().last().map(|(_, job)| *job), Some(TRIVIAL), "the next job is queued");
    }

    #[test]
    fn a_disk_that_stalls_every_half_minute_gets_no_inline_jobs_however_fast_it_is_in_between() {
        let (executor, _) = executor();
        let (mut inline, mut now) = (Vec::new(), Duration::ZERO);
        for _ in 0..20 {
            executor.record_duration(Duration::from_secs(1), now);
            // Fast jobs for half a minute, one every 10 ms.
            let fast = (0..3_000).filter(|_| {
                now += Duration::from_millis(10);
                executor.record_duration(Duration::from_micros(100), now);
                executor.expects_fast(now)
            });
            inline.push(fast.count());
        }
        assert!(inline[0] > 0 && inline[1] > 0, "one stall is forgiven: {inline:?}");
        assert!(inline[2..].iter().all(|jobs| *jobs == 0), "no job is at risk of the next stall: {inline:?}");
        assert!(executor.expects_fast(now + STALL_PAUSE_MAX), "a disk that has recovered is trusted again");
    }

    #[test]
    fn stalls_far_apart_are_each_the_first() {
        let mut stalls = Stalls::default();
        let mut now = Duration::ZERO;
        for _ in 0..5 {
            assert_eq!(stalls.stalled(now), now + STALL_PAUSE_MIN);
            now += STALL_PAUSE_MAX;
        }
    }

    #[test]
    fn an_ended_worker_is_reported_and_gets_no_more_jobs() {
        let (executor, done) = executor();
        assert!(!executor.run_or_enqueue(END));
        executor.enqueue(END);
        executor.enqueue(1);
        run_thread(&executor);
        assert!(executor.run_or_enqueue(2), "it is queued");
        assert_eq!(split(&done).0, [END], "no job runs inline after one that was never done");
    }
}
