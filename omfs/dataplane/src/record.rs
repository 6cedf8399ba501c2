//! TLS 1.3 records after the handshake (RFC 8446 section 5), each direction on its own.
//!
//! The cipher is rustls' own; here are only the record framing, the sequence numbers and the key
//! updates that keep each key below its limit of records.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, MessageEncrypter, OutboundChunks,
    OutboundPlainMessage,
};
use rustls::{ConnectionTrafficSecrets, ContentType, ProtocolVersion, Tls13CipherSuite};

/// Most plaintext in one record.
pub(super) const RECORD_PLAIN_MAX: usize = 16 << 10;
/// Bytes before a record's ciphertext: type, version, length.
pub(super) const RECORD_HEADER_BYTES: usize = 5;
/// Most ciphertext in one record.
pub(super) const RECORD_CIPHER_MAX: usize = RECORD_PLAIN_MAX + 256;
/// KeyUpdate(update_not_requested) as a handshake message.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// Derives the next traffic keys of a connection.
pub(super) trait Rekey: Send {
    fn next_sending(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error>;
    fn next_receiving(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error>;
}

type SharedRekey = Arc<Mutex<Box<dyn Rekey>>>;

fn tls(error: rustls::Error) -> io::Error {
    omfs_pki::PkiError::from(error).into()
}

fn key_and_iv(secrets: ConnectionTrafficSecrets) -> io::Result<(AeadKey, Iv)> {
    use ConnectionTrafficSecrets as S;
    match secrets {
        S::Aes128Gcm { key, iv } | S::Aes256Gcm { key, iv } | S::Chacha20Poly1305 { key, iv } => {
            Ok((key, iv))
        }
        _ => Err(io::Error::other("a cipher suite that was never offered")),
    }
}

/// Makes both directions of a connection from a finished handshake.
pub(super) fn split(
    suite: &'static Tls13CipherSuite,
    secrets: rustls::ExtractedSecrets,
    rekey: Box<dyn Rekey>,
) -> io::Result<(Sealer, Opener)> {
    let rekey = Arc::new(Mutex::new(rekey));
    let (sequence, secrets_out) = secrets.tx;
    let (key, iv) = key_and_iv(secrets_out)?;
    let sealer = Sealer {
        cipher: suite.aead_alg.encrypter(key, iv),
        sequence,
        // Leaves room for the KeyUpdate itself.
        limit: suite.common.confidentiality_limit.saturating_sub(1 << 10),
        suite,
        rekey: Arc::clone(&rekey),
    };
    let (sequence, secrets_in) = secrets.rx;
    let (key, iv) = key_and_iv(secrets_in)?;
    let opener = Opener {
        cipher: suite.aead_alg.decrypter(key, iv),
        sequence,
        suite,
        rekey,
    };
    Ok((sealer, opener))
}

/// The sending direction.
pub(super) struct Sealer {
    cipher: Box<dyn MessageEncrypter>,
    sequence: u64,
    limit: u64,
    suite: &'static Tls13CipherSuite,
    rekey: SharedRekey,
}

impl Sealer {
    /// Seals one record of at most [`RECORD_PLAIN_MAX`] bytes; appends it, or a key update and it.
    pub(super) fn seal(
        &mut self,
        plain: OutboundChunks<'_>,
        records: &mut Vec<Vec<u8>>,
    ) -> io::Result<()> {
        if self.sequence >= self.limit {
            let update = OutboundChunks::Single(&KEY_UPDATE);
            records.push(self.seal_as(ContentType::Handshake, update)?);
            self.next_key()?;
        }
        records.push(self.seal_as(ContentType::ApplicationData, plain)?);
        Ok(())
    }

    fn seal_as(&mut self, typ: ContentType, payload: OutboundChunks<'_>) -> io::Result<Vec<u8>> {
        let plain = OutboundPlainMessage {
            typ,
            version: ProtocolVersion::TLSv1_3,
            payload,
        };
        let sealed = self.cipher.encrypt(plain, self.sequence).map_err(tls)?;
        self.sequence += 1;
        Ok(sealed.encode())
    }

    fn next_key(&mut self) -> io::Result<()> {
        let mut rekey = self.rekey.lock().unwrap_or_else(PoisonError::into_inner);
        let (sequence, secrets) = rekey.next_sending().map_err(tls)?;
        let (key, iv) = key_and_iv(secrets)?;
        self.cipher = self.suite.aead_alg.encrypter(key, iv);
        self.sequence = sequence;
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }
}

/// The receiving direction.
pub(super) struct Opener {
    cipher: Box<dyn MessageDecrypter>,
    sequence: u64,
    suite: &'static Tls13CipherSuite,
    rekey: SharedRekey,
}

/// What one record held.
pub(super) enum Opened {
    /// So many bytes of application data, at the front of the ciphertext's place.
    Data(usize),
    /// Something between the TLS stacks; nothing for the reader.
    Nothing,
    /// The peer will send no more.
    Closed,
}

/// The length of the ciphertext that a record header announces.
///
/// # Errors
/// `InvalidData`: this is no protected TLS record.
pub(super) fn ciphertext_bytes(header: [u8; RECORD_HEADER_BYTES]) -> io::Result<usize> {
    let [typ, major, _minor, high, low] = header;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if typ != u8::from(ContentType::ApplicationData) || major != 3 || length > RECORD_CIPHER_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no TLS record"));
    }
    Ok(length)
}

impl Opener {
    /// Opens one record in place.
    ///
    /// # Errors
    /// `InvalidData` when it was not sealed by the peer with the current key; the peer's alert.
    pub(super) fn open(&mut self, ciphertext: &mut [u8]) -> io::Result<Opened> {
        let (application, version) = (ContentType::ApplicationData, ProtocolVersion::TLSv1_2);
        let message = InboundOpaqueMessage::new(application, version, ciphertext);
        let plain = self
            .cipher
            .decrypt(message, self.sequence)
            .map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidData, format!("TLS record: {error}"))
            })?;
        self.sequence += 1;
        match plain.typ {
            ContentType::ApplicationData => Ok(Opened::Data(plain.payload.len())),
            ContentType::Alert => alert(plain.payload),
            ContentType::Handshake => {
                let update = plain.payload.first() == Some(&KEY_UPDATE[0]);
                if update {
                    self.next_key()
                } else {
                    Ok(Opened::Nothing)
                }
            }
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "unexpected TLS record",
            )),
        }
    }

    fn next_key(&mut self) -> io::Result<Opened> {
        let mut rekey = self.rekey.lock().unwrap_or_else(PoisonError::into_inner);
        let (sequence, secrets) = rekey.next_receiving().map_err(tls)?;
        let (key, iv) = key_and_iv(secrets)?;
        self.cipher = self.suite.aead_alg.decrypter(key, iv);
        self.sequence = sequence;
        Ok(Opened::Nothing)
    }
}

fn alert(payload: &[u8]) -> io::Result<Opened> {
    const CLOSE_NOTIFY: u8 = 0;
    match payload {
        [_, CLOSE_NOTIFY] => Ok(Opened::Closed),
        [_, code] => Err(tls(rustls::Error::AlertReceived((*code).into()))),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "malformed TLS alert",
        )),
    }
}
