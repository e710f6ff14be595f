//! A body in chunks. RFC 9112, 7.1, and no line end but CR LF.

use super::{
    Refusal,
    head::{self, has_control},
};

/// More digits are no size of anything.
const SIZE_DIGITS_MAX: usize = 15;
/// Extensions are for nobody; those who sign their chunks take a hundred bytes.
const EXTENSION_MAX: usize = 1024;

/// How far the body has come.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    at: At,
    /// Of the size that is being read, or bytes of the chunk still to come.
    size: u64,
    /// Digits, bytes of the extension, or bytes of the trailers so far.
    count: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Size,
    Extension,
    /// The CR behind the size has come.
    SizeEnd,
    Payload,
    PayloadCr,
    PayloadEnd,
    /// The start of a trailer, or of the empty line that ends the body.
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerEnd,
    End,
}

impl Chunks {
    /// How many of `bytes` belong to the body, and whether it ends with them.
    pub(super) fn read(
        &mut self,
        bytes: &[u8],
        trailers_max: usize,
    ) -> Result<(usize, bool), Refusal> {
        let mut read = 0;
        while let Some(&byte) = bytes.get(read) {
            if self.at == At::Payload {
                let left = usize::try_from(self.size).unwrap_or(usize::MAX);
                let here = left.min(bytes.len() - read);
                read += here;
                self.size -= here as u64;
                if self.size == 0 {
                    self.at = At::PayloadCr;
                }
                continue;
            }
            read += 1;
            let ends = self.at == At::End && byte == b'\n';
            self.at = self.step(byte, trailers_max).ok_or(Refusal::Chunk)?;
            if ends {
                return Ok((read, true));
            }
        }
        Ok((read, false))
    }

    /// Where one more byte leads; `None` where it must not be.
    fn step(&mut self, byte: u8, trailers_max: usize) -> Option<At> {
        match (self.at, byte) {
            (At::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                self.count += 1;
                let digit = char::from(byte).to_digit(16)?;
                self.size = self.size << 4 | u64::from(digit);
                (self.count <= SIZE_DIGITS_MAX).then_some(At::Size)
            }
            (At::Size, b';') if 0 < self.count => {
                self.count = 0;
                Some(At::Extension)
            }
            (At::Size, b'\r') => (0 < self.count).then_some(At::SizeEnd),
            (At::Extension, b'\r') => Some(At::SizeEnd),
            (At::Extension, _) => {
                self.count += 1;
                (self.count <= EXTENSION_MAX && !has_control(&[byte])).then_some(At::Extension)
            }
            (At::SizeEnd, b'\n') => {
                self.count = 0;
                Some(if self.size == 0 { At::Trailer } else { At::Payload })
            }
            (At::PayloadCr, b'\r') => Some(At::PayloadEnd),
            (At::PayloadEnd, b'\n') => Some(At::Size),
            (At::Trailer, b'\r') => Some(At::End),
            (At::Trailer | At::TrailerName, _) => {
                self.trailer(trailers_max)?;
                match byte {
                    b':' if self.at == At::TrailerName => Some(At::TrailerValue),
                    _ => head::is_name_byte(byte).then_some(At::TrailerName),
                }
            }
            (At::TrailerValue, b'\r') => Some(At::TrailerEnd),
            (At::TrailerValue, _) => {
                self.trailer(trailers_max)?;
                (!has_control(&[byte])).then_some(At::TrailerValue)
            }
            (At::TrailerEnd, b'\n') => Some(At::Trailer),
            (At::End, b'\n') => Some(At::Size),
            _ => None,
        }
    }

    fn trailer(&mut self, trailers_max: usize) -> Option<()> {
        self.count += 1;
        (self.count <= trailers_max).then_some(())
    }
}
