//! Which link something came from.

/// Tells links of one keeper apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PeerId(pub u64);
