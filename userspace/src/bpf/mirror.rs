//! One map, and what is in it, so that only differences are written.

use std::{collections::HashMap, hash::Hash};

use aya::{
    Pod,
    maps::{self, LpmTrie, Map, MapData, MapError, lpm_trie::Key},
};
use murmesh_common::NetworkKey;

use super::BpfError;
use crate::policy::compile::NetworkEntry;

/// Entries of a map that are compared at once: some hundred microseconds.
const PART: usize = 1000;

/// A map that can be read and written by entry.
pub(super) trait Store<K, V> {
    fn entries(&self) -> Result<HashMap<K, V>, MapError>;
    fn look_up(&self, key: &K) -> Result<V, MapError>;
    fn put(&mut self, key: K, value: V) -> Result<(), MapError>;
    fn remove(&mut self, key: K) -> Result<(), MapError>;
}

impl<K: Pod + Eq + Hash, V: Pod> Store<K, V> for maps::HashMap<MapData, K, V> {
    fn entries(&self) -> Result<HashMap<K, V>, MapError> {
        self.iter().collect()
    }

    fn look_up(&self, key: &K) -> Result<V, MapError> {
        self.get(key, 0)
    }

    fn put(&mut self, key: K, value: V) -> Result<(), MapError> {
        self.insert(key, value, 0)
    }

    fn remove(&mut self, key: K) -> Result<(), MapError> {
        maps::HashMap::remove(self, &key)
    }
}

impl<V: Pod> Store<NetworkEntry, V> for LpmTrie<MapData, NetworkKey, V> {
    fn entries(&self) -> Result<HashMap<NetworkEntry, V>, MapError> {
        let entry = |entry: Result<(Key<NetworkKey>, V), MapError>| {
            let (key, value) = entry?;
            Ok(((key.prefix_len(), key.data()), value))
        };
        self.iter().map(entry).collect()
    }

    /// The longest prefix of what `key` says, which is the entry itself if that is there.
    fn look_up(&self, (length, key): &NetworkEntry) -> Result<V, MapError> {
        self.get(&Key::new(*length, *key), 0)
    }

    fn put(&mut self, (length, key): NetworkEntry, value: V) -> Result<(), MapError> {
        self.insert(&Key::new(length, key), value, 0)
    }

    fn remove(&mut self, (length, key): NetworkEntry) -> Result<(), MapError> {
        LpmTrie::remove(self, &Key::new(length, key))
    }
}

/// A map by its name.
pub(super) struct Named<M> {
    name: &'static str,
    map: M,
}

impl<M: TryFrom<Map, Error = MapError>> Named<M> {
    pub fn new(name: &'static str, map: Map) -> Result<Self, BpfError> {
        Ok(Self { name, map: M::try_from(map).map_err(BpfError::map(name))? })
    }
}

impl<M> Named<M> {
    pub fn entries<K, V>(&self) -> Result<HashMap<K, V>, BpfError>
    where
        M: Store<K, V>,
    {
        self.map.entries().map_err(BpfError::map(self.name))
    }

    /// Whether the kernel holds something else than `present`. Of a map with more than `PART` entries only a part is
    /// looked at, each `turn` another, and what is there beside `present` is not seen.
    pub fn differs<K: Copy + Eq + Hash, V: PartialEq>(
        &self,
        present: &HashMap<K, V>,
        turn: usize,
    ) -> Result<bool, BpfError>
    where
        M: Store<K, V>,
    {
        if present.len() <= PART {
            return Ok(self.entries()? != *present);
        }
        let parts = present.len().div_ceil(PART);
        for (key, value) in present.iter().skip(turn % parts * PART).take(PART) {
            match self.map.look_up(key) {
                Ok(found) if found == *value => {}
                Ok(_) | Err(MapError::KeyNotFound) => return Ok(true),
                Err(error) => return Err(BpfError::map(self.name)(error)),
            }
        }
        Ok(false)
    }

    /// `None` removes the entry; that it is gone already does not matter.
    pub fn write<K, V>(&mut self, key: K, value: Option<V>) -> Result<(), BpfError>
    where
        M: Store<K, V>,
    {
        let written = match value {
            Some(value) => self.map.put(key, value),
            None => match self.map.remove(key) {
                Err(MapError::KeyNotFound) => Ok(()),
                result => result,
            },
        };
        written.map_err(BpfError::map(self.name))
    }

    pub fn map(&mut self) -> &mut M {
        &mut self.map
    }
}
