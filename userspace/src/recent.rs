//! The end of a long sequence, within bounds of memory.

use std::collections::VecDeque;

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Items.
    pub count: usize,
    /// Bytes of all of them; one that is larger by itself is kept until the next.
    pub bytes: usize,
}

/// What was added last.
#[derive(Debug)]
pub struct Recent<T> {
    bounds: Bounds,
    /// With the bytes of each.
    items: VecDeque<(T, usize)>,
    bytes: usize,
}

impl<T> Recent<T> {
    /// Nothing yet.
    pub const fn new(bounds: Bounds) -> Self {
        Self { bounds, items: VecDeque::new(), bytes: 0 }
    }

    /// Adds an item of so many bytes, and lets go of the oldest that are beyond the bounds.
    pub fn push(&mut self, item: T, bytes: usize) {
        self.items.push_back((item, bytes));
        self.bytes += bytes;
        while self.is_too_much() {
            let Some((_, bytes)) = self.items.pop_front() else { return };
            self.bytes -= bytes;
        }
    }

    fn is_too_much(&self) -> bool {
        self.items.len() > self.bounds.count || self.bytes > self.bounds.bytes && self.items.len() > 1
    }

    /// The oldest that is kept.
    pub fn first(&self) -> Option<&T> {
        self.get(0)
    }

    /// The item so many places after the oldest.
    pub fn get(&self, place: usize) -> Option<&T> {
        self.items.get(place).map(|(item, _)| item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(recent: &Recent<u32>) -> Vec<u32> {
        (0..).map_while(|place| recent.get(place).copied()).collect()
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many_or_too_many_bytes() {
        let mut recent = Recent::new(Bounds { count: 3, bytes: 100 });
        (1..=4).for_each(|item| recent.push(item, 10));
        assert_eq!(kept(&recent), [2, 3, 4]);
        recent.push(5, 85);
        assert_eq!(kept(&recent), [4, 5]);
        recent.push(6, 200);
        assert_eq!(kept(&recent), [6], "the last one stays, whatever its size");
        recent.push(7, 100);
        assert_eq!((kept(&recent), recent.first()), (vec![7], Some(&7)));
    }
}
