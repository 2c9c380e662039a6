//! Where things lie in a TIFF or BigTIFF of either byte order, so that a test can tamper with each of them.

/// A TIFF in memory.
#[derive(Clone)]
pub struct Layout {
    pub bytes: Vec<u8>,
    big_endian: bool,
    big: bool,
}

/// One entry of a directory.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Directory, counted from 0 in the order they are met.
    pub directory: usize,
    pub tag: u16,
    /// Byte at which it begins.
    pub at: usize,
}

/// A number in the file: its first byte and its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Number {
    pub at: usize,
    pub bytes: usize,
}

pub const TILE_OFFSETS: u16 = 324;
pub const TILE_LENGTHS: u16 = 325;
pub const STRIP_OFFSETS: u16 = 273;
pub const STRIP_LENGTHS: u16 = 279;
const SUB_DIRECTORIES: u16 = 330;

impl Layout {
    pub fn new(bytes: Vec<u8>) -> Self {
        let (big_endian, big) = (bytes[0] == b'M', bytes[2].max(bytes[3]) == 43);
        Self { bytes, big_endian, big }
    }

    pub fn get(&self, number: Number) -> u64 {
        let bytes = &self.bytes[number.at..number.at + number.bytes];
        let push = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        if self.big_endian { bytes.iter().fold(0, push) } else { bytes.iter().rev().fold(0, push) }
    }

    /// Writes the lowest bytes of `value`.
    pub fn put(&mut self, number: Number, value: u64) {
        for i in 0..number.bytes {
            let place = if self.big_endian { number.bytes - 1 - i } else { i };
            self.bytes[number.at + place] = (value >> (8 * i)) as u8;
        }
    }

    /// The pointer to the first directory.
    pub fn first(&self) -> Number {
        if self.big { Number { at: 8, bytes: 8 } } else { Number { at: 4, bytes: 4 } }
    }

    /// The fields of an entry: type, count, value or offset.
    pub fn fields(&self, entry: Entry) -> [Number; 3] {
        let word = if self.big { 8 } else { 4 };
        [
            Number { at: entry.at + 2, bytes: 2 },
            Number { at: entry.at + 4, bytes: word },
            Number { at: entry.at + 4 + word, bytes: word },
        ]
    }

    /// Every value of an entry of whole numbers.
    pub fn values(&self, entry: Entry) -> Vec<Number> {
        let [kind, count, value] = self.fields(entry);
        let bytes = match self.get(kind) {
            3 => 2,
            4 | 13 => 4,
            16 | 18 => 8,
            _ => 1,
        };
        let count = self.get(count) as usize;
        let start = if count * bytes <= value.bytes { value.at } else { self.get(value) as usize };
        (0..count).map(|i| Number { at: start + i * bytes, bytes }).collect()
    }

    /// All entries of all directories, and the pointers to the next directory.
    pub fn directories(&self) -> (Vec<Entry>, Vec<Number>) {
        let (mut entries, mut nexts) = (Vec::new(), Vec::new());
        let mut waiting = vec![self.get(self.first()) as usize];
        let (word, length) = if self.big { (8, 20) } else { (4, 12) };
        let mut directory = 0;
        while let Some(start) = waiting.pop() {
            let count_bytes = if self.big { 8 } else { 2 };
            let count = self.get(Number { at: start, bytes: count_bytes }) as usize;
            let first = start + count_bytes;
            for at in (0..count).map(|i| first + i * length) {
                let entry = Entry { directory, tag: self.get(Number { at, bytes: 2 }) as u16, at };
                if entry.tag == SUB_DIRECTORIES {
                    waiting.extend(self.values(entry).into_iter().map(|sub| self.get(sub) as usize));
                }
                entries.push(entry);
            }
            let next = Number { at: first + count * length, bytes: word };
            nexts.push(next);
            waiting.extend(Some(self.get(next) as usize).filter(|next| *next > 0));
            directory += 1;
        }
        (entries, nexts)
    }

    /// The entry of `tag` in a directory.
    pub fn entry(&self, directory: usize, tag: u16) -> Option<Entry> {
        let (entries, _) = self.directories();
        entries.into_iter().find(|entry| entry.directory == directory && entry.tag == tag)
    }

    /// The tables of tiles or strips of the first directory: where they lie, how many bytes they have.
    pub fn chunks(&self) -> Vec<(Number, Number)> {
        let table = |tile, strip| self.entry(0, tile).or(self.entry(0, strip)).map(|entry| self.values(entry)).unwrap();
        table(TILE_OFFSETS, STRIP_OFFSETS).into_iter().zip(table(TILE_LENGTHS, STRIP_LENGTHS)).collect()
    }
}
