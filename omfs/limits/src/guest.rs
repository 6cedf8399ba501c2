//! What one guest may use of its host.

/// Least room to grow for a guest that came with more than its share.
const GROWTH_MIN_BYTES: u64 = 256 << 20;

/// Most memory of a guest that was announced with `announced_bytes`: its share, or half as much again
/// as it came with. Never more than the node has.
#[must_use]
pub fn memory_max(total_bytes: u64, announced_bytes: u64, share_percent: u32) -> u64 {
    let share = total_bytes / 100 * u64::from(share_percent.min(100));
    let growth = (announced_bytes / 2).max(GROWTH_MIN_BYTES);
    share
        .max(announced_bytes.saturating_add(growth))
        .min(total_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_small_guest_has_its_share_and_a_large_one_room_to_grow() {
        let near = |bytes: u64, wanted: u64| bytes.abs_diff(wanted) < 1 << 10;
        assert!(near(memory_max(16 * GIB, GIB, 50), 8 * GIB));
        assert!(near(memory_max(16 * GIB, 8 * GIB, 50), 12 * GIB));
        assert!(near(memory_max(16 * GIB, u64::MAX, 50), 16 * GIB));
        assert!(near(memory_max(GIB, 0, 1), GROWTH_MIN_BYTES));
    }

    proptest! {
        #[test]
        fn no_guest_may_have_more_than_the_node_has(total: u64, announced: u64, percent: u32) {
            prop_assert!(memory_max(total, announced, percent) <= total);
        }

        #[test]
        fn what_a_guest_came_with_it_may_have(total: u64, part in 0..=100u64, percent: u32) {
            let announced = total / 100 * part;
            prop_assert!(memory_max(total, announced, percent) >= announced);
        }
    }
}
