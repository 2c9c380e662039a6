//! Micro-batches: a step's samples in a few equal parts whose gradients are summed.

use anyhow::{Context, Result, anyhow};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::ops::Range;
use std::sync::Arc;

/// How a step is cut up: on threads of their own on the CPU, one part after the other on an accelerator, where it saves
/// memory. The number and order of the parts are fixed, so that sums round the same everywhere.
#[derive(Clone, Debug)]
pub struct Replicas {
    count: usize,
    /// On the CPU, one single-threaded pool for each part: all cores are busy with parts, so that splitting their
    /// products once more would only cost, and would let the number of cores into the rounding.
    pools: Arc<Vec<ThreadPool>>,
}

impl Replicas {
    /// `count` parts; 0 takes 2 on the CPU, whatever its cores, and 1 on an accelerator.
    ///
    /// # Errors
    /// Threads that cannot be started.
    pub fn new(count: usize, on_cpu: bool) -> Result<Self> {
        let count = match count {
            0 if on_cpu => 2,
            0 => 1,
            given => given,
        };
        let pools = (0..if on_cpu { count } else { 0 })
            .map(|_| ThreadPoolBuilder::new().num_threads(1).build())
            .collect::<Result<_, _>>()
            .context("the threads of the training step could not be started")?;
        Ok(Self { count, pools: Arc::new(pools) })
    }

    /// `part` of every range of `0..size`, in order.
    ///
    /// # Errors
    /// The first error of a part.
    pub fn run<T: Send>(&self, size: usize, part: impl Fn(Range<usize>) -> Result<T> + Sync) -> Result<Vec<T>> {
        self.each(split(size, self.count), part)
    }

    /// `part` of every one of what an earlier [`run`](Self::run) returned, in order.
    ///
    /// # Errors
    /// The first error of a part.
    pub fn each<I: Send, T: Send>(&self, parts: Vec<I>, part: impl Fn(I) -> Result<T> + Sync) -> Result<Vec<T>> {
        if self.pools.is_empty() {
            return parts.into_iter().map(part).collect();
        }
        let part = &part;
        std::thread::scope(|scope| {
            let threads: Vec<_> = parts
                .into_iter()
                .zip(self.pools.iter())
                .map(|(given, pool)| scope.spawn(move || pool.install(|| part(given))))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow!("a thread of the training step panicked"))?)
                .collect()
        })
    }
}

/// `count` nearly equal ranges of 0..size; fewer where there are fewer samples.
fn split(size: usize, count: usize) -> Vec<Range<usize>> {
    let count = count.clamp(1, size.max(1));
    (0..count).map(|i| i * size / count..(i + 1) * size / count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_split_in_order_without_loss() {
        assert_eq!(split(8, 2), [0..4, 4..8]);
        assert_eq!(split(5, 2), [0..2, 2..5]);
        assert_eq!(split(1, 2), vec![Range { start: 0, end: 1 }]);
    }

    #[test]
    fn parts_come_in_order_and_the_first_error_is_told() {
        for on_cpu in [true, false] {
            let replicas = Replicas::new(3, on_cpu).unwrap();
            let lengths = replicas.run(7, |range| Ok(range.len())).unwrap();
            assert_eq!(lengths, [2, 2, 3]);
            assert_eq!(replicas.each(lengths, |length| Ok(10 * length)).unwrap(), [20, 20, 30]);
            let failed =
                replicas.run(7, |range| if range.start > 0 { Err(anyhow!("{}", range.start)) } else { Ok(()) });
            assert_eq!(failed.unwrap_err().to_string(), "2");
        }
    }
}
