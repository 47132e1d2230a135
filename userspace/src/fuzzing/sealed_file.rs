use std::{path::Path, sync::LazyLock};

use crate::{
    control::Cache,
    identity::{Identity, fixture},
    seal::{SealKey, Sealer, key_of},
};

const NAME: &str = "a record";

/// A host, and what seals its files.
static HOST: LazyLock<Identity> = LazyLock::new(|| fixture::host(&fixture::authority(), "fcc00"));

/// A sealed file that somebody changed does not open. One that was sealed by the right key, with whatever in it, makes a
/// catalog and certificates or an error.
pub fn sealed_file(input: &[u8]) {
    let _ = key_of(input);
    assert!(sealer().open(NAME, input).is_err(), "it was not sealed");
    let sealed = sealer().seal(NAME, input).expect("randomness");
    assert_eq!(sealer().open(NAME, &sealed).ok().as_ref().map(|opened| opened.as_slice()), Some(input));
    if let Some(position) = input.first() {
        let mut changed = sealed;
        let position = usize::from(*position) % changed.len();
        changed[position] ^= 1;
        assert!(sealer().open(NAME, &changed).is_err());
    }
    let cache = Cache::new(Path::new("/nonexistent"), sealer(), &HOST.id);
    let _ = cache.open(&cache.seal(input).expect("randomness"), &HOST);
}

fn sealer() -> Sealer {
    Sealer::new(&SealKey::from_bytes([7; 32])).expect("a key")
}
