//! What a member may say of itself, and of others.
//!
//! A member describes only itself, under the id and the name of its certificate. What it says of
//! another member is a hint at most: the node asks that member itself before it believes anything.

use std::fmt;

/// How far ahead of this node's clock a member's epoch may be: clocks of a cluster differ by less.
pub const EPOCH_AHEAD_MAX_MS: u64 = 24 * 3600 * 1000;

/// The id and the name in a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Certified<'a> {
    /// The node's id.
    pub id: u32,
    /// The node's name.
    pub name: &'a str,
}

/// One life of a node's daemon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Life {
    /// The node's id.
    pub id: u32,
    /// The start of the daemon, in milliseconds since 1970.
    pub epoch: u64,
}

/// Why a member's description of itself is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The description is of another node.
    OtherNode,
    /// The name is not the certificate's.
    OtherName,
    /// The epoch lies in the future.
    FutureEpoch,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherNode => "the id of another node",
            Self::OtherName => "a name that is not in its certificate",
            Self::FutureEpoch => "an epoch in the future: compare the machines' clocks",
        })
    }
}

/// Whether a member with this certificate may describe itself as `life` with the name `name`.
///
/// # Errors
/// The reason of the refusal.
pub fn may_describe_itself(
    certified: Certified<'_>,
    life: Life,
    name: &str,
    now_ms: u64,
) -> Result<(), Refusal> {
    if life.id != certified.id {
        return Err(Refusal::OtherNode);
    }
    if name != certified.name {
        return Err(Refusal::OtherName);
    }
    if life.epoch > now_ms.saturating_add(EPOCH_AHEAD_MAX_MS) {
        return Err(Refusal::FutureEpoch);
    }
    Ok(())
}

/// The state that a member claims for some life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// It answers.
    Alive,
    /// It has not answered.
    Suspect,
    /// It has left, or has been declared dead.
    Dead,
}

/// What a node does with a claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing.
    Ignore,
    /// Believes it: it is the teller's own matter, or this node's.
    Believe,
    /// Asks the member that it is about; only its silence confirms the claim.
    Ask,
    /// Greets a member of which only the id and a possible address are known.
    Greet,
}

/// What a node makes of a claim by `teller` about `about`. `known` is the epoch under which the
/// member that it is about has described itself to this node.
#[must_use]
pub fn judge(teller: Life, myself: Life, about: Life, known: Option<u64>, claim: Claim) -> Verdict {
    if about.id == myself.id {
        // A suspicion can be refuted only by the one that it is about.
        return believe_if(about.epoch == myself.epoch && claim != Claim::Alive);
    }
    if about.id == teller.id {
        // Being alive is shown by talking, so what is left to say is farewell.
        return believe_if(about == teller && claim == Claim::Dead);
    }
    match (known, claim) {
        (None, Claim::Dead) => Verdict::Ignore,
        (None, _) => Verdict::Greet,
        (Some(epoch), _) if about.epoch < epoch => Verdict::Ignore,
        (Some(epoch), Claim::Alive) if about.epoch == epoch => Verdict::Ignore,
        (Some(_), _) => Verdict::Ask,
    }
}

fn believe_if(own: bool) -> Verdict {
    if own {
        Verdict::Believe
    } else {
        Verdict::Ignore
    }
}

/// The incarnation under which a suspicion of this node is heard. Only this node raises it, so a
/// higher one is made up, and would use up the numbers there are.
#[must_use]
pub fn suspected_incarnation(told: u16, own: u16) -> u16 {
    told.min(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn life() -> impl Strategy<Value = Life> {
        // Few values, so that ids and epochs meet.
        (1..5_u32, prop_oneof![0..4_u64, Just(u64::MAX)]).prop_map(|(id, epoch)| Life { id, epoch })
    }

    fn claim() -> impl Strategy<Value = Claim> {
        prop_oneof![Just(Claim::Alive), Just(Claim::Suspect), Just(Claim::Dead)]
    }

    proptest! {
        #[test]
        fn nobody_is_believed_about_a_third(
            teller in life(), myself in life(), about in life(),
            known: Option<u64>, claim in claim(),
        ) {
            let verdict = judge(teller, myself, about, known, claim);
            if about.id != teller.id && about.id != myself.id {
                prop_assert_ne!(verdict, Verdict::Believe);
            }
            // Whoever is asked or greeted is neither the teller nor this node.
            if matches!(verdict, Verdict::Ask | Verdict::Greet) {
                prop_assert!(about.id != teller.id && about.id != myself.id);
            }
        }

        #[test]
        fn other_lives_of_this_node_are_ignored(
            teller in life(), myself in life(), epoch: u64, known: Option<u64>, claim in claim(),
        ) {
            let about = Life { id: myself.id, epoch };
            let verdict = judge(teller, myself, about, known, claim);
            if epoch != myself.epoch {
                prop_assert_eq!(verdict, Verdict::Ignore);
            }
        }

        #[test]
        fn a_description_is_the_certificates_and_not_of_the_future(
            id in 1..4_u32, name in "[ab]", life in life(), said in "[ab]", now in 0..10_u64,
        ) {
            let allowed = may_describe_itself(Certified { id, name: &name }, life, &said, now);
            let due = life.id == id && said == name && life.epoch <= now + EPOCH_AHEAD_MAX_MS;
            prop_assert_eq!(allowed.is_ok(), due);
        }

        #[test]
        fn a_suspicion_never_raises_the_incarnation(told: u16, own: u16) {
            prop_assert!(suspected_incarnation(told, own) <= own);
        }
    }

    #[test]
    fn what_is_said_of_oneself_is_believed() {
        let (teller, myself) = (Life { id: 2, epoch: 7 }, Life { id: 3, epoch: 9 });
        let by = |about, claim| judge(teller, myself, about, Some(7), claim);
        assert_eq!(by(teller, Claim::Dead), Verdict::Believe);
        assert_eq!(by(myself, Claim::Suspect), Verdict::Believe);
        assert_eq!(by(Life { id: 2, epoch: 8 }, Claim::Dead), Verdict::Ignore);
        assert_eq!(by(Life { id: 1, epoch: 7 }, Claim::Dead), Verdict::Ask);
        assert_eq!(by(Life { id: 1, epoch: 6 }, Claim::Dead), Verdict::Ignore);
        assert_eq!(by(Life { id: 1, epoch: 7 }, Claim::Alive), Verdict::Ignore);
    }
}
