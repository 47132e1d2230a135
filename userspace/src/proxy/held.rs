//! What an application has sent before the far agent has answered: should that refuse the stream, it has reached no
//! service, and another instance gets it.

use crate::tunnel::Payload;

/// Bytes that are kept. An application that sends more before there is an answer stays with its instance.
const MAX_HELD: usize = 64 * 1024;

/// Kept for as long as it is not known who gets it.
#[derive(Debug, Default)]
pub struct Held {
    bytes: Vec<u8>,
    /// The application has sent its end, behind them.
    ended: bool,
    /// There was more than is kept.
    overflown: bool,
}

impl Held {
    /// Keeps a copy of what is about to be sent.
    pub fn add(&mut self, payload: &Payload) {
        self.ended |= payload.is_last();
        if self.overflown || self.bytes.len() + payload.length() > MAX_HELD {
            *self = Self { overflown: true, ..Self::default() };
            return;
        }
        payload.pieces().for_each(|piece| self.bytes.extend_from_slice(piece));
    }

    /// Keeps that the application has sent its end.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// Gives the memory back: it is known who gets it.
    pub fn release(&mut self) {
        self.bytes = Vec::new();
    }

    /// Whether it is all that the application has sent.
    pub fn is_whole(&self) -> bool {
        !self.overflown
    }

    /// What another instance is to get first; `None` if the application has sent no bytes.
    pub fn payload(&self) -> Option<Payload> {
        (!self.bytes.is_empty()).then(|| Payload::copied(&self.bytes, self.ended))
    }

    /// Whether the application has sent anything, be it its end.
    pub fn is_some(&self) -> bool {
        self.ended || !self.bytes.is_empty()
    }

    /// Whether the application has sent its end.
    pub fn is_ended(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(lengths: &[usize]) -> Held {
        let mut held = Held::default();
        for length in lengths {
            held.add(&Payload::copied(&vec![7; *length], false));
        }
        held
    }

    #[test]
    fn what_is_held_is_sent_again_as_it_was() {
        let mut held = added(&[5, 30_000, 20_000]);
        held.end();
        let payload = held.payload().expect("bytes are held");
        assert!(held.is_whole() && payload.is_last());
        assert_eq!(payload.pieces().flatten().copied().collect::<Vec<_>>(), vec![7; 50_005]);
        assert!(added(&[]).payload().is_none());
    }

    #[test]
    fn more_than_is_kept_is_not_kept_at_all() {
        let held = added(&[MAX_HELD, 1]);
        assert!(!held.is_whole() && held.payload().is_none());
        assert!(added(&[MAX_HELD]).is_whole());
    }
}
