use crate::{RuleNumber, SocketAddress};

/// What an event of the `VERDICT_EVENTS` ring buffer tells.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerdictKind {
    /// A connection, or a datagram, was refused with `EPERM`.
    Denied = 1,
    /// It was let through, and a rule that only reports would have refused it.
    DryRun = 2,
    /// A connection in clear from another host to a service of this one was refused.
    PlaintextRefused = 3,
    /// A connection in clear from another host to a service of this one was let in.
    Plaintext = 4,
    /// A connection to a named service that no instance serves was refused with `ECONNREFUSED`.
    Unavailable = 5,
}

impl VerdictKind {
    fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Denied),
            2 => Some(Self::DryRun),
            3 => Some(Self::PlaintextRefused),
            4 => Some(Self::Plaintext),
            5 => Some(Self::Unavailable),
            _ => None,
        }
    }
}

/// Record of the `VERDICT_EVENTS` ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerdictEvent {
    /// Nanoseconds since boot, time asleep included (`CLOCK_BOOTTIME`).
    pub time: u64,
    /// cgroup v2 id (inode number) of the caller; 0 where a connection comes from another host, as for all that is
    /// said of the caller.
    pub cgroup: u64,
    /// A [`VerdictKind`] as a number.
    pub kind: u32,
    /// The rule that speaks.
    pub rule: RuleNumber,
    /// Thread group of the caller.
    pub pid: u32,
    /// User of the caller.
    pub uid: u32,
    /// Name of the caller's thread, ended by zeros.
    pub command: [u8; 16],
    /// Where to.
    pub destination: SocketAddress,
    /// IP protocol number.
    pub protocol: u32,
    /// Where from, if from another host; else zero.
    pub origin: SocketAddress,
    /// Group of the caller.
    pub gid: u32,
}

const _: () = assert!(size_of::<VerdictEvent>() == 96);

impl VerdictEvent {
    /// Reads one record of the ring buffer; `None` if it has another size or an unknown kind.
    pub fn parse(bytes: &[u8]) -> Option<(VerdictKind, Self)> {
        let bytes: &[u8; size_of::<Self>()] = bytes.try_into().ok()?;
        // SAFETY: of the type's size, which has no padding, and every bit pattern is a value.
        let event = unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() };
        Some((VerdictKind::from_number(event.kind)?, event))
    }

    /// The name of the caller's thread; what is not text is left out.
    pub fn command(&self) -> &str {
        let end = self.command.iter().position(|byte| *byte == 0).unwrap_or(self.command.len());
        let name = &self.command[..end];
        match core::str::from_utf8(name) {
            Ok(name) => name,
            Err(error) => core::str::from_utf8(&name[..error.valid_up_to()]).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(event: VerdictEvent) -> Vec<u8> {
        // SAFETY: a type without padding, read as the bytes it is made of.
        unsafe { core::slice::from_raw_parts((&raw const event).cast::<u8>(), size_of::<VerdictEvent>()) }
            .to_vec()
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let event = VerdictEvent {
            time: 1,
            cgroup: 2,
            kind: VerdictKind::DryRun as u32,
            rule: 3,
            command: *b"nc\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            protocol: 6,
            ..VerdictEvent::default()
        };
        assert_eq!(VerdictEvent::parse(&bytes(event)), Some((VerdictKind::DryRun, event)));
        assert_eq!(event.command(), "nc");
    }

    #[test]
    fn records_of_another_size_or_kind_are_refused() {
        let event = VerdictEvent { kind: VerdictKind::Denied as u32, ..VerdictEvent::default() };
        assert!(VerdictEvent::parse(&bytes(event)).is_some());
        assert_eq!(VerdictEvent::parse(&bytes(event)[1..]), None);
        assert_eq!(VerdictEvent::parse(&bytes(VerdictEvent { kind: 9, ..event })), None);
    }

    #[test]
    fn a_name_that_fills_its_field_or_is_no_text_is_cut_off() {
        let named = |command: [u8; 16]| VerdictEvent { command, ..VerdictEvent::default() };
        assert_eq!(named([b'a'; 16]).command().len(), 16);
        let mut broken = *b"ab\xffcd\0\0\0\0\0\0\0\0\0\0\0";
        assert_eq!(named(broken).command(), "ab");
        broken[0] = 0xff;
        assert_eq!(named(broken).command(), "");
    }
}
