//! Record protection: RFC 8446 section 5.2, for the key that rustls negotiated. No input or output.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, NONCE_LEN, Nonce};
use rustls::{AlertDescription, ConnectionTrafficSecrets};

use super::key::Key;

/// Bytes of a record's header: type, version, length.
pub const HEADER: usize = 5;

/// Largest content of a record in bytes.
pub const MAX_PLAINTEXT: usize = 1 << 14;

/// What a record has beside its content: header, inner content type and tag.
pub const OVERHEAD: usize = HEADER + 1 + TAG;

const TAG: usize = 16;

/// RFC 8446 section 5.2: what may follow a header.
const MAX_CIPHERTEXT: usize = MAX_PLAINTEXT + 256;

/// Bytes of the longest record that the other side may send.
pub const MAX_RECORD: usize = HEADER + MAX_CIPHERTEXT;

/// Outer type and version of every protected record.
const APPLICATION_DATA: u8 = 23;
const LEGACY_VERSION: [u8; 2] = [3, 3];

/// What a record's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ContentType {
    /// An alert; the other side ends the connection.
    Alert = 21,
    /// A handshake message; after the handshake, a key update.
    Handshake = 22,
    /// Bytes of the tunnel.
    ApplicationData = APPLICATION_DATA,
}

/// Why bytes from the other side are no record of this session. The connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not a header of a protected record.
    #[error("a TLS record with type {0} and version {1:#06x}: not a protected record of TLS 1.3")]
    Header(u8, u16),
    /// Longer than the limit, or too short for a tag.
    #[error("a TLS record of {0} bytes: it must have 17 to 16640")]
    Length(usize),
    /// Its tag is wrong: changed on the way, or not from the other side.
    #[error("a TLS record that was not made by the other side of this session")]
    Forged,
    /// Its content has no type, or an unknown one.
    #[error("a TLS record without a known content type")]
    ContentType,
    /// Too many carry nothing of the tunnel: key updates, and records without content.
    #[error("too many TLS records carry nothing")]
    Barren,
    /// The other side gave the session up, and says why (RFC 8446 section 6.2).
    #[error("the other side ended the TLS session: {0:?}")]
    Alert(AlertDescription),
    /// The key cannot be used.
    #[error("the negotiated TLS key cannot be used")]
    Key,
}

impl RecordError {
    /// For the content of an alert: its level, which means nothing in TLS 1.3, and its description.
    pub fn alert(content: &[u8]) -> Self {
        match content {
            [_, description] => Self::Alert((*description).into()),
            _ => Self::ContentType,
        }
    }
}

/// The length of the whole record that begins with `header`.
///
/// # Errors
/// It is no header of a protected record, or the record is too long.
#[inline]
pub fn record_length(header: [u8; HEADER]) -> Result<usize, RecordError> {
    let [kind, major, minor, high, low] = header;
    if kind != APPLICATION_DATA || [major, minor] != LEGACY_VERSION {
        return Err(RecordError::Header(kind, u16::from_be_bytes([major, minor])));
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if (1 + TAG..=MAX_CIPHERTEXT).contains(&length) {
        Ok(HEADER + length)
    } else {
        Err(RecordError::Length(length))
    }
}

/// One direction's key, and the number of the next record.
struct Protection {
    key: Key,
    iv: [u8; NONCE_LEN],
    sequence: u64,
}

impl Protection {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, RecordError> {
        let (algorithm, secret, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(RecordError::Key),
        };
        let iv = iv.as_ref().try_into().map_err(|_| RecordError::Key)?;
        Ok(Self { key: Key::new(algorithm, secret), iv, sequence })
    }

    /// RFC 8446 section 5.3. A number is used once: it cannot wrap, because keys are replaced long before.
    #[inline]
    fn next_nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (byte, number) in nonce[NONCE_LEN - 8..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Protects what is sent.
pub struct Sealer(Protection);

impl Sealer {
    /// For the secrets that the key schedule gave, with the number of the next record.
    ///
    /// # Errors
    /// The key is unusable.
    pub fn new(secrets: (u64, ConnectionTrafficSecrets)) -> Result<Self, RecordError> {
        Protection::new(secrets).map(Self)
    }

    /// Makes a record of `record`, in place: [`HEADER`] bytes to be written, the content, and 17 bytes to be written.
    ///
    /// # Errors
    /// The content is longer than [`MAX_PLAINTEXT`] or there is no room for it.
    #[inline]
    pub fn seal(&mut self, kind: ContentType, record: &mut [u8]) -> Result<(), RecordError> {
        let length = record.len().checked_sub(HEADER).ok_or(RecordError::Length(record.len()))?;
        if !(1 + TAG..=MAX_PLAINTEXT + 1 + TAG).contains(&length) {
            return Err(RecordError::Length(length));
        }
        let [high, low] = (length as u16).to_be_bytes();
        let header = [APPLICATION_DATA, LEGACY_VERSION[0], LEGACY_VERSION[1], high, low];
        record[..HEADER].copy_from_slice(&header);
        let (content, tag) = record[HEADER..].split_at_mut(length - TAG);
        content[length - TAG - 1] = kind as u8;
        let nonce = self.0.next_nonce();
        let made = self.0.key.with(|key| key.seal_in_place_separate_tag(nonce, Aad::from(header), content));
        tag.copy_from_slice(made.map_err(|_| RecordError::Key)?.as_ref());
        Ok(())
    }

    /// The number of the next record: how many the key has sealed.
    #[inline]
    pub fn sequence(&self) -> u64 {
        self.0.sequence
    }
}

/// Checks and decrypts what arrives.
pub struct Opener(Protection);

impl Opener {
    /// For the secrets that the key schedule gave, with the number of the next record.
    ///
    /// # Errors
    /// The key is unusable.
    pub fn new(secrets: (u64, ConnectionTrafficSecrets)) -> Result<Self, RecordError> {
        Protection::new(secrets).map(Self)
    }

    /// How many records the key has opened.
    #[cfg(test)]
    pub fn sequence(&self) -> u64 {
        self.0.sequence
    }

    /// Decrypts a whole record in place. Returns what its content is and how many bytes, from [`HEADER`] on.
    ///
    /// # Errors
    /// It is not the next record of the other side.
    #[inline]
    pub fn open(&mut self, record: &mut [u8]) -> Result<(ContentType, usize), RecordError> {
        let (header, sealed) = record.split_first_chunk_mut::<HEADER>().ok_or(RecordError::Length(0))?;
        let nonce = self.0.next_nonce();
        let aad = Aad::from(*header);
        let length = self.0.key.with(|key| Ok(key.open_in_place(nonce, aad, sealed)?.len()));
        let inner = &sealed[..length.map_err(|_| RecordError::Forged)?];
        // Section 5.4: the type is the last byte that is not zero; zeros behind it are padding.
        let end = inner.iter().rposition(|byte| *byte != 0).ok_or(RecordError::ContentType)?;
        let kind = match inner[end] {
            21 => ContentType::Alert,
            22 => ContentType::Handshake,
            23 => ContentType::ApplicationData,
            _ => return Err(RecordError::ContentType),
        };
        if end > MAX_PLAINTEXT { Err(RecordError::Length(end)) } else { Ok((kind, end)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustls::crypto::cipher::{AeadKey, Iv};

    fn secrets() -> (u64, ConnectionTrafficSecrets) {
        (3, ConnectionTrafficSecrets::Chacha20Poly1305 { key: AeadKey::from([7; 32]), iv: Iv::from([9; 12]) })
    }

    fn pair() -> (Sealer, Opener) {
        (Sealer::new(secrets()).expect("a key"), Opener::new(secrets()).expect("a key"))
    }

    fn sealed(sealer: &mut Sealer, content: &[u8]) -> Vec<u8> {
        let mut record = vec![0; content.len() + OVERHEAD];
        record[HEADER..HEADER + content.len()].copy_from_slice(content);
        sealer.seal(ContentType::ApplicationData, &mut record).expect("room for the record");
        record
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_in_order_and_nothing_else_does(
            contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..5),
            flipped: prop::sample::Index,
        ) {
            let (mut sealer, mut opener) = pair();
            for content in &contents {
                let mut record = sealed(&mut sealer, content);
                let header = record[..HEADER].try_into().expect("five bytes");
                prop_assert_eq!(record_length(header), Ok(record.len()));
                prop_assert_eq!(opener.open(&mut record), Ok((ContentType::ApplicationData, content.len())));
                prop_assert_eq!(&record[HEADER..HEADER + content.len()], &content[..]);
            }
            let mut changed = sealed(&mut sealer, &contents[0]);
            let position = flipped.index(changed.len());
            changed[position] ^= 1;
            prop_assert_eq!(opener.open(&mut changed), Err(RecordError::Forged));
        }
    }

    #[test]
    fn a_record_cannot_be_repeated_or_left_out() {
        let (mut sealer, mut opener) = pair();
        let (first, mut second) = (sealed(&mut sealer, b"one"), sealed(&mut sealer, b"two"));
        let mut third = sealed(&mut sealer, b"three");
        assert!(opener.open(&mut first.clone()).is_ok());
        assert_eq!(opener.open(&mut first.clone()), Err(RecordError::Forged));
        let (_, mut opener) = pair();
        assert!(opener.open(&mut first.clone()).is_ok());
        assert_eq!(opener.open(&mut third), Err(RecordError::Forged));
        let (_, mut opener) = pair();
        assert_eq!(opener.open(&mut second), Err(RecordError::Forged));
    }

    /// Section 5.4.
    #[test]
    fn padding_is_dropped_and_a_record_of_nothing_else_is_refused() {
        for (inner, expected) in [
            ([b'x', 23, 0, 0], Ok((ContentType::ApplicationData, 1))),
            ([0, 0, 22, 0], Ok((ContentType::Handshake, 2))),
            ([b'x', b'y', b'z', 20], Err(RecordError::ContentType)),
            ([0; 4], Err(RecordError::ContentType)),
        ] {
            let (mut sealer, mut opener) = pair();
            let mut record = vec![APPLICATION_DATA, 3, 3, 0, (inner.len() + TAG) as u8];
            record.extend_from_slice(&inner);
            let (header, content) = record.split_at_mut(HEADER);
            let nonce = sealer.0.next_nonce();
            let aad = Aad::from(header);
            let tag = sealer.0.key.with(|key| key.seal_in_place_separate_tag(nonce, aad, content));
            record.extend_from_slice(tag.expect("a seal").as_ref());
            assert_eq!(opener.open(&mut record), expected);
        }
    }

    #[test]
    fn headers_out_of_bounds_are_refused() {
        assert_eq!(record_length([22, 3, 3, 0, 40]), Err(RecordError::Header(22, 0x0303)));
        assert_eq!(record_length([23, 3, 1, 0, 40]), Err(RecordError::Header(23, 0x0301)));
        assert_eq!(record_length([23, 3, 3, 0, 16]), Err(RecordError::Length(16)));
        assert_eq!(record_length([23, 3, 3, 0x41, 1]), Err(RecordError::Length(0x4101)));
        assert_eq!(record_length([23, 3, 3, 0x41, 0]), Ok(HEADER + MAX_CIPHERTEXT));
    }

    #[test]
    fn content_beyond_the_limit_is_not_sealed() {
        let (mut sealer, _) = pair();
        let mut record = vec![0; MAX_PLAINTEXT + OVERHEAD + 1];
        assert!(sealer.seal(ContentType::ApplicationData, &mut record).is_err());
        assert!(sealer.seal(ContentType::ApplicationData, &mut record[1..]).is_ok());
    }
}
