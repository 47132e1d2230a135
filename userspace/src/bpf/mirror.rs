//! One map, and what is in it, so that only differences are written.

use std::{collections::HashMap, hash::Hash};

use aya::{
    Pod,
    maps::{self, LpmTrie, Map, MapData, MapError, lpm_trie::Key},
};
use murmesh_common::NetworkKey;

use super::BpfError;
use crate::policy::compile::NetworkEntry;

/// A map that can be read and written by entry.
pub(super) trait Store<K, V> {
    fn entries(&self) -> Result<HashMap<K, V>, MapError>;
    fn put(&mut self, key: K, value: V) -> Result<(), MapError>;
    fn remove(&mut self, key: K) -> Result<(), MapError>;
}

impl<K: Pod + Eq + Hash, V: Pod> Store<K, V> for maps::HashMap<MapData, K, V> {
    fn entries(&self) -> Result<HashMap<K, V>, MapError> {
        self.iter().collect()
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
