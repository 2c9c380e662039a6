//! Pickles that Python wrote, attacks, and bytes at random.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn golden(name: &str) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/retrieval/");
    std::fs::read(format!("{folder}{name}")).unwrap()
}

#[test]
fn what_python_and_numpy_write_is_read() {
    let expected: Value = serde_json::from_slice(&golden("truth.json")).unwrap();
    for protocol in 2..=4 {
        assert_same(&read(&golden(&format!("truth_{protocol}.pkl"))).unwrap(), &expected);
    }
    assert!(expected["gnd"].as_array().unwrap().len() > 3);
}

/// Equal, but for the last bit of a number, which reading JSON may move.
fn assert_same(ours: &Value, theirs: &Value) {
    match (ours, theirs) {
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len());
            a.iter().zip(b).for_each(|(a, b)| assert_same(a, b));
        }
        (Value::Object(a), Value::Object(b)) => {
            assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
            a.values().zip(b.values()).for_each(|(a, b)| assert_same(a, b));
        }
        (Value::Number(a), Value::Number(b)) if a.is_f64() && b.is_f64() => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            assert!((a - b).abs() <= 1e-15 * b.abs(), "{a} {b}");
        }
        _ => assert_eq!(ours, theirs),
    }
}

#[test]
fn other_names_and_opcodes_are_refused_by_name() {
    let refused = |bytes: &[u8]| match read(bytes).unwrap_err() {
        PickleError::Refused(what) => what,
        other => panic!("{other}"),
    };
    // os.system("true") in protocol 2, and by a stacked name in protocol 4.
    assert!(refused(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.").contains("os.system"));
    assert!(refused(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.").contains("os.system"));
    assert!(refused(b"\x80\x02cbuiltins\neval\n.").contains("builtins.eval"));
    assert!(refused(b"\x80\x02cnumpy\nload\n.").contains("numpy.load"));
    // INST, OBJ, NEWOBJ, EXT1, PERSID, BINPERSID.
    for opcode in [b'i', b'o', 0x81, 0x82, b'P', b'Q'] {
        assert!(refused(&[0x80, 2, opcode]).contains(&format!("0x{opcode:02x}")));
    }
    // A known function on something else than numbers: dtype("O").
    assert!(refused(b"\x80\x02cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.").contains("type O"));
    // A call of data.
    assert!(refused(b"\x80\x02X\x01\x00\x00\x00a)R.").contains("no known function"));
}

#[test]
fn what_is_cut_short_or_breaks_the_rules_is_named() {
    let whole = golden("truth_2.pkl");
    for end in (0..whole.len()).step_by(7) {
        assert!(matches!(read(&whole[..end]), Err(PickleError::Damaged(_))), "{end}");
    }
    let damaged = |bytes: &[u8]| match read(bytes).unwrap_err() {
        PickleError::Damaged(what) => what,
        other => panic!("{other}"),
    };
    assert!(damaged(b"(dp0\n.").contains("protocol"));
    assert_eq!(read(b"\x80\x05N."), Err(PickleError::Protocol(5)));
    assert!(damaged(b"\x80\x02.").contains("value is missing"));
    assert!(damaged(b"\x80\x02NN.").contains("left over"));
    assert!(damaged(b"\x80\x02h\x07.").contains("place 7"));
    assert!(damaged(b"\x80\x02Nr\xff\xff\xff\x7f.").contains("remembered"));
    assert!(damaged(b"\x80\x02X\xff\xff\xff\xffa.").contains("announced"));
    assert!(damaged(b"\x80\x02e.").contains("mark"));
    assert!(damaged(b"\x80\x02}K\x01K\x02s.").contains("key that is no text"));
    assert_eq!(read(b"\x80\x02\x8a\x02\x00\xff.").unwrap(), json!(-256));
    assert_eq!(read(b"\x80\x02G\x3f\xf8\x00\x00\x00\x00\x00\x00.").unwrap(), json!(1.5));
}

#[test]
fn bombs_are_bounded() {
    // A list that holds itself.
    assert!(matches!(read(b"\x80\x02]q\x00h\x00a."), Err(PickleError::Limit(_))));
    // Thirty lists, each holding the one before it ten times: 10^30 values.
    let mut bomb = b"\x80\x02]q\x00".to_vec();
    for i in 0..30_u8 {
        bomb.extend([b']', b'q', i + 1, b'(']);
        bomb.extend([b'h', i].repeat(10));
        bomb.push(b'e');
    }
    // The rest stays below: the last one is what is asked for.
    let mut asked = b"\x80\x02(".to_vec();
    asked.extend(&bomb[2..]);
    asked.extend(b"t.");
    assert!(matches!(read(&asked), Err(PickleError::Limit(_))));
    // Deep, but small.
    let mut deep = b"\x80\x02".to_vec();
    deep.extend(b"]".repeat(100_000));
    deep.extend(b"a".repeat(99_999));
    deep.push(b'.');
    assert!(matches!(read(&deep), Err(PickleError::Limit(_))));
    // Many values of one byte each.
    let many = [&b"\x80\x02("[..], &b"N".repeat(MAX_VALUES + 2)[..], b"t."].concat();
    assert!(matches!(read(&many), Err(PickleError::Limit(_))));
    // Marks alone.
    let marks = [&b"\x80\x02"[..], &b"(".repeat(MAX_VALUES + 2)[..]].concat();
    assert!(matches!(read(&marks), Err(PickleError::Limit(_))));
    // One text of 64 KiB that is made into bytes again and again.
    let text = [&b"X\0\0\x01\0"[..], &b"a".repeat(1 << 16)].concat();
    let head = [&b"\x80\x02("[..], &text, b"q\0c_codecs\nencode\nq\x01X\x06\0\0\0latin1q\x02"].concat();
    let copies = [&head[..], &b"h\x01h\0h\x02\x86R".repeat(MAX_VALUES >> 15), b"t."].concat();
    assert!(matches!(read(&copies), Err(PickleError::Limit(_))));
}

proptest! {
    /// Whatever the bytes, an answer comes, and nothing panics.
    #[test]
    fn any_bytes_end_in_a_value_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = read(&[&b"\x80\x02"[..], &bytes].concat());
        let _ = read(&bytes);
    }

    /// Bytes made of opcodes that are known go deeper.
    #[test]
    fn any_known_opcodes_end_in_a_value_or_an_error(
        picks in proptest::collection::vec((0..38_usize, any::<u8>()), 0..300),
    ) {
        const PIECES: [&[u8]; 38] = [
            b"(", b"q", b"r", b"\x94", b"h", b"j", b"N", b"\x88", b"\x89", b"J", b"K", b"M", b"\x8a\x01", b"G", b"X\x01\0\0\0",
            b"\x8c\x01", b"B\x02\0\0\0", b"C\x01", b"U\x01", b"]", b")", b"}", b"t", b"\x85", b"\x86", b"\x87", b"l", b"d",
            b"a", b"e", b"s", b"u", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n",
            b"c_codecs\nencode\n", b"R", b"b",
        ];
        let mut bytes = b"\x80\x02".to_vec();
        for (piece, more) in picks {
            bytes.extend(PIECES[piece]);
            if more % 2 == 0 {
                bytes.push(more % 8);
            }
        }
        bytes.push(b'.');
        let _ = read(&bytes);
    }

    /// One byte of a real file changed.
    #[test]
    fn a_changed_byte_does_no_harm(at in 0..10_000_usize, byte: u8, protocol in 2..5) {
        let mut bytes = golden(&format!("truth_{protocol}.pkl"));
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = read(&bytes);
    }
}
