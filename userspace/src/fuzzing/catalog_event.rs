use prost::Message;

use crate::{api::v1, catalog::Catalog};

/// A server's watch stream, as the agent takes it: changes one after the other, each after its length in two bytes. One
/// that is refused changes nothing, and the catalog that comes out of them survives being written and read.
pub fn catalog_event(mut input: &[u8]) {
    let mut catalog = Catalog::default();
    while let Some((length, rest)) = input.split_first_chunk() {
        let (event, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
        input = rest;
        let Ok(event) = v1::CatalogEvent::decode(event) else { continue };
        let before = catalog.clone();
        if catalog.apply(event).is_err() {
            assert_eq!(catalog, before);
        }
    }
    let read = Catalog::try_from(v1::Snapshot::from(&catalog)).expect("what was taken is taken again");
    assert_eq!(Catalog { revision: catalog.revision, ..read }, catalog);
}
