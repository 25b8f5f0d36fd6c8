use super::*;
use crate::block::Digest;

fn cid(content: &[u8]) -> Cid {
    Cid::raw(Digest::of(content))
}

fn small() -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), &[cid(b"one")]).unwrap();
    for content in [&b"one"[..], b"", b"three"] {
        writer.write(&cid(content), content).unwrap();
    }
    writer.finish().unwrap()
}

fn v2(car: &[u8], padding: usize) -> Vec<u8> {
    let mut out = b"\x0a\xa1\x67version\x02".to_vec();
    out.extend([0; 16]);
    out.extend((51 + padding as u64).to_le_bytes());
    out.extend((car.len() as u64).to_le_bytes());
    out.extend([0; 8]);
    out.extend(vec![0; padding]);
    out.extend(car);
    out
}

fn read(bytes: &[u8]) -> Result<Vec<Section>, CarError> {
    Reader::new(bytes)?.collect()
}

#[test]
fn golden_bytes_of_a_header() {
    let header = header(&[Cid::raw(Digest::EMPTY)]);
    assert_eq!(header.len(), 59);
    assert_eq!(
        hex::encode(header),
        format!(
            "3aa265726f6f747381d82a58250001551220{}6776657273696f6e01",
            Digest::EMPTY
        )
    );
}

#[test]
fn what_was_written_is_read() {
    let car = small();
    let reader = Reader::new(&car[..]).unwrap();
    assert_eq!(reader.roots(), [AnyCid::from(cid(b"one"))]);
    let sections: Vec<Section> = reader.map(Result::unwrap).collect();
    let contents: Vec<&[u8]> = sections.iter().map(|section| &section.bytes[..]).collect();
    assert_eq!(contents, [&b"one"[..], b"", b"three"]);
    assert_eq!(sections[2].cid.known(), Some(cid(b"three")));
    assert_eq!(read(&v2(&car, 0)).unwrap(), sections);
    // An index may follow the data of version 2.
    let mut indexed = v2(&car, 7);
    indexed.extend(b"index");
    assert_eq!(read(&indexed).unwrap(), sections);

    for roots in [0, 1, 15, 16] {
        let header = header(&vec![cid(b"x"); roots]);
        assert_eq!(Reader::new(&header[..]).unwrap().roots().len(), roots);
    }
}

#[test]
fn every_cut_is_an_error_or_a_shorter_file() {
    let car = small();
    let boundaries: Vec<usize> = [&b"one"[..], b"", b"three"]
        .iter()
        .scan(59, |at, content| {
            let here = *at;
            *at += 1 + Cid::BYTES + content.len();
            Some(here)
        })
        .collect();
    for len in 0..car.len() {
        let cut = read(&car[..len]);
        if boundaries.contains(&len) {
            assert!(cut.is_ok(), "{len}");
        } else {
            assert!(matches!(cut, Err(CarError::CutOff)), "{len}: {cut:?}");
        }
        // Version 2 says how much there is.
        let whole = v2(&car, 0);
        assert!(read(&whole[..51 + len]).is_err(), "{len}");
    }
}

#[test]
fn a_wrong_byte_ends_the_file() {
    let mut car = small();
    let last = car.len() - 1;
    car[last] ^= 1;
    let mut reader = Reader::new(&car[..]).unwrap();
    assert!(reader.next().unwrap().is_ok());
    assert!(reader.next().unwrap().is_ok());
    assert!(matches!(
        reader.next().unwrap(),
        Err(CarError::WrongBytes(_))
    ));
    assert!(reader.next().is_none());
}

#[test]
fn an_unknown_hash_is_passed_over() {
    let mut car = header(&[]);
    car.extend([0x06, 1, 0x55, 0x1e, 1, 0, b'x']);
    car.extend(section(&cid(b"y"), b"y"));
    car.extend([0x05, 1, 0x55, 0, 1, b'z']);
    car.push(b'z');
    let mut reader = Reader::new(&car[..]).unwrap();
    assert!(matches!(
        reader.next().unwrap(),
        Err(CarError::UnknownHash {
            source: UnknownHash(0x1e),
            ..
        })
    ));
    assert_eq!(&reader.next().unwrap().unwrap().bytes[..], b"y");
    // The identity CID's length byte says 5, so the block is cut short by one: not its own.
    assert!(matches!(
        reader.next().unwrap(),
        Err(CarError::WrongBytes(_))
    ));
}

#[test]
fn limits_hold_before_anything_is_allocated() {
    let with_len = |len: u64| {
        let mut car = header(&[]);
        varint::push(&mut car, len);
        car
    };
    assert!(matches!(
        read(&with_len(SECTION_BYTES_MAX)),
        Err(CarError::CutOff)
    ));
    for len in [0, SECTION_BYTES_MAX + 1, u64::MAX >> 1] {
        assert!(matches!(read(&with_len(len)), Err(CarError::Length)));
    }
    let mut fat = Vec::new();
    varint::push(&mut fat, HEADER_BYTES_MAX + 1);
    assert!(matches!(read(&fat), Err(CarError::Length)));
    let roots = header(&vec![cid(b"x"); 17]);
    assert!(matches!(read(&roots), Err(CarError::Roots(17))));
    let far = v2(&small(), usize::try_from(PADDING_BYTES_MAX).unwrap() + 1);
    assert!(matches!(read(&far), Err(CarError::Length)));
    assert!(matches!(read(&[0x80; 20]), Err(CarError::Length)));
}

#[test]
fn headers_have_one_form() {
    for body in [
        &b"\xa2\x67version\x01\x65roots\x80"[..],
        b"\xa2\x65roots\x80\x67version\x03",
        b"\xa2\x65roots\x98\x00\x67version\x01",
        b"\xa2\x65roots\x80\x67version\x01\x00",
        b"\xa1\x67version\x01",
        b"\xa1\x67version\x03",
        b"\xa2\x65roots\x81\xd8\x2a\x41\x01\x67version\x01",
        b"\xa2\x65roots\x81\x40\x67version\x01",
        b"\xa2\x65roots\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xa2\x65roots\x1f",
        b"\xa2\x65roots",
    ] {
        let mut car = vec![u8::try_from(body.len()).unwrap()];
        car.extend(body);
        let error = read(&car).unwrap_err();
        assert!(
            matches!(error, CarError::Header | CarError::Roots(_)),
            "{body:?}: {error:?}"
        );
    }
    // Version 2 within version 2.
    assert!(read(&v2(&v2(&small(), 0), 0)).is_err());
}
