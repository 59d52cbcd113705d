//! Records: the unit that is encrypted, on data and control connections alike.
//!
//! On the wire a record is the length of its body (2 bytes, big-endian) and the body: at most [`RECORD`] bytes of text
//! and, encrypted, a tag. The nonce is the count of records in that direction, so a record that was dropped, repeated
//! or moved does not open.

use std::sync::Arc;

use snow::StatelessTransportState;

/// Most bytes of text in a record: Noise's longest message less its tag.
pub(super) const RECORD: usize = 65519;
/// Bytes of the length in front.
pub(super) const PREFIX: usize = 2;
/// Bytes of the authentication tag.
pub(super) const TAG: usize = 16;
/// Most bytes of a whole record on the wire.
pub(super) const WIRE: usize = PREFIX + RECORD + TAG;

/// What two ranks agreed on in a handshake; `None` sends data in the clear.
type Cipher = Option<Arc<StatelessTransportState>>;

/// Returns the two directions of a connection whose handshake has just ended.
pub(super) fn directions(cipher: StatelessTransportState) -> (Sealer, Opener) {
    let cipher = Some(Arc::new(cipher));
    (Sealer { cipher: cipher.clone(), nonce: 0 }, Opener { cipher, nonce: 0 })
}

/// Makes records.
pub(super) struct Sealer {
    cipher: Cipher,
    nonce: u64,
}

/// Opens records.
pub(super) struct Opener {
    cipher: Cipher,
    nonce: u64,
}

/// Returns the length of the body of the record that `wire` begins with, if so much has come.
pub(super) fn body_len(wire: &[u8]) -> Option<usize> {
    let prefix = wire.first_chunk::<PREFIX>()?;
    Some(u16::from_be_bytes(*prefix).into())
}

impl Sealer {
    /// The sender of records without encryption.
    pub(super) fn plain() -> Self {
        Self { cipher: None, nonce: 0 }
    }

    /// Writes `text`, at most [`RECORD`] bytes, as a record to `wire`, which has room for it; returns the record's
    /// length.
    pub(super) fn seal(&mut self, text: &[u8], wire: &mut [u8]) -> Result<usize, snow::Error> {
        let count = match &self.cipher {
            Some(cipher) => {
                cipher.write_message(self.nonce, text, wire.get_mut(PREFIX..).ok_or(snow::Error::Input)?)?
            }
            None => {
                wire.get_mut(PREFIX..PREFIX + text.len()).ok_or(snow::Error::Input)?.copy_from_slice(text);
                text.len()
            }
        };
        self.nonce += 1;
        let prefix = u16::try_from(count).map_err(|_| snow::Error::Input)?;
        wire[..PREFIX].copy_from_slice(&prefix.to_be_bytes());
        Ok(PREFIX + count)
    }
}

impl Opener {
    /// The receiver of records without encryption.
    pub(super) fn plain() -> Self {
        Self { cipher: None, nonce: 0 }
    }

    /// Opens a record's body into `text`, which has room for the body and so for its tag; returns the text's length.
    pub(super) fn open(&mut self, body: &[u8], text: &mut [u8]) -> Result<usize, snow::Error> {
        let count = match &self.cipher {
            Some(cipher) => cipher.read_message(self.nonce, body, text)?,
            None => {
                text.get_mut(..body.len()).ok_or(snow::Error::Input)?.copy_from_slice(body);
                body.len()
            }
        };
        self.nonce += 1;
        Ok(count)
    }
}
