//! The task that owns the detector: feeds it packets and timers, carries out what it wants.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use foca::{
    AccumulatingRuntime, Codec as _, Foca, Member as Update, NoCustomBroadcast, OwnedNotification,
    State, Timer,
};
use proto::ids::NodeId;
use rand_foca::SeedableRng;
use rand_foca::rngs::SmallRng;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::doubts::{Allowance, Doubts, Finding};
use super::filter::{self, Facts, Filtered};
use super::member::{self, Codec, Member};
use super::{Input, Received, Transport, timing};
use crate::directory::Directory;
use omfs_service::peers::{Liveness, Peer, PeerDirectory};

/// How often suspicions are copied to the directory and unknown nodes greeted.
const TICK: Duration = Duration::from_millis(250);
/// How long nodes of an earlier life count as suspect before they count as dead.
const GREETING_GRACE: Duration = Duration::from_millis(1500);
/// Nodes greeted per tick.
const GREETINGS_MAX: usize = 4;
/// How often one member may tell this node that it has been declared dead: at once after an
/// outage, and then this often. Each time this node begins anew.
const DEATHS_TOLD: (u32, Duration) = (4, Duration::from_secs(5));
/// Members known by hearsay are greeted this often.
const HEARSAY_GREETED: (u32, Duration) = (1, Duration::from_secs(2));
/// A timer that fires this late means that this node had no CPU: answers may well be waiting in
/// its sockets, so it is not the others who were silent.
const STARVED: Duration = Duration::from_millis(150);
/// The most that one starvation defers timers.
const DEFER_MAX: Duration = Duration::from_millis(600);

struct Pending {
    due: Instant,
    sequence: u64,
    timer: Timer<Member>,
}

impl PartialEq for Pending {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}
impl Eq for Pending {}
impl PartialOrd for Pending {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Pending {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.sequence).cmp(&(other.due, other.sequence))
    }
}

pub(super) struct Driver {
    foca: Foca<Member, Codec, SmallRng, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Member>,
    timers: BinaryHeap<Reverse<Pending>>,
    sequence: u64,
    directory: Arc<Directory>,
    transport: Arc<dyn Transport>,
    started: Instant,
    greet_from: usize,
    reborn: Option<Member>,
    /// Members as they described themselves.
    known: HashMap<NodeId, Member>,
    doubts: Doubts,
    deaths_told: Allowance,
    hearsay: Allowance,
    /// The incarnation that this node has told others.
    incarnation: u16,
}

impl Driver {
    pub(super) fn new(
        myself: Member,
        directory: Arc<Directory>,
        transport: Arc<dyn Transport>,
    ) -> Self {
        let random = SmallRng::seed_from_u64(rand::random());
        Self {
            foca: Foca::new(myself, timing(), random, Codec),
            runtime: AccumulatingRuntime::new(),
            timers: BinaryHeap::new(),
            sequence: 0,
            directory,
            transport,
            started: Instant::now(),
            greet_from: 0,
            reborn: None,
            known: HashMap::new(),
            doubts: Doubts::default(),
            deaths_told: Allowance::new(DEATHS_TOLD.0, DEATHS_TOLD.1),
            hearsay: Allowance::new(HEARSAY_GREETED.0, HEARSAY_GREETED.1),
            incarnation: 0,
        }
    }

    /// Runs until the [`Swim`](super::Swim) handle is gone or the node has left.
    pub(super) async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.timers.peek().map(|pending| pending.0.due);
            let timer = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // What has arrived is heard before anybody is declared silent.
                biased;
                input = inputs.recv() => match input {
                    Some(Input::Packet(received)) => self.packet(received),
                    Some(Input::Leave(done)) => {
                        self.leave();
                        let _ = done.send(());
                        return;
                    }
                    None => return,
                },
                () = timer => self.timer(),
                _ = tick.tick() => self.tick(),
            }
        }
    }

    fn packet(&mut self, received: Received) {
        let from = received.from.node;
        match self.filter(&received) {
            Ok(filtered) => self.take(from, filtered),
            Err(error) => tracing::debug!("node {from} sent {error}"),
        }
        let mut answers = Vec::new();
        let mut collect = |to: NodeId, packet: &Bytes| {
            let wanted = received.answer.is_some() && to == from;
            if wanted {
                answers.push(packet.clone());
            }
            wanted
        };
        self.carry_out_but(&mut collect);
        if let Some(answer) = received.answer {
            let _ = answer.send(answers);
        }
    }

    fn filter(&self, received: &Received) -> Result<Filtered, filter::Dropped> {
        let facts = Facts {
            myself: self.foca.identity(),
            incarnation: self.incarnation,
            known: &self.known,
            now_ms: now_ms(),
        };
        filter::filter(&received.from, &received.packet, &facts)
    }

    fn take(&mut self, from: NodeId, filtered: Filtered) {
        let now = Instant::now();
        if filtered.declares_us_dead && !self.deaths_told.take(from, now) {
            tracing::debug!("node {from} declares this node dead too often");
            return;
        }
        self.doubts.heard(from);
        if let Err(error) = self.foca.handle_data(&filtered.packet, &mut self.runtime) {
            tracing::debug!("membership packet: {error}");
        }
        for (node, dead) in filtered.ask {
            if matches!(
                self.liveness(node),
                Some(Liveness::Alive | Liveness::Suspect)
            ) {
                self.doubts.claim(node, dead, now);
                self.ask(node, now);
            }
        }
        self.conclude(now);
        for stranger in filtered.greet {
            self.greet_hearsay(&stranger, now);
        }
    }

    /// Asks a doubtful member, at most once in a while.
    fn ask(&mut self, node: NodeId, now: Instant) {
        if self.doubts.is_due(node, now) {
            self.probe(node);
        }
    }

    /// Pings a member beyond the detector's own schedule. One that is suspected is told so, and so
    /// can refute it.
    fn probe(&self, node: NodeId) {
        let Some(member) = self.member(node) else {
            return;
        };
        let suspicion = (member.state() == State::Suspect).then(|| member.clone());
        match member::ping(self.foca.identity(), member.id(), suspicion.as_slice()) {
            Ok(packet) => self.transport.send(member.id(), packet),
            Err(error) => tracing::debug!("membership packet: {error}"),
        }
    }

    /// Somebody speaks of a member that has not described itself: it is greeted where it is said to
    /// be. If it is there, it answers under its own certificate.
    fn greet_hearsay(&mut self, stranger: &Member, now: Instant) {
        if !self.hearsay.take(stranger.id, now) {
            return;
        }
        self.carry_out();
        let first = Member {
            epoch: 0,
            ..stranger.clone()
        };
        let _ = self.foca.announce(first, &mut self.runtime);
        while let Some((to, packet)) = self.runtime.to_send() {
            self.transport.greet(&to, packet);
        }
    }

    /// Believes of a member what its silence confirms.
    fn conclude(&mut self, now: Instant) {
        for node in self.doubts.nodes() {
            self.ask(node, now);
        }
        for (node, finding) in self.doubts.findings(now) {
            let Some(member) = self.member(node).cloned() else {
                continue;
            };
            let state = match finding {
                Finding::Silent => State::Suspect,
                Finding::Dead => State::Down,
            };
            let update = Update::new(member.id().clone(), member.incarnation(), state);
            let applied = self
                .foca
                .apply_many(std::iter::once(update), true, &mut self.runtime);
            if let Err(error) = applied {
                tracing::debug!("membership: {error}");
            }
        }
    }

    fn timer(&mut self) {
        let Some(Reverse(next)) = self.timers.pop() else {
            return;
        };
        let late = Instant::now().saturating_duration_since(next.due);
        if late > STARVED {
            self.timers.push(Reverse(next));
            self.defer(late.min(DEFER_MAX));
            return;
        }
        if let Err(error) = self.foca.handle_timer(next.timer, &mut self.runtime) {
            tracing::debug!("membership timer: {error}");
        }
        self.carry_out();
    }

    /// Moves every timer so that the oldest is due in a moment, and those after it keep their
    /// distance: the time without CPU did not happen.
    fn defer(&mut self, late: Duration) {
        tracing::debug!("no CPU for {} ms", late.as_millis());
        self.doubts.defer(late);
        let moved = std::mem::take(&mut self.timers)
            .into_iter()
            .map(|mut pending| {
                let earliest = Instant::now() + Duration::from_millis(20);
                pending.0.due = (pending.0.due + late).max(earliest);
                pending
            });
        self.timers = moved.collect();
    }

    /// Others believe only the one who leaves: so it tells all of them.
    fn leave(&mut self) {
        let myself = self.foca.identity().clone();
        let others: Vec<_> = self.foca.iter_members().map(|m| m.id().clone()).collect();
        // Not connected means that there is nobody to tell.
        let _ = self.foca.leave_cluster(&mut self.runtime);
        self.carry_out();
        for other in &others {
            if let Ok(packet) = member::farewell(&myself, other) {
                self.transport.send(other, packet);
            }
        }
    }

    fn carry_out(&mut self) {
        self.carry_out_but(&mut |_, _| false);
    }

    /// Does what the detector wants; packets that `taken` takes are not sent.
    fn carry_out_but(&mut self, taken: &mut dyn FnMut(NodeId, &Bytes) -> bool) {
        while let Some(notification) = self.runtime.to_notify() {
            self.notice(notification);
        }
        while let Some((to, packet)) = self.runtime.to_send() {
            if let Ok(header) = Codec.decode_header(packet.as_ref()) {
                self.incarnation = header.src_incarnation;
            }
            if !taken(to.id, &packet) {
                self.transport.send(&to, packet);
            }
        }
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.sequence += 1;
            self.timers.push(Reverse(Pending {
                due: Instant::now() + after,
                sequence: self.sequence,
                timer,
            }));
        }
        if let Some(member) = self.reborn.take() {
            self.begin_anew(&member);
        }
    }

    /// A node that was cut off has come to hold the others for dead. What it would now tell of
    /// them is its own isolation, and it would be believed: so it forgets everything first.
    fn begin_anew(&mut self, member: &Member) {
        // Above the epoch that the answer already under way may have made known.
        let myself = Member {
            epoch: member.epoch.saturating_add(1),
            ..member.clone()
        };
        let random = SmallRng::seed_from_u64(rand::random());
        self.foca = Foca::new(myself, timing(), random, Codec);
        self.runtime = AccumulatingRuntime::new();
        self.timers.clear();
        self.started = Instant::now();
        self.greet_from = 0;
        self.known.clear();
        self.doubts = Doubts::default();
        self.incarnation = 0;
    }

    fn notice(&mut self, notification: OwnedNotification<Member>) {
        match notification {
            OwnedNotification::MemberUp(member) => {
                tracing::info!("node {} ({}) is up", member.name, member.id);
                self.known.insert(member.id, member.clone());
                self.directory.put(peer(&member, Liveness::Alive));
            }
            OwnedNotification::MemberDown(member) => {
                tracing::warn!("node {} ({}) is dead", member.name, member.id);
                self.directory.put(peer(&member, Liveness::Dead));
            }
            OwnedNotification::Rename(_, member) => {
                self.known.insert(member.id, member.clone());
                let liveness = self.liveness(member.id).unwrap_or(Liveness::Dead);
                self.directory.put(peer(&member, liveness));
            }
            OwnedNotification::Rejoin(member) => {
                tracing::warn!("the cluster had declared this node dead; it is back");
                self.reborn = Some(member);
            }
            // Members renew themselves, so this is said only when we leave.
            OwnedNotification::Defunct | OwnedNotification::Active | OwnedNotification::Idle => {}
        }
    }

    fn member(&self, id: NodeId) -> Option<&Update<Member>> {
        let mut members = self.foca.iter_membership_state();
        members.find(|member| member.id().id == id)
    }

    fn liveness(&self, id: NodeId) -> Option<Liveness> {
        Some(liveness(self.member(id)?.state()))
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.conclude(now);
        self.carry_out();
        let suspects = self.foca.iter_members();
        let suspects = suspects.filter(|member| member.state() == State::Suspect);
        for suspect in suspects.map(|member| member.id().id).collect::<Vec<_>>() {
            self.probe(suspect);
        }
        for member in self.foca.iter_membership_state() {
            self.directory
                .set_liveness(member.id().id, liveness(member.state()));
        }
        self.greet();
        self.carry_out();
    }

    /// Announces this node to those that the detector has never heard of or holds for dead: after
    /// a start, after a partition (foca's own way does nothing when *all* others seem dead), and
    /// to nodes that have joined but were not there yet.
    fn greet(&mut self) {
        let mut strangers = self.directory.peers();
        strangers.retain(|peer| {
            peer.liveness != Liveness::Myself
                && matches!(self.liveness(peer.id), None | Some(Liveness::Dead))
        });
        if self.started.elapsed() > GREETING_GRACE {
            for stranger in &strangers {
                self.directory.set_liveness(stranger.id, Liveness::Dead);
            }
        }
        let from = self.greet_from;
        for stranger in strangers
            .iter()
            .cycle()
            .skip(from)
            .take(GREETINGS_MAX.min(strangers.len()))
        {
            let _ = self.foca.announce(first_life(stranger), &mut self.runtime);
        }
        self.greet_from = match strangers.len() {
            0 => 0,
            count => (from + GREETINGS_MAX) % count,
        };
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

fn liveness(state: State) -> Liveness {
    match state {
        State::Alive => Liveness::Alive,
        State::Suspect => Liveness::Suspect,
        State::Down => Liveness::Dead,
    }
}

fn peer(member: &Member, liveness: Liveness) -> Peer {
    Peer {
        id: member.id,
        name: member.name.clone(),
        control: member.control,
        data: member.data,
        liveness,
    }
}

/// An identity good enough to address an announcement to: any real epoch beats it.
fn first_life(peer: &Peer) -> Member {
    Member {
        id: peer.id,
        epoch: 0,
        name: peer.name.clone(),
        control: peer.control,
        data: peer.data,
    }
}
