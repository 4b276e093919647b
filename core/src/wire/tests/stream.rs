//! Frames of a TCP stream (RFC 9329, section 3).

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::stream::{MAX_FRAME, STREAM_PREFIX, StreamError, StreamReader, StreamWriter};

/// Every frame that a stream holds when it comes in such pieces.
fn read(stream: &[u8], pieces: &[usize]) -> Result<Vec<Vec<u8>>, StreamError> {
    let mut reader = StreamReader::new();
    let (mut rest, mut frames, mut pieces) = (stream, Vec::new(), pieces.iter().cycle());
    while !rest.is_empty() {
        let room = reader.room();
        assert!(!room.is_empty(), "all frames were taken");
        let len = pieces.next().map_or(1, |len| *len).max(1);
        let len = len.min(rest.len()).min(room.len());
        let (piece, later) = rest.split_at(len);
        room[..len].copy_from_slice(piece);
        reader.filled(len);
        rest = later;
        while let Some(frame) = reader.next_frame()? {
            frames.push(frame.to_vec());
        }
    }
    Ok(frames)
}

/// All that a writer has to send.
fn drain(writer: &mut StreamWriter) -> Vec<u8> {
    let pending = writer.pending().to_vec();
    writer.sent(pending.len());
    pending
}

#[test]
fn a_stream_begins_with_its_prefix_once_and_then_has_frames() {
    let mut writer = StreamWriter::new();
    assert!(writer.push(&[0, 0, 0, 0, 0xaa]));
    writer.reserve(100).unwrap()[..3].copy_from_slice(&[1, 2, 3]);
    writer.commit(3);
    // RFC 9329, figures 1 to 3.
    assert_eq!(drain(&mut writer), b"IKETCP\0\x07\0\0\0\0\xaa\0\x05\x01\x02\x03");
    assert!(writer.push(&[9]));
    assert_eq!(drain(&mut writer), [0, 3, 9]);
}

#[test]
fn empty_frames_and_keepalives_are_nothing() {
    let stream = [0, 2, 0, 3, 0xff, 0, 4, 0xff, 0xff, 0, 2];
    assert_eq!(read(&stream, &[1]), Ok(vec![vec![0xff, 0xff]]));
}

#[test]
fn an_impossible_length_ends_the_stream() {
    for length in [0, 1] {
        assert_eq!(
            read(&[0, 3, 7, 0, length, 0, 3, 8], &[64]),
            Err(StreamError(length.into()))
        );
    }
    let mut reader = StreamReader::new();
    reader.filled(2);
    assert_eq!(reader.next_frame(), Err(StreamError(0)));
    assert_eq!(reader.next_frame(), Err(StreamError(0)), "for ever");
}

#[test]
fn the_largest_frames_come_through_in_any_pieces() {
    let frame = [0xff, 0xff]
        .into_iter()
        .chain((0..MAX_FRAME).map(|i| u8::try_from(i % 251).unwrap()));
    let one: Vec<u8> = frame.collect();
    let stream = [&[0, 3, 7][..], &one, &one, &one, &[0, 3, 8]].concat();
    for piece in [1000, 1460, 65_535, 131_070, 1 << 20] {
        let frames = read(&stream, &[piece]).unwrap();
        assert_eq!(frames.len(), 5, "in pieces of {piece}");
        assert!(frames[1..4].iter().all(|frame| frame[..] == one[2..]));
    }
}

#[test]
fn packets_that_find_no_room_are_dropped_and_ike_is_not() {
    let mut writer = StreamWriter::new();
    let mut packets = 0;
    while let Some(room) = writer.reserve(1500) {
        room.fill(1);
        writer.commit(1400);
        packets += 1;
    }
    assert!((100..1000).contains(&packets), "{packets}");
    assert!(writer.push(&[0; MAX_FRAME]), "an IKE message has its room");
    assert!(writer.push(&[0; 65_000]));
    assert!(!writer.push(&[0; 10_000]), "nothing grows without end");
    assert!(writer.reserve(10).is_none());
    writer.sent(200_000);
    assert!(writer.reserve(1500).is_some());
    assert!(!writer.push(&[0; MAX_FRAME + 1]), "no frame can hold it");
}

proptest! {
    #[test]
    fn what_is_written_is_read_however_it_is_cut(
        frames in vec(vec(any::<u8>(), 0..3000), 1..200),
        pieces in vec(1..5000_usize, 1..20),
        sends in vec(1..200_000_usize, 1..20),
    ) {
        let mut writer = StreamWriter::new();
        let (mut stream, mut sends) = (Vec::new(), sends.iter().cycle());
        let mut send = |writer: &mut StreamWriter, stream: &mut Vec<u8>| {
            let len = writer.pending().len().min(*sends.next().unwrap());
            stream.extend_from_slice(&writer.pending()[..len]);
            writer.sent(len);
        };
        let mut kept = Vec::new();
        for (number, frame) in frames.iter().enumerate() {
            if number % 3 == 0 {
                if let Some(room) = writer.reserve(frame.len() + 16) {
                    room[..frame.len()].copy_from_slice(frame);
                    writer.commit(frame.len());
                    kept.push(frame.clone());
                }
            } else if writer.push(frame) {
                kept.push(frame.clone());
            }
            if number % 5 == 0 {
                send(&mut writer, &mut stream);
            }
        }
        while !writer.pending().is_empty() {
            send(&mut writer, &mut stream);
        }
        prop_assert_eq!(&stream[..6], STREAM_PREFIX);
        kept.retain(|frame| !matches!(frame[..], [] | [0xff]));
        prop_assert_eq!(read(&stream[6..], &pieces), Ok(kept));
    }

    #[test]
    fn no_octets_make_a_reader_panic_or_stall(stream in vec(any::<u8>(), 0..5000), pieces in vec(1..700_usize, 1..9)) {
        if let Ok(frames) = read(&stream, &pieces) {
            let octets: usize = frames.iter().map(Vec::len).sum();
            prop_assert!(octets <= stream.len());
        }
    }
}
