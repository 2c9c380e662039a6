//! Batches made on threads ahead of the consumer and delivered in order.
//!
//! There is no thread of its own: the consumer keeps `depth` batches scheduled on the pool, every item a task of its
//! own in first-in-first-out order, and whoever finishes a batch's last item puts the batch together. So threads never
//! wait for each other, memory is bounded by `depth` batches, and dropping the iterator stops the work.

use std::any::Any;
use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use rayon::{ThreadPool, ThreadPoolBuilder};

/// How a batch is made: `item` for each of its numbers in parallel, then `batch` once over all of them.
pub trait Work: Send + Sync + 'static {
    /// What one number becomes.
    type Item: Send;
    /// What a batch becomes.
    type Batch: Send;
    /// Makes one item.
    fn item(&self, number: usize) -> Self::Item;
    /// Puts a batch together, items in order of their numbers.
    fn batch(&self, numbers: Range<usize>, items: Vec<Self::Item>) -> Self::Batch;
}

/// An iterator over batches that are made ahead of it. `Err` carries the message of a panic on a loader thread.
pub struct Prefetch<W: Work> {
    pool: Arc<ThreadPool>,
    work: Arc<W>,
    unscheduled: Range<usize>,
    batch: usize,
    scheduled: VecDeque<Receiver<Result<W::Batch, String>>>,
    stop: Arc<AtomicBool>,
}

/// A pool for [`Prefetch`]; 0 threads takes one per core.
pub fn thread_pool(threads: usize) -> Result<Arc<ThreadPool>, rayon::ThreadPoolBuildError> {
    let pool = ThreadPoolBuilder::new().num_threads(threads).thread_name(|n| format!("loader-{n}")).build()?;
    Ok(Arc::new(pool))
}

impl<W: Work> Prefetch<W> {
    /// Starts on `numbers`, cut into batches of `batch` (the last may be smaller), `depth` batches ahead.
    pub fn start(pool: Arc<ThreadPool>, work: W, numbers: Range<usize>, batch: usize, depth: usize) -> Self {
        let mut this = Self {
            pool,
            work: Arc::new(work),
            unscheduled: numbers,
            batch: batch.max(1),
            scheduled: VecDeque::new(),
            stop: Arc::new(AtomicBool::new(false)),
        };
        for _ in 0..depth.max(1) {
            this.schedule();
        }
        this
    }

    fn schedule(&mut self) {
        if self.unscheduled.is_empty() {
            return;
        }
        let numbers = self.unscheduled.start..self.unscheduled.end.min(self.unscheduled.start + self.batch);
        self.unscheduled.start = numbers.end;
        let (done, ready) = sync_channel(1);
        self.scheduled.push_back(ready);
        let running = Arc::new(Running {
            work: self.work.clone(),
            items: numbers.clone().map(|_| Mutex::new(None)).collect(),
            missing: AtomicUsize::new(numbers.len()),
            numbers: numbers.clone(),
            done,
            stop: self.stop.clone(),
        });
        for number in numbers {
            let running = running.clone();
            self.pool.spawn_fifo(move || running.make(number));
        }
    }
}

impl<W: Work> Iterator for Prefetch<W> {
    type Item = Result<W::Batch, String>;

    fn next(&mut self) -> Option<Self::Item> {
        let ready = self.scheduled.pop_front()?;
        let batch = ready.recv().unwrap_or_else(|_| Err("a loader thread stopped before its batch was done".into()));
        self.schedule();
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.scheduled.len() + self.unscheduled.len().div_ceil(self.batch);
        (left, Some(left))
    }
}

impl<W: Work> Drop for Prefetch<W> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A batch in the making.
struct Running<W: Work> {
    work: Arc<W>,
    numbers: Range<usize>,
    items: Vec<Mutex<Option<W::Item>>>,
    missing: AtomicUsize,
    done: SyncSender<Result<W::Batch, String>>,
    stop: Arc<AtomicBool>,
}

impl<W: Work> Running<W> {
    /// Makes one item, and the batch if it was the last one missing. A panic is sent to the consumer: the pool would
    /// otherwise end the process.
    fn make(&self, number: usize) {
        if self.stop.load(Ordering::Relaxed) {
            return;
        }
        let made = catch_unwind(AssertUnwindSafe(|| {
            let item = self.work.item(number);
            *lock(&self.items[number - self.numbers.start]) = Some(item);
            (self.missing.fetch_sub(1, Ordering::AcqRel) == 1).then(|| {
                let items = self.items.iter().filter_map(|item| lock(item).take()).collect();
                self.work.batch(self.numbers.clone(), items)
            })
        }));
        // The channel holds one message and the consumer may be gone: neither matters here.
        match made {
            Ok(None) => {}
            Ok(Some(batch)) => drop(self.done.try_send(Ok(batch))),
            Err(panic) => drop(self.done.try_send(Err(panic_message(&*panic)))),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What a panic said.
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panic: {}", text.unwrap_or("no message"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    struct Squares {
        made: Arc<AtomicUsize>,
        slow: bool,
        panic_at: Option<usize>,
    }

    impl Work for Squares {
        type Item = usize;
        type Batch = Vec<usize>;
        fn item(&self, number: usize) -> usize {
            // Early items take longest, so that finishing order and delivery order differ.
            if self.slow {
                std::thread::sleep(Duration::from_millis((7 - number as u64 % 8) / 2));
            }
            assert!(Some(number) != self.panic_at, "number {number}");
            self.made.fetch_add(1, Ordering::Relaxed);
            number * number
        }
        fn batch(&self, numbers: Range<usize>, items: Vec<usize>) -> Vec<usize> {
            assert_eq!(numbers.len(), items.len());
            items
        }
    }

    fn squares(threads: usize, slow: bool, panic_at: Option<usize>) -> (Prefetch<Squares>, Arc<AtomicUsize>) {
        let made = Arc::new(AtomicUsize::new(0));
        let work = Squares { made: made.clone(), slow, panic_at };
        (Prefetch::start(thread_pool(threads).unwrap(), work, 3..50, 8, 3), made)
    }

    #[test]
    fn batches_come_in_order_whatever_the_threads() {
        for threads in [1, 3] {
            let (prefetch, _) = squares(threads, true, None);
            assert_eq!(prefetch.size_hint(), (6, Some(6)));
            let batches: Vec<Vec<usize>> = prefetch.map(Result::unwrap).collect();
            assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [8, 8, 8, 8, 8, 7]);
            assert_eq!(batches.concat(), (3..50).map(|n| n * n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn never_more_than_depth_batches_ahead_and_none_after_dropping() {
        let (mut prefetch, made) = squares(2, false, None);
        prefetch.next().unwrap().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(made.load(Ordering::Relaxed), 32);
        let (prefetch, made) = squares(1, true, None);
        drop(prefetch);
        std::thread::sleep(Duration::from_millis(50));
        assert!(made.load(Ordering::Relaxed) <= 1);
    }

    #[test]
    fn a_panic_reaches_the_consumer_as_an_error_of_its_batch() {
        let (prefetch, _) = squares(2, false, Some(12));
        let batches: Vec<_> = prefetch.collect();
        assert_eq!(batches[1], Err("panic: number 12".to_owned()));
        assert!(batches.iter().enumerate().all(|(n, batch)| batch.is_ok() == (n != 1)));
    }
}
