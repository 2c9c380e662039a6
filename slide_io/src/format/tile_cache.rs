//! Decoded tiles, kept for the next patch that touches them.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use crate::error::Result;

/// Which tile of which reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TileKey {
    pub reader: ReaderId,
    /// Image in the file.
    pub image: usize,
    /// How often it was halved while being decoded.
    pub halvings: u8,
    /// Row by row.
    pub index: usize,
}

/// A reader among all that this process ever opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ReaderId(u64);

impl ReaderId {
    /// One that no other reader has.
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Bounds of the cache that all slides share, in bytes: within them, [`BYTES_PER_CORE`] for every core.
const SHARED_BYTES: std::ops::RangeInclusive<usize> = 256 << 20..=2 << 30;
const BYTES_PER_CORE: usize = 64 << 20;

/// The cache of all readers: so memory is bounded however many slides are open, and goes where it is used.
pub(super) fn shared() -> &'static TileCache {
    static SHARED: LazyLock<TileCache> = LazyLock::new(|| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        TileCache::new((cores * BYTES_PER_CORE).clamp(*SHARED_BYTES.start(), *SHARED_BYTES.end()))
    });
    &SHARED
}

/// Pixels of a tile, RGB, row by row.
pub(super) type Tile = Arc<Vec<u8>>;

/// The tiles used last, up to a number of bytes, shared by all threads.
///
/// The lock covers the bookkeeping only. A tile is decoded outside it, once: who asks for it meanwhile waits for that
/// one tile, and for nothing else.
pub(super) struct TileCache {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    slots: HashMap<TileKey, Slot>,
    /// Keys by time of last use, oldest first.
    order: BTreeMap<u64, TileKey>,
    clock: u64,
    bytes: usize,
    /// Memory of dropped tiles, the last one on top: it may still be in the processor's cache.
    spare: Vec<Vec<u8>>,
}

/// Buffers kept for reuse, at most, and the largest of them in bytes (a tile of 1024 x 1024 px): they come on top of the
/// cache's limit.
const SPARE: usize = 16;
const SPARE_BYTES: usize = 3 << 20;

impl State {
    fn drop_slot(&mut self, slot: Slot) {
        self.bytes -= slot.bytes;
        let tile = Arc::into_inner(slot.tile).and_then(OnceLock::into_inner).flatten();
        // A tile that someone still reads from goes when they are done.
        if let Some(buffer) = tile.and_then(Arc::into_inner)
            && self.spare.len() < SPARE
            && buffer.len() <= SPARE_BYTES
        {
            self.spare.push(buffer);
        }
    }
}

struct Slot {
    tile: Arc<OnceLock<Option<Tile>>>,
    used: u64,
    bytes: usize,
}

impl TileCache {
    /// A cache of at most `limit` bytes of pixels (but always room for one tile).
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, state: Mutex::default() }
    }

    /// The tile `key` of `bytes` bytes, from the cache or from `decode`. An error is returned and not kept.
    pub(super) fn get(&self, key: TileKey, bytes: usize, decode: impl Fn() -> Result<Tile>) -> Result<Tile> {
        let cell = self.reserve(key, bytes);
        let mut failure = None;
        let tile = cell.get_or_init(|| decode().map_err(|error| failure = Some(error)).ok()).clone();
        match (tile, failure) {
            (Some(tile), _) => Ok(tile),
            (None, Some(error)) => {
                self.forget(key, &cell);
                Err(error)
            }
            // Another thread met the error; this one decodes for itself to report it too.
            (None, None) => decode(),
        }
    }

    /// The place of `key`, made the most recent; the oldest are dropped to make room.
    fn reserve(&self, key: TileKey, bytes: usize) -> Arc<OnceLock<Option<Tile>>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.clock += 1;
        let State { slots, order, clock, .. } = &mut *state;
        if let Some(slot) = slots.get_mut(&key) {
            order.remove(&slot.used);
            slot.used = *clock;
            order.insert(*clock, key);
            return slot.tile.clone();
        }
        while state.bytes + bytes > self.limit {
            let Some((_, oldest)) = state.order.pop_first() else { break };
            if let Some(slot) = state.slots.remove(&oldest) {
                state.drop_slot(slot);
            }
        }
        let (tile, used) = (Arc::new(OnceLock::new()), state.clock);
        state.slots.insert(key, Slot { tile: tile.clone(), used, bytes });
        state.order.insert(used, key);
        state.bytes += bytes;
        tile
    }

    /// A buffer of `bytes` bytes for a tile, whatever is in it.
    pub(super) fn buffer(&self, bytes: usize) -> Vec<u8> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = state.spare.iter().rposition(|buffer| buffer.len() == bytes);
        let spare = fitting.map(|place| state.spare.remove(place));
        drop(state);
        spare.unwrap_or_else(|| vec![0; bytes])
    }

    /// Drops a tile that nobody will ask for again soon.
    pub(super) fn release(&self, key: TileKey) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = state.slots.remove(&key) {
            state.order.remove(&slot.used);
            state.drop_slot(slot);
        }
    }

    /// Drops the tiles of a reader that was closed.
    pub(super) fn forget_reader(&self, reader: ReaderId) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { slots, order, bytes, .. } = &mut *state;
        slots.retain(|key, slot| {
            if key.reader == reader {
                order.remove(&slot.used);
                *bytes -= slot.bytes;
            }
            key.reader != reader
        });
    }

    fn forget(&self, key: TileKey, cell: &Arc<OnceLock<Option<Tile>>>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.slots.get(&key).is_some_and(|slot| Arc::ptr_eq(&slot.tile, cell))
            && let Some(slot) = state.slots.remove(&key)
        {
            state.order.remove(&slot.used);
            state.drop_slot(slot);
        }
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.state.lock().unwrap().bytes
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::error::Error;

    fn key(reader: ReaderId, index: usize) -> TileKey {
        TileKey { reader, image: 0, halvings: 0, index }
    }

    #[test]
    fn tiles_of_a_closed_reader_are_dropped() {
        let cache = TileCache::new(100);
        let readers = [ReaderId::new(), ReaderId::new()];
        for index in 0..3 {
            for reader in readers {
                cache.get(key(reader, index), 10, || Ok(Arc::new(vec![0; 10]))).unwrap();
            }
        }
        cache.forget_reader(readers[0]);
        assert_eq!(cache.bytes(), 30);
        let decodes = AtomicUsize::new(0);
        let count = || {
            decodes.fetch_add(1, Ordering::Relaxed);
            Ok(Arc::new(vec![0; 10]))
        };
        cache.get(key(readers[1], 2), 10, count).unwrap();
        assert_eq!(decodes.load(Ordering::Relaxed), 0);
        cache.get(key(readers[0], 2), 10, count).unwrap();
        assert_eq!(decodes.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn decodes_once_and_stays_within_its_limit() {
        let (cache, reader) = (TileCache::new(30), ReaderId::new());
        let decoded = AtomicUsize::new(0);
        let get = |index: usize| {
            let tile = || {
                decoded.fetch_add(1, Ordering::Relaxed);
                Ok(Arc::new(vec![index as u8; 10]))
            };
            assert_eq!(*cache.get(key(reader, index), 10, tile).unwrap(), [index as u8; 10]);
            assert!(cache.bytes() <= 30);
        };
        for index in [0, 1, 2, 0, 1, 2] {
            get(index);
        }
        assert_eq!(decoded.load(Ordering::Relaxed), 3);
        get(0);
        get(3); // drops 1, the least recently used
        get(0);
        get(2);
        assert_eq!(decoded.load(Ordering::Relaxed), 4);
        get(1);
        assert_eq!(decoded.load(Ordering::Relaxed), 5);
    }

    #[test]
    fn errors_are_not_kept() {
        let (cache, tile) = (TileCache::new(100), key(ReaderId::new(), 0));
        assert!(cache.get(tile, 10, || Err(Error::Usage("no".into()))).is_err());
        assert_eq!(cache.bytes(), 0);
        assert!(cache.get(tile, 10, || Ok(Arc::new(vec![1]))).is_ok());
    }

    #[test]
    fn threads_share_one_decode() {
        let (cache, tile) = (TileCache::new(100), key(ReaderId::new(), 2));
        let decoded = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let slow = || {
                        decoded.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        Ok(Arc::new(vec![7]))
                    };
                    assert_eq!(*cache.get(tile, 1, slow).unwrap(), [7]);
                });
            }
        });
        assert_eq!(decoded.load(Ordering::Relaxed), 1);
    }
}
