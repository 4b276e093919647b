//! Many packets in one buffer.

/// The largest IP packet, and so the largest UDP payload and a little more.
pub const LARGEST: usize = 65_535;

/// How many octets a reader may put before a packet.
const BEFORE: usize = 16;

/// How many reads one batch carries at most, each of a packet or of a train of them (dataplane rule 7).
const READS: usize = 64;

/// How many trains of datagrams may wait to be sent, when every datagram is one of its own.
const TRAINS: usize = 1024;

/// How many datagrams are sent together at most: what every Linux that cuts trains takes.
pub const LONGEST_TRAIN: usize = 64;

/// How many slots there are to receive into with one system call.
pub const SLOTS: usize = 32;

/// How far slots lie apart: not by a power of two, or all of their beginnings would share the same few sets of the
/// processor's cache.
const SLOT: usize = LARGEST + 1 + 192;

/// The most octets that a train of datagrams has: the largest UDP payload over IPv4.
const MOST_OCTETS: usize = 65_507;

/// Packets in one buffer that is allocated once, each with something known about it.
///
/// A reader asks for [`Self::room`], fills a part of it and [`Self::push`]es what it filled, until there is no more
/// room or no more to read. One that fills much at once takes [`Self::slots`] instead. Nothing is allocated after
/// the batch is made.
///
/// Packets of one length that follow each other, such as the operating system takes or gives in one piece, are kept
/// as a train of a certain stride: the length of all of its packets but the last, which may be shorter.
#[derive(Debug)]
pub struct Batch<A> {
    octets: Box<[u8]>,
    used: usize,
    entries: Vec<Entry<A>>,
    most: usize,
    is_flooded: bool,
}

#[derive(Clone, Copy, Debug)]
struct Entry<A> {
    start: usize,
    len: usize,
    stride: usize,
    /// More may join it.
    is_open: bool,
    about: A,
}

impl<A: Copy> Batch<A> {
    /// An empty batch for what is read from a tunnel device at once.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(READS * 2048 + BEFORE + LARGEST, READS)
    }

    /// An empty batch with [`SLOTS`] for what comes in by a socket at once. Of the memory only what was ever filled is
    /// really used.
    #[must_use]
    pub fn for_received() -> Self {
        Self::with_capacity(SLOTS * SLOT, READS)
    }

    /// An empty batch that holds every packet of a full [`Self::new`] one, each grown by up to 512 octets, and twice
    /// that when they are cut in pieces.
    #[must_use]
    pub fn for_sealed() -> Self {
        Self::with_capacity(512 << 10, TRAINS)
    }

    fn with_capacity(octets: usize, most: usize) -> Self {
        Self {
            octets: vec![0; octets].into_boxed_slice(),
            used: 0,
            entries: Vec::with_capacity(most),
            most,
            is_flooded: false,
        }
    }

    /// Forgets all packets.
    pub fn clear(&mut self) {
        self.used = 0;
        self.entries.clear();
        self.is_flooded = false;
    }

    /// The reader filled all that it offered to, and there may be more.
    pub const fn note_flood(&mut self) {
        self.is_flooded = true;
    }

    /// Whether there may be more to read than was read.
    #[must_use]
    pub fn is_flooded(&mut self) -> bool {
        self.is_flooded || self.room().is_none()
    }

    /// Whether there is no packet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many trains there are; a packet alone is one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Room for one more packet of up to [`LARGEST`] octets and 16 before it, or none when the batch is full.
    pub fn room(&mut self) -> Option<&mut [u8]> {
        if self.entries.len() >= self.most {
            return None;
        }
        self.octets.get_mut(self.used..)?.get_mut(..BEFORE + LARGEST)
    }

    /// The first `len` octets of the last [`Self::room`] are a packet.
    pub fn push(&mut self, len: usize, about: A) {
        self.push_train(len, len, about);
    }

    /// The first `len` octets of the last [`Self::room`] are a packet, but for `before` octets at its beginning.
    pub fn push_behind(&mut self, before: usize, len: usize, about: A) {
        self.used = (self.used + before).min(self.octets.len());
        self.push(len.saturating_sub(before), about);
    }

    /// The first `len` octets of the last [`Self::room`] are packets of `stride` octets each.
    pub fn push_train(&mut self, len: usize, stride: usize, about: A) {
        let (start, len) = (self.used, len.min(LARGEST));
        self.used = (start + len).min(self.octets.len());
        self.add(start, len, stride, about);
    }

    fn add(&mut self, start: usize, len: usize, stride: usize, about: A) {
        self.entries.push(Entry {
            start,
            len,
            // A stride of nothing would never end, and one that is too long is the whole.
            stride: if stride == 0 { len } else { stride.min(len) },
            is_open: false,
            about,
        });
    }

    /// How many slots are free.
    #[must_use]
    pub fn free_slots(&self) -> usize {
        let free = self.octets.len().saturating_sub(self.used) / SLOT;
        free.min(self.most.saturating_sub(self.entries.len()))
    }

    /// The free slots, each of [`LARGEST`] octets.
    pub fn slots(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let count = self.free_slots();
        let free = self.octets.get_mut(self.used..).unwrap_or_default();
        free.chunks_exact_mut(SLOT)
            .take(count)
            .filter_map(|slot| slot.get_mut(..LARGEST))
    }

    /// The first slots are filled: of each, how many octets, the stride, and what is known about them.
    pub fn push_slots(&mut self, filled: impl IntoIterator<Item = (usize, usize, A)>) {
        let count = self.free_slots();
        let first = self.used;
        for (index, (len, stride, about)) in filled.into_iter().take(count).enumerate() {
            let (start, len) = (first + index * SLOT, len.min(LARGEST));
            self.add(start, len, stride, about);
            self.used = start + len;
        }
    }

    /// All packets, in order, with what is known about each, and where it lies in [`Self::octets`].
    pub fn packets(&mut self) -> impl Iterator<Item = (A, usize, &mut [u8])> {
        let mut rest = &mut *self.octets;
        let mut at = 0;
        self.entries.iter().flat_map(move |entry| {
            let (train, tail) = std::mem::take(&mut rest)
                .get_mut(entry.start - at..)
                .and_then(|rest| rest.split_at_mut_checked(entry.len))
                .unwrap_or_default();
            rest = tail;
            at = entry.start + entry.len;
            let (about, stride) = (entry.about, entry.stride);
            // An empty packet is one too.
            let empty = train.is_empty().then(Default::default);
            let starts = (entry.start..).step_by(stride.max(1));
            starts
                .zip(empty.into_iter().chain(train.chunks_mut(stride.max(1))))
                .map(move |(start, packet)| (about, start, packet))
        })
    }

    /// The whole buffer, in which [`Self::packets`] tells where they lie.
    #[must_use]
    pub fn octets(&self) -> &[u8] {
        &self.octets
    }
}

impl<A: Copy + PartialEq> Batch<A> {
    /// The same as [`Self::push`], but the packet joins the last train when that was begun in this way too, the same
    /// is known about both, and it is not too long: at most `most` packets.
    pub fn join(&mut self, len: usize, about: A, most: usize) {
        if let Some(last) = self.entries.last_mut()
            && last.is_open
            && last.about == about
            && (1..=last.stride).contains(&len)
            && last.len % last.stride == 0
            && last.len / last.stride < most
            && last.len + len <= MOST_OCTETS
        {
            last.len += len;
            self.used = (self.used + len).min(self.octets.len());
        } else {
            self.push(len, about);
            if let Some(last) = self.entries.last_mut() {
                last.is_open = true;
            }
        }
    }

    /// All trains, in order: what is known about each, its stride, and its packets back to back.
    pub fn trains(&self) -> impl Iterator<Item = (A, usize, &[u8])> {
        self.entries.iter().filter_map(|entry| {
            let octets = self.octets.get(entry.start..)?.get(..entry.len)?;
            Some((entry.about, entry.stride, octets))
        })
    }
}

impl<A: Copy> Default for Batch<A> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets<A: Copy>(batch: &mut Batch<A>) -> Vec<(A, Vec<u8>)> {
        let copy = batch.octets().to_vec();
        batch
            .packets()
            .map(|(about, start, packet)| {
                assert_eq!(copy[start..start + packet.len()], *packet);
                (about, packet.to_vec())
            })
            .collect()
    }

    #[test]
    fn packets_come_back_in_order_with_their_notes() {
        let mut batch = Batch::new();
        for (packet, about) in [(&b"one"[..], 1), (b"", 2), (b"three", 3)] {
            batch.room().unwrap()[..packet.len()].copy_from_slice(packet);
            batch.push(packet.len(), about);
        }
        assert_eq!(
            packets(&mut batch),
            [(1, b"one".to_vec()), (2, b"".to_vec()), (3, b"three".to_vec())]
        );
        batch.clear();
        assert_eq!(batch.packets().count(), 0);
    }

    #[test]
    fn what_lies_before_a_packet_is_no_part_of_it() {
        let mut batch = Batch::new();
        for (octets, before) in [(&b"--one"[..], 2), (b"--", 2), (b"two", 0), (b"-", 2)] {
            batch.room().unwrap()[..octets.len()].copy_from_slice(octets);
            batch.push_behind(before, octets.len(), before);
        }
        let back: Vec<_> = packets(&mut batch)
            .into_iter()
            .map(|(_, packet)| packet)
            .collect();
        assert_eq!(back, [&b"one"[..], b"", b"two", b""]);
    }

    #[test]
    fn a_train_comes_back_as_its_packets() {
        let mut batch = Batch::new();
        for (train, stride) in [(&b"abcdefgh"[..], 3), (b"ij", 2), (b"kl", 0), (b"mn", 9)] {
            batch.room().unwrap()[..train.len()].copy_from_slice(train);
            batch.push_train(train.len(), stride, stride);
        }
        let back: Vec<_> = packets(&mut batch)
            .into_iter()
            .map(|(_, packet)| packet)
            .collect();
        assert_eq!(back, [&b"abc"[..], b"def", b"gh", b"ij", b"kl", b"mn"]);
        assert_eq!(batch.len(), 4);
    }

    #[test]
    fn what_lies_in_slots_comes_back_without_the_gaps() {
        let mut batch = Batch::for_received();
        batch.room().unwrap()[..2].copy_from_slice(b"ab");
        batch.push(2, 0);
        let fill = [(&b"cdefg"[..], 2), (b"", 0), (b"h", 1)];
        assert!(batch.free_slots() >= fill.len());
        for (slot, (train, _)) in batch.slots().zip(fill) {
            assert_eq!(slot.len(), LARGEST);
            slot[..train.len()].copy_from_slice(train);
        }
        batch.push_slots(
            (1..)
                .zip(fill)
                .map(|(about, (train, stride))| (train.len(), stride, about)),
        );
        batch.room().unwrap()[..1].copy_from_slice(b"i");
        batch.push(1, 4);
        let expected = [
            (0, "ab"),
            (1, "cd"),
            (1, "ef"),
            (1, "g"),
            (2, ""),
            (3, "h"),
            (4, "i"),
        ];
        let expected = expected.map(|(about, packet)| (about, packet.as_bytes().to_vec()));
        assert_eq!(packets(&mut batch), expected);
    }

    #[test]
    fn all_slots_can_be_filled_to_the_brim() {
        let mut batch = Batch::for_received();
        assert_eq!((batch.free_slots(), batch.slots().count()), (SLOTS, SLOTS));
        batch.push_slots((0..2 * SLOTS).map(|about| (2 * LARGEST, LARGEST, about)));
        assert_eq!(batch.len(), SLOTS);
        assert_eq!(batch.free_slots(), 0);
        assert_eq!(
            batch.packets().map(|(_, _, packet)| packet.len()).sum::<usize>(),
            SLOTS * LARGEST
        );
    }

    #[test]
    fn equal_packets_join_into_a_train_that_a_shorter_one_ends() {
        let mut batch = Batch::for_sealed();
        let lens = [5, 5, 5, 3, 5, 6, 6, 6, 6, 6, 0, 0, 2];
        for len in lens {
            batch.join(len, 'a', 4);
        }
        batch.join(2, 'b', 4);
        batch.push(2, 'b');
        batch.join(2, 'b', 4);
        let trains: Vec<_> = batch
            .trains()
            .map(|(about, stride, octets)| (about, stride, octets.len()))
            .collect();
        assert_eq!(
            trains,
            [
                ('a', 5, 18),
                ('a', 5, 5),
                ('a', 6, 24),
                ('a', 6, 6),
                ('a', 0, 0),
                ('a', 0, 0),
                ('a', 2, 2),
                ('b', 2, 2),
                ('b', 2, 2),
                ('b', 2, 2)
            ]
        );
        let back = batch.packets().map(|(_, _, packet)| packet.len());
        assert!(back.eq(lens.into_iter().chain([2; 3])));
    }

    #[test]
    fn no_train_is_longer_than_a_datagram_may_be() {
        let mut batch = Batch::for_sealed();
        for _ in 0..100 {
            batch.join(1500, (), 64);
        }
        assert!(batch.trains().all(|(_, _, octets)| octets.len() <= 65_507));
        assert_eq!(batch.len(), 3);
    }

    #[test]
    fn there_is_always_room_for_the_largest_packet_or_none() {
        let mut batch = Batch::new();
        let mut pushed = 0;
        while let Some(room) = batch.room() {
            assert_eq!(room.len(), BEFORE + LARGEST);
            batch.push(LARGEST, ());
            pushed += 1;
        }
        assert!((2..=READS).contains(&pushed), "{pushed} packets");
        assert_eq!(
            batch.packets().map(|(_, _, packet)| packet.len()).sum::<usize>(),
            pushed * LARGEST
        );
    }

    #[test]
    fn what_one_batch_holds_fits_sealed_into_the_other() {
        let (mut plain, mut sealed) = (Batch::new(), Batch::for_sealed());
        for size in [1, 1400, 9000, LARGEST - 512] {
            plain.clear();
            sealed.clear();
            while plain.room().is_some() {
                plain.push(size, ());
                assert!(sealed.room().is_some(), "packet {} of {size} octets", plain.len());
                sealed.push(size + 512, ());
            }
        }
    }

    #[test]
    fn a_batch_cut_in_segments_fits_sealed_into_the_other() {
        for segment in [300, 1000, 1386] {
            let mut sealed = Batch::for_sealed();
            for _ in 0..(READS * 2048 + LARGEST) / segment {
                assert!(sealed.room().is_some(), "segments of {segment} octets");
                sealed.push(segment + 52 + 62, ());
            }
        }
    }
}
