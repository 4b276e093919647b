//! Many packets in one buffer.

/// The largest IP packet, and so the largest UDP payload and a little more.
pub const LARGEST: usize = 65_535;

/// How many packets one batch carries at most: what one system call may later take (dataplane rule 7).
const PACKETS: usize = 64;

/// Packets back to back in one buffer that is allocated once, each with something known about it.
///
/// A reader asks for [`Self::room`], fills a part of it and [`Self::push`]es what it filled, until there is no more
/// room or no more to read. Nothing is allocated after [`Self::new`].
#[derive(Debug)]
pub struct Batch<A> {
    octets: Box<[u8]>,
    used: usize,
    entries: Vec<(usize, A)>,
}

impl<A: Copy> Batch<A> {
    /// An empty batch for what is read at once.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(PACKETS * 2048 + LARGEST)
    }

    /// An empty batch that holds every packet of a full [`Self::new`] one, each grown by up to 512 octets.
    #[must_use]
    pub fn for_sealed() -> Self {
        Self::with_capacity(PACKETS * (2048 + 512) + 2 * LARGEST)
    }

    fn with_capacity(octets: usize) -> Self {
        Self {
            octets: vec![0; octets].into_boxed_slice(),
            used: 0,
            entries: Vec::with_capacity(PACKETS),
        }
    }

    /// Forgets all packets.
    pub fn clear(&mut self) {
        self.used = 0;
        self.entries.clear();
    }

    /// Whether there is no packet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many packets there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Room for one more packet of up to [`LARGEST`] octets, or none when the batch is full.
    pub fn room(&mut self) -> Option<&mut [u8]> {
        if self.entries.len() >= PACKETS {
            return None;
        }
        self.octets.get_mut(self.used..)?.get_mut(..LARGEST)
    }

    /// The first `len` octets of the last [`Self::room`] are a packet.
    pub fn push(&mut self, len: usize, about: A) {
        let len = len.min(LARGEST);
        self.used = (self.used + len).min(self.octets.len());
        self.entries.push((len, about));
    }

    /// All packets, in order, with what is known about each.
    pub fn packets(&mut self) -> impl Iterator<Item = (A, &mut [u8])> {
        let mut rest = self.octets.get_mut(..self.used).unwrap_or_default();
        self.entries.iter().map_while(move |&(len, about)| {
            let (packet, tail) = std::mem::take(&mut rest).split_at_mut_checked(len)?;
            rest = tail;
            Some((about, packet))
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

    #[test]
    fn packets_come_back_in_order_with_their_notes() {
        let mut batch = Batch::new();
        for (packet, about) in [(&b"one"[..], 1), (b"", 2), (b"three", 3)] {
            batch.room().unwrap()[..packet.len()].copy_from_slice(packet);
            batch.push(packet.len(), about);
        }
        let back: Vec<_> = batch
            .packets()
            .map(|(about, packet)| (about, packet.to_vec()))
            .collect();
        assert_eq!(
            back,
            [(1, b"one".to_vec()), (2, b"".to_vec()), (3, b"three".to_vec())]
        );
        batch.clear();
        assert_eq!(batch.packets().count(), 0);
    }

    #[test]
    fn there_is_always_room_for_the_largest_packet_or_none() {
        let mut batch = Batch::new();
        let mut pushed = 0;
        while let Some(room) = batch.room() {
            assert_eq!(room.len(), LARGEST);
            batch.push(LARGEST, ());
            pushed += 1;
        }
        assert!((2..=PACKETS).contains(&pushed), "{pushed} packets");
        assert_eq!(
            batch.packets().map(|(_, packet)| packet.len()).sum::<usize>(),
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
}
