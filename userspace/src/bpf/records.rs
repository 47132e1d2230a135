//! The records on intercepted sockets: where a client wanted to go, and who a service is to see.

use std::{cell::RefCell, net::SocketAddr, os::fd::AsRawFd};

use aya::maps::{MapData, MapError, SkStorage};
use murmesh_common::{ConnectionRecord, Role};

use super::{BpfError, Pins, programs::open_pinned};

/// One worker's view of the `CONNECTIONS` map.
pub struct Records(RefCell<SkStorage<MapData, ConnectionRecord>>);

impl Records {
    /// Opens the map that is pinned below `pins`.
    ///
    /// # Errors
    /// It is not pinned there.
    pub fn open(pins: &Pins) -> Result<Self, BpfError> {
        let map = open_pinned(pins, "CONNECTIONS")?;
        Ok(Self(RefCell::new(SkStorage::try_from(map).map_err(BpfError::map("CONNECTIONS"))?)))
    }

    /// The record that came with an accepted socket. `None` when there is none: the connection did not come
    /// through our hooks, or its record was lost, and nobody can say where it should go.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn of(&self, accepted: &impl AsRawFd) -> Result<Option<ConnectionRecord>, BpfError> {
        match self.0.borrow().get(accepted, 0) {
            Ok(record) => Ok((record.role == Role::Intercepted as u32).then_some(record)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(BpfError::map("CONNECTIONS")(error)),
        }
    }

    /// Makes the service that `socket` is about to dial see `client` as its peer.
    ///
    /// # Errors
    /// The kernel has no memory for the record.
    pub fn announce(&self, socket: &impl AsRawFd, client: SocketAddr) -> Result<(), BpfError> {
        let record = ConnectionRecord::dialling(client.into());
        self.0.borrow_mut().insert(socket, record, 0).map_err(BpfError::map("CONNECTIONS"))
    }
}
