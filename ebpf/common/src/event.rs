/// What happened to a listening socket.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerChange {
    /// `listen(2)` succeeded.
    Opened = 1,
    /// The socket left the LISTEN state: closed, or its last process died.
    Closed = 2,
}

/// Record of the `EVENTS` ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenerEvent {
    /// Kernel's cookie of the socket (`SO_COOKIE`): unique until reboot.
    pub cookie: u64,
    /// A [`ListenerChange`] as a number.
    pub change: u32,
    /// Always zero.
    pub padding: u32,
}

const _: () = assert!(size_of::<ListenerEvent>() == 16);

impl ListenerEvent {
    /// Reads one record of the ring buffer; `None` if it has another size or an unknown change.
    pub fn parse(bytes: &[u8]) -> Option<(ListenerChange, u64)> {
        let (cookie, rest) = bytes.split_first_chunk::<8>()?;
        let (change, padding) = rest.split_first_chunk::<4>()?;
        let change = match u32::from_ne_bytes(*change) {
            1 => ListenerChange::Opened,
            2 => ListenerChange::Closed,
            _ => return None,
        };
        (padding.len() == 4).then_some((change, u64::from_ne_bytes(*cookie)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_another_size_are_refused() {
        let mut bytes = [0; 16];
        bytes[0] = 7;
        bytes[8] = 2;
        assert_eq!(ListenerEvent::parse(&bytes), Some((ListenerChange::Closed, 7)));
        assert_eq!(ListenerEvent::parse(&bytes[..15]), None);
        bytes[8] = 3;
        assert_eq!(ListenerEvent::parse(&bytes), None);
    }
}
