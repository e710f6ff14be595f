//! Where WebSocket frames begin in bytes that pass by (RFC 6455, 5.2): only there can a frame of our
//! own be put in. Reads lengths, nothing else, and keeps no byte of a payload.

/// A header has at most this many bytes before its payload: with the longest length, and a mask.
const HEADER_MAX: usize = 14;
/// Close, with the code 1008: a policy was violated.
const CLOSE: [u8; 4] = [0x88, 0x02, 0x03, 0xf0];

/// How far the frames have come.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// What has come of a header.
    header: [u8; HEADER_MAX],
    has: usize,
    /// What is still to come of a payload.
    payload: u64,
    /// A Close has passed: nothing may follow it.
    is_closed: bool,
}

impl Frames {
    /// These have passed.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if 0 < self.payload {
                let length = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
                self.payload -= length as u64;
                bytes = &bytes[length..];
                continue;
            }
            self.header[self.has] = bytes[0];
            self.has += 1;
            bytes = &bytes[1..];
            if let Some(payload) = self.complete() {
                self.is_closed |= self.header[0] & 0x0f == 0x08;
                (self.payload, self.has) = (payload, 0);
            }
        }
    }

    /// The length of the payload, once the header is complete.
    fn complete(&self) -> Option<u64> {
        let header = &self.header[..self.has];
        let second = *header.get(1)?;
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let (length, size) = match second & 0x7f {
            126 => (u64::from(u16::from_be_bytes(header.get(2..4)?.try_into().ok()?)), 4),
            127 => (u64::from_be_bytes(header.get(2..10)?.try_into().ok()?), 10),
            short => (u64::from(short), 2),
        };
        (header.len() == size + mask).then_some(length)
    }

    /// A Close that may be put in here.
    pub(super) fn close(&self) -> Option<[u8; 4]> {
        (self.has == 0 && self.payload == 0 && !self.is_closed).then_some(CLOSE)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(opcode: u8, length: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut frame = vec![0x80 | opcode];
        match length {
            0..=125 => frame.push(mask | length as u8),
            126..=0xffff => {
                frame.push(mask | 126);
                frame.extend((length as u16).to_be_bytes());
            }
            _ => {
                frame.push(mask | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(vec![0x88; length + if masked { 4 } else { 0 }]);
        frame
    }

    proptest! {
        #[test]
        fn a_close_fits_between_frames_and_nowhere_else(
            all in prop::collection::vec((0u8..3, prop_oneof![0usize..300, 65_500usize..65_600], any::<bool>()), 1..4),
            cut in 1usize..7,
        ) {
            let (mut frames, mut at, mut ends) = (Frames::default(), 0, vec![0]);
            let bytes: Vec<u8> = all
                .iter()
                .flat_map(|(opcode, length, masked)| {
                    let frame = frame(*opcode, *length, *masked);
                    ends.push(ends.last().copied().unwrap_or(0) + frame.len());
                    frame
                })
                .collect();
            for piece in bytes.chunks(cut) {
                frames.pass(piece);
                at += piece.len();
                prop_assert_eq!(frames.close().is_some(), ends.contains(&at), "at {}", at);
            }
        }
    }

    #[test]
    fn nothing_follows_a_close() {
        let mut frames = Frames::default();
        assert_eq!(frames.close(), Some(CLOSE));
        frames.pass(&CLOSE);
        assert_eq!(frames.close(), None);
    }
}
