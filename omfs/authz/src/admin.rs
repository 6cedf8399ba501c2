//! What a user may ask of this node's daemon.

use crate::process::Caller;

/// A request of the admin API that concerns more than a process of the caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// See nodes, load and status.
    Look,
    /// Bring all processes of this node home.
    Bring,
    /// Send all guests away.
    Expel,
    /// Change what the node allows: stay, lstay, block, quiet.
    ChangePolicy,
    /// Make join tokens.
    MakeTokens,
    /// See which join tokens still work.
    ListTokens,
    /// Make a join token useless.
    WithdrawTokens,
    /// Remove nodes from the cluster.
    RemoveNodes,
    /// Change what other nodes may reach.
    ChangeExports,
    /// Move a guest of another node, by the PID that it has at home.
    MoveGuest,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Look,
        Self::Bring,
        Self::Expel,
        Self::ChangePolicy,
        Self::MakeTokens,
        Self::ListTokens,
        Self::WithdrawTokens,
        Self::RemoveNodes,
        Self::ChangeExports,
        Self::MoveGuest,
    ];

    fn what(self) -> &'static str {
        match self {
            Self::Look => "look at the cluster",
            Self::Bring => "bring all processes home",
            Self::Expel => "expel guests",
            Self::ChangePolicy => "change what the node allows",
            Self::MakeTokens => "make join tokens",
            Self::ListTokens => "list join tokens",
            Self::WithdrawTokens => "withdraw join tokens",
            Self::RemoveNodes => "remove nodes from the cluster",
            Self::ChangeExports => "change what the node exports",
            Self::MoveGuest => "move guests of other nodes",
        }
    }
}

/// Only root may do it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("only root may {}", .0.what())]
pub struct RootOnly(pub Action);

/// Whether a user may do what concerns the whole node.
///
/// # Errors
/// [`RootOnly`].
pub fn may_ask(caller: Caller, action: Action) -> Result<(), RootOnly> {
    if caller.is_root() || action == Action::Look {
        return Ok(());
    }
    Err(RootOnly(action))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn only_root_changes_the_node(uid: u32, gid: u32) {
            for action in Action::ALL {
                let may = may_ask(Caller { uid, gid }, action).is_ok();
                prop_assert_eq!(may, uid == 0 || action == Action::Look);
            }
        }
    }
}
