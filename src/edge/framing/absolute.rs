//! A request whose target is a whole URI, as it goes on: with the path alone, and the host in `Host`
//! (RFC 9112, 3.2.2). Many servers answer 404 to the whole URI.

/// Where it is in the bytes that were read. Positions within the head count from its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::edge) struct Absolute {
    /// Where the head begins.
    pub(super) at: usize,
    pub(super) place: Place,
}

/// Where it is in the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The target's first byte.
    pub(super) target: usize,
    /// The host in the target.
    pub(super) authority: (usize, usize),
    pub(super) is_options: bool,
    pub(super) has_host: bool,
}

impl Absolute {
    /// Rewrites the head within `bytes`; by how many bytes they grow or shrink.
    pub(in crate::edge) fn to_origin(self, bytes: &mut Vec<u8>) -> isize {
        let before = bytes.len();
        let Place { target, authority: (begin, end), is_options, has_host } = self.place;
        let (target, begin, end) = (self.at + target, self.at + begin, self.at + end);
        if !has_host {
            // HTTP/1.0 alone may come without.
            let line =
                bytes[end..].iter().position(|byte| *byte == b'\n').map_or(end, |n| end + n + 1);
            let host = [b"Host: ", &bytes[begin..end], b"\r\n"].concat();
            bytes.splice(line..line, host);
        }
        let path: &[u8] = match bytes.get(end) {
            Some(b'/') => b"",
            Some(b' ') if is_options => b"*",
            _ => b"/",
        };
        bytes.splice(target..end, path.iter().copied());
        bytes.len().cast_signed() - before.cast_signed()
    }
}
