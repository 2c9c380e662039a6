//! A reader of Python pickles (protocols 2 to 4) that runs no code.
//!
//! Python's own reader calls whatever function a file names. This one knows the handful of opcodes that plain data are made
//! of, and the three functions by which numpy stores an array or a number, which it carries out itself on bytes; any other
//! opcode or name is refused, with its name. What a file can make of memory is bounded before it is made.

use serde_json::{Map, Number, Value};

/// Largest file that is read.
pub const MAX_BYTES: usize = 1 << 28;
/// Most values in a file, arrays' numbers included.
pub(super) const MAX_VALUES: usize = 1 << 22;
/// Deepest nesting.
const MAX_DEPTH: usize = 64;

/// Why a pickle is not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PickleError {
    /// It asks for more than plain data: it may be an attack.
    #[error("it asks for {0}, which plain data do not need: it is not read")]
    Refused(String),
    /// It is written in another version of the format.
    #[error("it is a pickle of protocol {0}; 2, 3 and 4 are read")]
    Protocol(u8),
    /// It breaks the rules of pickles, or is cut short.
    #[error("it is not a whole pickle: {0}")]
    Damaged(String),
    /// It holds more than a ground truth can.
    #[error("it is over a limit: {0}")]
    Limit(String),
}

type Result<T> = std::result::Result<T, PickleError>;

fn damaged<T>(what: impl Into<String>) -> Result<T> {
    Err(PickleError::Damaged(what.into()))
}

/// Reads a pickle as JSON: dicts by text keys, lists and tuples, numbers, text; arrays become flat lists of numbers.
///
/// # Errors
/// See [`PickleError`]; nothing of a file that is not whole is returned.
pub fn read(bytes: &[u8]) -> Result<Value> {
    if bytes.len() > MAX_BYTES {
        return Err(PickleError::Limit(format!("{} bytes, at most {MAX_BYTES}", bytes.len())));
    }
    let mut machine =
        Machine { bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: Vec::new(), made: 0 };
    let root = machine.run()?;
    let mut left = MAX_VALUES;
    machine.value(root, 0, &mut left)
}

/// A value under construction. Parts are numbers of other nodes: a list may be named before it is filled.
#[derive(Clone, Debug)]
enum Node {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<usize>),
    Tuple(Vec<usize>),
    Dict(Vec<(usize, usize)>),
    Function(Function),
    /// `numpy.dtype`: kind and bytes of a number; little-endian unless told otherwise.
    Type {
        kind: u8,
        size: usize,
        big: bool,
    },
    /// An array before its state is set.
    EmptyArray,
    Array(Vec<Number>),
}

/// Names that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Reconstruct,
    Scalar,
    NdArray,
    DType,
    Encode,
    EmptyBytes,
}

impl Function {
    fn named(module: &str, name: &str) -> Result<Self> {
        match (module, name) {
            ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => Ok(Self::Reconstruct),
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Ok(Self::Scalar),
            ("numpy", "ndarray") => Ok(Self::NdArray),
            ("numpy", "dtype") => Ok(Self::DType),
            ("_codecs", "encode") => Ok(Self::Encode),
            ("__builtin__" | "builtins", "bytes") => Ok(Self::EmptyBytes),
            _ => Err(PickleError::Refused(format!("the Python object {}.{}", clean(module), clean(name)))),
        }
    }
}

/// A name of the file for an error message.
fn clean(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(80).collect()
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<usize>,
    marks: Vec<usize>,
    memo: Vec<Option<usize>>,
    /// Nodes, their parts and the numbers of arrays so far.
    made: usize,
}

impl Machine<'_> {
    fn take(&mut self, count: usize) -> Result<&[u8]> {
        let rest = &self.bytes[self.at..];
        if count > rest.len() {
            return damaged(format!("{count} bytes are announced at byte {}, {} are left", self.at, rest.len()));
        }
        self.at += count;
        Ok(&rest[..count])
    }

    fn number(&mut self, size: usize) -> Result<u64> {
        Ok(self.take(size)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn length(&mut self, size: usize) -> Result<usize> {
        let length = self.number(size)?;
        usize::try_from(length).or_else(|_| damaged(format!("a length of {length}")))
    }

    fn text(&mut self, length: usize) -> Result<String> {
        let bytes = self.take(length)?.to_vec();
        String::from_utf8(bytes).or_else(|_| damaged("text that is not UTF-8"))
    }

    fn line(&mut self) -> Result<String> {
        let rest = &self.bytes[self.at..];
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else { return damaged("a name without end") };
        let line = self.text(end)?;
        self.at += 1;
        Ok(line)
    }

    fn count(&mut self, more: usize) -> Result<()> {
        self.made = self.made.saturating_add(more);
        if self.made > MAX_VALUES { Err(PickleError::Limit(format!("more than {MAX_VALUES} values"))) } else { Ok(()) }
    }

    fn push(&mut self, node: Node) -> Result<()> {
        self.count(1)?;
        self.nodes.push(node);
        self.stack.push(self.nodes.len() - 1);
        Ok(())
    }

    fn pop(&mut self) -> Result<usize> {
        // What lies below a mark belongs to whoever set it.
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return damaged("a value is missing");
        }
        self.stack.pop().ok_or_else(|| PickleError::Damaged("a value is missing".into()))
    }

    fn top(&self) -> Result<usize> {
        self.stack.last().copied().ok_or_else(|| PickleError::Damaged("a value is missing".into()))
    }

    fn since_mark(&mut self) -> Result<Vec<usize>> {
        let Some(mark) = self.marks.pop() else { return damaged("a mark is missing") };
        let items = self.stack.split_off(mark);
        self.count(items.len())?;
        Ok(items)
    }

    fn remember(&mut self, place: usize) -> Result<()> {
        if place > self.made + 1 {
            return damaged(format!("place {place} is remembered among {} values", self.made));
        }
        if self.memo.len() <= place {
            self.memo.resize(place + 1, None);
        }
        self.memo[place] = Some(self.top()?);
        Ok(())
    }

    fn recall(&mut self, place: usize) -> Result<()> {
        let Some(node) = self.memo.get(place).copied().flatten() else {
            return damaged(format!("nothing at place {place}"));
        };
        self.count(1)?;
        self.stack.push(node);
        Ok(())
    }

    fn run(&mut self) -> Result<usize> {
        if self.take(1)?[0] != 0x80 {
            return damaged("it does not begin as a pickle of protocol 2, 3 or 4 does");
        }
        let protocol = self.take(1)?[0];
        if !(2..=4).contains(&protocol) {
            return Err(PickleError::Protocol(protocol));
        }
        loop {
            let opcode = self.take(1)?[0];
            match opcode {
                b'.' => {
                    let root = self.pop()?;
                    let clear = self.stack.is_empty() && self.marks.is_empty();
                    return if clear { Ok(root) } else { damaged("values are left over") };
                }
                // A frame only announces how many bytes follow.
                0x95 => {
                    self.take(8)?;
                }
                b'(' => {
                    self.count(1)?;
                    self.marks.push(self.stack.len());
                }
                b'q' => self.length(1).and_then(|place| self.remember(place))?,
                b'r' => self.length(4).and_then(|place| self.remember(place))?,
                0x94 => self.remember(self.memo.len())?,
                b'h' => self.length(1).and_then(|place| self.recall(place))?,
                b'j' => self.length(4).and_then(|place| self.recall(place))?,
                b'N' | 0x88 | 0x89 | b'J' | b'K' | b'M' | 0x8a | b'G' => self.scalar(opcode)?,
                b'X' | 0x8c | 0x8d | b'B' | b'C' | 0x8e | b'U' | b'T' => self.characters(opcode)?,
                b']' | b')' | b'}' | b't' | 0x85..=0x87 | b'l' | b'd' | b'a' | b'e' | b's' | b'u' => {
                    self.container(opcode)?
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push(Node::Function(Function::named(&module, &name)?))?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    match (&self.nodes[module], &self.nodes[name]) {
                        (Node::Text(module), Node::Text(name)) => {
                            let function = Function::named(module, name)?;
                            self.push(Node::Function(function))?;
                        }
                        _ => return damaged("a name that is no text"),
                    }
                }
                b'R' => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    self.call(function, arguments)?;
                }
                b'b' => {
                    let state = self.pop()?;
                    self.build(state)?;
                }
                other => return Err(PickleError::Refused(format!("opcode 0x{other:02x}"))),
            }
        }
    }

    fn scalar(&mut self, opcode: u8) -> Result<()> {
        let node = match opcode {
            b'N' => Node::None,
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            b'J' => Node::Int(i64::from(self.number(4)? as u32 as i32)),
            b'K' => Node::Int(self.number(1)? as i64),
            b'M' => Node::Int(self.number(2)? as i64),
            b'G' => Node::Float(f64::from_bits(self.number(8)?.swap_bytes())),
            _ => {
                let size = self.length(1)?;
                if size > 8 {
                    return Err(PickleError::Limit(format!("a whole number of {size} bytes")));
                }
                let bits = self.number(size)?;
                let unused = 64 - 8 * size as u32;
                Node::Int(if size == 0 { 0 } else { (bits << unused) as i64 >> unused })
            }
        };
        self.push(node)
    }

    fn characters(&mut self, opcode: u8) -> Result<()> {
        let size = match opcode {
            0x8c | b'C' | b'U' => 1,
            0x8d | 0x8e => 8,
            _ => 4,
        };
        let length = self.length(size)?;
        let node = match opcode {
            b'X' | 0x8c | 0x8d => Node::Text(self.text(length)?),
            b'B' | b'C' | 0x8e => Node::Bytes(self.take(length)?.to_vec()),
            // The text of Python 2: bytes, unless they can only be text.
            _ => {
                let bytes = self.take(length)?.to_vec();
                match String::from_utf8(bytes) {
                    Ok(text) if text.is_ascii() => Node::Text(text),
                    Ok(text) => Node::Bytes(text.into_bytes()),
                    Err(error) => Node::Bytes(error.into_bytes()),
                }
            }
        };
        self.push(node)
    }

    fn container(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            b']' => self.push(Node::List(vec![])),
            b')' => self.push(Node::Tuple(vec![])),
            b'}' => self.push(Node::Dict(vec![])),
            b't' | b'l' => {
                let items = self.since_mark()?;
                self.push(if opcode == b't' { Node::Tuple(items) } else { Node::List(items) })
            }
            b'd' => {
                let pairs = paired(self.since_mark()?)?;
                self.push(Node::Dict(pairs))
            }
            0x85..=0x87 => {
                let mut items = (0..opcode - 0x84).map(|_| self.pop()).collect::<Result<Vec<_>>>()?;
                items.reverse();
                self.count(items.len())?;
                self.push(Node::Tuple(items))
            }
            b'a' | b'e' => {
                let items = if opcode == b'a' { vec![self.pop()?] } else { self.since_mark()? };
                self.count(items.len())?;
                let list = self.top()?;
                match &mut self.nodes[list] {
                    Node::List(parts) => parts.extend(items),
                    _ => return damaged("items for what is no list"),
                }
                Ok(())
            }
            _ => {
                let items = if opcode == b's' {
                    let (value, key) = (self.pop()?, self.pop()?);
                    vec![key, value]
                } else {
                    self.since_mark()?
                };
                self.count(items.len())?;
                let (pairs, dict) = (paired(items)?, self.top()?);
                match &mut self.nodes[dict] {
                    Node::Dict(entries) => entries.extend(pairs),
                    _ => return damaged("entries for what is no dict"),
                }
                Ok(())
            }
        }
    }

    fn tuple(&self, node: usize) -> Result<&[usize]> {
        match &self.nodes[node] {
            Node::Tuple(items) => Ok(items),
            _ => damaged("arguments that are no tuple"),
        }
    }

    /// Carries out one of the known functions on data.
    fn call(&mut self, function: usize, arguments: usize) -> Result<()> {
        let Node::Function(function) = self.nodes[function] else {
            return Err(PickleError::Refused("a call of what is no known function".into()));
        };
        let arguments = self.tuple(arguments)?.to_vec();
        // What a call copies is made again, however often the same text is given.
        if let (Function::Encode, Some(Node::Text(text))) = (function, arguments.first().map(|node| &self.nodes[*node]))
        {
            let length = text.len();
            self.count(length)?;
        }
        let argument = |i: usize| arguments.get(i).map(|node| &self.nodes[*node]);
        let made = match (function, argument(0), argument(1)) {
            (Function::Reconstruct, Some(Node::Function(Function::NdArray)), _) => Node::EmptyArray,
            (Function::DType, Some(Node::Text(name)), _) => number_type(name)?,
            (Function::DType, Some(Node::Bytes(name)), _) => number_type(&String::from_utf8_lossy(name))?,
            (Function::Scalar, Some(&Node::Type { kind, size, big }), Some(bytes)) => {
                let bytes = as_bytes(bytes)?;
                if bytes.len() != size {
                    return damaged("a number of numpy that is not one");
                }
                let number = numbers(kind, size, big, bytes)?.into_iter().next();
                let int_or_float = |number: Number| {
                    number.as_i64().map(Node::Int).or(number.as_f64().map(Node::Float)).unwrap_or(Node::None)
                };
                number.map_or(Node::None, int_or_float)
            }
            (Function::EmptyBytes, None, _) => Node::Bytes(vec![]),
            // Bytes as protocol 2 has them: text whose characters are the bytes.
            (Function::Encode, Some(Node::Text(text)), Some(Node::Text(codec))) if codec == "latin1" => {
                let bytes =
                    text.chars().map(|c| u8::try_from(u32::from(c))).collect::<std::result::Result<Vec<u8>, _>>();
                Node::Bytes(bytes.or_else(|_| damaged("bytes of more than 8 bits"))?)
            }
            _ => return Err(PickleError::Refused(format!("{function:?} of unexpected arguments"))),
        };
        self.push(made)
    }

    /// Sets the state of what is on top: numpy's arrays and number types have one.
    fn build(&mut self, state: usize) -> Result<()> {
        let (state, top) = (self.tuple(state)?.to_vec(), self.top()?);
        let part = |i: usize| state.get(i).map(|node| &self.nodes[*node]);
        let built = match (&self.nodes[top], part(1), part(2), part(4)) {
            (&Node::Type { kind, size, .. }, Some(order), _, _) => {
                let order = match order {
                    Node::Text(text) => text.as_bytes(),
                    Node::Bytes(bytes) => bytes,
                    _ => return damaged("a byte order that is no text"),
                };
                Node::Type { kind, size, big: order == b">" }
            }
            (Node::EmptyArray, Some(Node::Tuple(shape)), Some(&Node::Type { kind, size, big }), Some(data)) => {
                let numbers = numbers(kind, size, big, as_bytes(data)?)?;
                let length = |length: usize, side: &usize| match self.nodes[*side] {
                    Node::Int(side) => usize::try_from(side).ok().and_then(|side| length.checked_mul(side)),
                    _ => None,
                };
                if shape.iter().try_fold(1, length) != Some(numbers.len()) {
                    return damaged(format!("an array of {} numbers has another shape", numbers.len()));
                }
                Node::Array(numbers)
            }
            _ => return Err(PickleError::Refused("the state of an unknown object".into())),
        };
        if let Node::Array(numbers) = &built {
            self.count(numbers.len())?;
        }
        self.nodes[top] = built;
        Ok(())
    }

    /// A node with its parts, which may be shared: `left` bounds what they unfold to.
    fn value(&self, node: usize, depth: usize, left: &mut usize) -> Result<Value> {
        if depth > MAX_DEPTH {
            return Err(PickleError::Limit(format!("nested deeper than {MAX_DEPTH}")));
        }
        let spent = match &self.nodes[node] {
            Node::Array(numbers) => numbers.len() + 1,
            Node::Text(text) => 1 + text.len() / 16,
            _ => 1,
        };
        *left = left.checked_sub(spent).ok_or_else(|| PickleError::Limit(format!("more than {MAX_VALUES} values")))?;
        let mut part = |node: &usize| self.value(*node, depth + 1, left);
        Ok(match &self.nodes[node] {
            Node::None => Value::Null,
            Node::Bool(value) => Value::Bool(*value),
            Node::Int(value) => Value::from(*value),
            Node::Float(value) => Value::from(*value),
            Node::Text(text) => Value::from(text.as_str()),
            Node::Array(numbers) => numbers.iter().cloned().map(Value::Number).collect(),
            Node::List(items) | Node::Tuple(items) => Value::Array(items.iter().map(part).collect::<Result<_>>()?),
            Node::Dict(entries) => {
                let mut map = Map::new();
                for (key, entry) in entries {
                    match &self.nodes[*key] {
                        Node::Text(key) => map.insert(key.clone(), part(entry)?),
                        _ => return damaged("a key that is no text"),
                    };
                }
                Value::Object(map)
            }
            Node::Bytes(_) | Node::Function(_) | Node::Type { .. } | Node::EmptyArray => {
                return damaged("a value that is no data");
            }
        })
    }
}

fn paired(items: Vec<usize>) -> Result<Vec<(usize, usize)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    if rest.is_empty() {
        Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
    } else {
        damaged("a key without value")
    }
}

fn as_bytes(node: &Node) -> Result<&[u8]> {
    match node {
        Node::Bytes(bytes) => Ok(bytes),
        Node::Text(text) => Ok(text.as_bytes()),
        _ => Err(PickleError::Refused("an array of Python objects".into())),
    }
}

/// numpy's short names of number types: kind and bytes.
fn number_type(name: &str) -> Result<Node> {
    let (kind, size) = match name.trim_start_matches(['<', '=', '|']) {
        "b1" => (b'u', 1),
        "i1" => (b'i', 1),
        "i2" => (b'i', 2),
        "i4" => (b'i', 4),
        "i8" => (b'i', 8),
        "u1" => (b'u', 1),
        "u2" => (b'u', 2),
        "u4" => (b'u', 4),
        "u8" => (b'u', 8),
        "f4" => (b'f', 4),
        "f8" => (b'f', 8),
        _ => return Err(PickleError::Refused(format!("numbers of type {}", clean(name)))),
    };
    Ok(Node::Type { kind, size, big: false })
}

fn numbers(kind: u8, size: usize, big: bool, bytes: &[u8]) -> Result<Vec<Number>> {
    if !bytes.len().is_multiple_of(size) {
        return damaged(format!("{} bytes of numbers of {size}", bytes.len()));
    }
    if bytes.len() / size > MAX_VALUES {
        return Err(PickleError::Limit(format!("more than {MAX_VALUES} values")));
    }
    let number = |bytes: &[u8]| {
        let join = |bits: u64, byte: &u8| bits << 8 | u64::from(*byte);
        let bits = if big { bytes.iter().fold(0, join) } else { bytes.iter().rev().fold(0, join) };
        let unused = 64 - 8 * size as u32;
        match kind {
            b'u' => Ok(Number::from(bits)),
            b'i' => Ok(Number::from((bits << unused) as i64 >> unused)),
            _ => {
                let value = if size == 4 { f64::from(f32::from_bits(bits as u32)) } else { f64::from_bits(bits) };
                Number::from_f64(value).map_or_else(|| damaged("a number that is not finite"), Ok)
            }
        }
    };
    bytes.chunks_exact(size).map(number).collect()
}

#[cfg(test)]
mod tests;
