//! The admin API's token. Nobody can print it: it has no `Display`, and its `Debug` says nothing.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use subtle::ConstantTimeEq as _;

/// Shorter ones can be guessed.
const LENGTH_MIN: usize = 16;
/// No token is longer; what is longer is another file.
const LENGTH_MAX: usize = 4096;

/// A secret that a request must carry as `Authorization: Bearer TOKEN`.
#[derive(Clone)]
pub struct Token(String);

/// Why a file holds no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(io::Error),
    /// Too short to be safe.
    #[error("the token has {0} characters: at least {LENGTH_MIN} are needed")]
    Short(usize),
    /// Too long to be one.
    #[error("more than {LENGTH_MAX} bytes: that is no token")]
    Long,
    /// It would not fit into a header.
    #[error("a token is one word of printable ASCII")]
    NotPlain,
}

impl Token {
    /// The token in `file`, without the white space around it.
    pub fn read(file: &Path) -> Result<Self, TokenError> {
        let mut bytes = Vec::new();
        let opened = File::open(file).map_err(TokenError::Unreadable)?;
        let read = opened.take(LENGTH_MAX as u64 + 1).read_to_end(&mut bytes);
        read.map_err(TokenError::Unreadable)?;
        if LENGTH_MAX < bytes.len() {
            return Err(TokenError::Long);
        }
        String::from_utf8(bytes).map_err(|_| TokenError::NotPlain)?.parse()
    }

    /// Whether `given` is this token; takes as long for a near miss as for a far one.
    pub fn is(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }

    /// The token itself: for the header of a request, and nothing else.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let token = text.trim();
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokenError::NotPlain);
        }
        if token.len() < LENGTH_MIN {
            return Err(TokenError::Short(token.len()));
        }
        Ok(Self(token.to_owned()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}
