//! DNS updates (RFC 2136) signed with TSIG (RFC 8945), over TCP: one connection, one message, one
//! signed answer.

use std::{
    fmt, fs,
    net::SocketAddr,
    str::FromStr,
    time::{Duration, SystemTime},
};

use hickory_proto::{
    op::{Message, ResponseCode, update_message},
    rr::{
        Name, RData, Record as DnsRecord, RecordSet, TSigner, rdata::TXT,
        rdata::tsig::TsigAlgorithm,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Action, Error, Record, Unusable};
use crate::config::{DnsUpdate, TsigWord};

/// How far the server's clock may be from ours, in seconds: what everybody uses.
const FUDGE: u16 = 300;
/// The record is there for a minute or two.
const TTL: u32 = 30;

/// Sends updates to one zone's primary server.
pub(super) struct Updates {
    server: SocketAddr,
    zone: Name,
    signer: TSigner,
}

impl Updates {
    pub(super) fn new(config: &DnsUpdate) -> Result<Self, Unusable> {
        let text = fs::read_to_string(&config.key_file).map_err(Unusable::NoKey)?;
        let key = data_encoding::BASE64.decode(text.trim().as_bytes());
        let key = key.ok().filter(|key| !key.is_empty()).ok_or(Unusable::BadKey)?;
        let algorithm = match config.algorithm {
            TsigWord::HmacSha256 => TsigAlgorithm::HmacSha256,
            TsigWord::HmacSha384 => TsigAlgorithm::HmacSha384,
            TsigWord::HmacSha512 => TsigAlgorithm::HmacSha512,
        };
        let name = absolute(&config.key_name).map_err(Unusable::BadName)?;
        let signer = TSigner::new(key, algorithm, name, FUDGE).map_err(|_| Unusable::BadKey)?;
        let zone = absolute(&config.zone).map_err(Unusable::BadName)?;
        Ok(Self { server: config.server, zone, signer })
    }

    pub(super) async fn send(&self, action: Action, record: &Record) -> Result<(), Error> {
        let mut message = self.message(action, record)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or(Duration::ZERO).as_secs();
        let verifier = message.finalize(&self.signer, now).map_err(Error::Answer)?;
        let bytes = message.to_vec().map_err(Error::Answer)?;
        let answer = self.ask(&bytes).await?;
        let answer = match verifier {
            Some(mut verifier) => verifier.verify(&answer).map_err(Error::Answer)?,
            None => return Err(Error::Wire(std::io::ErrorKind::PermissionDenied.into())),
        };
        match answer.response_code {
            ResponseCode::NoError => Ok(()),
            code => Err(Error::Refused(code)),
        }
    }

    fn message(&self, action: Action, record: &Record) -> Result<Message, Error> {
        let name = absolute(&record.name).map_err(Error::Answer)?;
        if !self.zone.zone_of(&name) {
            return Err(Error::OtherZone(record.name.clone()));
        }
        let text = RData::TXT(TXT::new(vec![record.value.clone()]));
        let set = RecordSet::from(DnsRecord::from_rdata(name, TTL, text));
        Ok(match action {
            Action::Set => update_message::append(set, self.zone.clone(), false, false),
            Action::Clear => update_message::delete_by_rdata(set, self.zone.clone(), false),
        })
    }

    async fn ask(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let mut stream = TcpStream::connect(self.server).await?;
        let length = u16::try_from(message.len()).map_err(|_| std::io::ErrorKind::InvalidInput);
        let length = length.map_err(std::io::Error::from)?;
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(message);
        stream.write_all(&framed).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }
}

fn absolute(name: &str) -> Result<Name, hickory_proto::ProtoError> {
    let mut name = Name::from_str(name)?;
    name.set_fqdn(true);
    Ok(name)
}

impl fmt::Debug for Updates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Updates").field("server", &self.server).finish_non_exhaustive()
    }
}
