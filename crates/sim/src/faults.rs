//! What goes wrong, and how it is put right again.
//!
//! Faults that lose data wait for a cluster that is whole, so that no seed loses more copies than a majority can spare:
//! what a cluster promises ends there. All others may pile up in any mixture.

use std::collections::BTreeMap;

use flotilla_meta::MetaCommand;
use flotilla_replication::{Input, Role};
use flotilla_storage::Log as _;
use flotilla_types::{LogIndex, NodeId, ShardId};
use rand::RngExt as _;

use crate::{
    disk::Disk,
    network::{Cut, Weather},
    node::Folder,
    operator::Then,
    plan::{DRIFTS_PPM, Fault, Planned},
    world::{Event, World},
};

/// Nodes that a world has at most, living and dead, so that ids and links stay few.
const NODES_MAX: usize = 14;

/// A moment at which somebody does something to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Turn {
    /// A planned fault, by its place in the plan.
    Begin(usize),
    End(usize),
    /// A process that ended itself is started again.
    Restart(NodeId),
    /// A machine whose disk was lost comes back as another node.
    Rejoin(u16),
}

/// Faults that last.
#[derive(Default)]
pub(crate) struct Faults {
    active: BTreeMap<usize, Active>,
    /// No more faults begin.
    pub(crate) over: bool,
}

enum Active {
    Down(Vec<NodeId>),
    Cut(Cut),
    Weather(Weather),
    Slow(NodeId),
    Full(NodeId),
    Clock(NodeId),
    Removed(NodeId),
    Backup { node: NodeId, disk: Box<Disk>, folder: Box<Folder>, incarnation: flotilla_types::Incarnation },
    Restart(NodeId),
}

impl World {
    /// Puts the plan's faults on the calendar.
    pub(crate) fn begin_faults(&mut self) {
        for (at, planned) in self.plan.faults.clone().into_iter().enumerate() {
            self.schedule(planned.at_ms * 1_000, Event::Fault(Turn::Begin(at)));
        }
    }

    pub(crate) fn turn(&mut self, turn: Turn) {
        match turn {
            Turn::Begin(at) => {
                let Some(planned) = self.plan.faults.get(at).copied().filter(|_| !self.faults.over) else { return };
                match self.begin(planned) {
                    Some(active) => {
                        self.faults.active.insert(at, active);
                        self.schedule(planned.lasts_ms * 1_000, Event::Fault(Turn::End(at)));
                    }
                    None => self.note(format!("#{at} {:?} has nothing to hit", planned.fault)),
                }
            }
            Turn::End(at) => {
                if let Some(active) = self.faults.active.remove(&at) {
                    self.note(format!("#{at} ends"));
                    self.end(active);
                }
            }
            Turn::Restart(node) => self.start(node),
            Turn::Rejoin(port) => {
                let taken = self.nodes.values().any(|node| node.port == port && !node.retired);
                if !taken && self.nodes.len() < NODES_MAX {
                    self.join(port);
                }
            }
        }
    }

    /// A process that ended itself: a supervisor starts it again.
    pub(crate) fn restart_later(&mut self, node: NodeId) {
        let delay_us = self.rng.random_range(100_000..1_000_000);
        self.schedule(delay_us, Event::Fault(Turn::Restart(node)));
    }

    /// A machine that lost its disk: its operator has it join anew.
    pub(crate) fn rejoin_later(&mut self, node: NodeId) {
        let Some(port) = self.nodes.get(&node).map(|node| node.port) else { return };
        let delay_us = self.rng.random_range(100_000..2_000_000);
        self.schedule(delay_us, Event::Fault(Turn::Rejoin(port)));
    }

    fn running(&self) -> Vec<NodeId> {
        self.nodes.values().filter(|node| node.running.is_some()).map(|node| node.id).collect()
    }

    /// Whether a loss is under way that the cluster may not have noticed yet.
    fn is_losing(&self) -> bool {
        let mut active = self.faults.active.keys().filter_map(|at| self.plan.faults.get(*at));
        active.any(|planned| loses(planned.fault))
    }

    fn begin(&mut self, planned: Planned) -> Option<Active> {
        let running = self.running();
        let id = *running.get(planned.pick as usize % running.len().max(1))?;
        let which = planned.pick >> 32;
        let lasts_us = planned.lasts_ms * 1_000;
        let name = format!("{:?} for {} ms", planned.fault, planned.lasts_ms);
        let forming = (self.nodes.len() as u64) < self.plan.nodes || !self.operator.is_idle();
        if loses(planned.fault) && (forming || self.is_losing() || self.unsettled(LAG_MAX).is_some()) {
            return None;
        }
        self.note(format!("{name}: {id}"));
        Some(match planned.fault {
            Fault::Crash => {
                self.crash(id);
                Active::Down(vec![id])
            }
            Fault::CrashAll => {
                running.iter().for_each(|node| self.crash(*node));
                Active::Down(running)
            }
            Fault::Pause => {
                let until_us = self.now_us + lasts_us;
                self.nodes.get_mut(&id)?.paused_until_us = until_us;
                Active::Restart(NodeId::NONE)
            }
            Fault::Isolate | Fault::Halves | Fault::OneWay | Fault::Bridge => {
                let cut = self.cut_of(planned.fault, id, which);
                self.cut(&cut);
                Active::Cut(cut)
            }
            Fault::Storm => {
                let before = self.network.weather.clone();
                let weather = &mut self.network.weather;
                weather.lost_per_mille = 50 + (which % 200) as u32;
                weather.doubled_per_mille = 100;
                weather.slow_per_mille = 100;
                Active::Weather(before)
            }
            Fault::Lies => {
                let before = self.network.weather.clone();
                self.network.weather.lies_per_mille = 400;
                Active::Weather(before)
            }
            Fault::SlowDisk => {
                self.nodes.get_mut(&id)?.disk_us_max = 80_000;
                Active::Slow(id)
            }
            Fault::FsyncFails => {
                self.nodes.get_mut(&id)?.fsync_fails = true;
                Active::Restart(NodeId::NONE)
            }
            Fault::DiskFull => {
                self.nodes.get_mut(&id)?.disk.set_full(true);
                Active::Full(id)
            }
            Fault::ClockJump => {
                let jumps_ms = [-3_600_000, -60_000, -2_000, -300, 300, 700, 5_000, 60_000, 3_600_000];
                let jump_ms = jumps_ms[which as usize % jumps_ms.len()];
                self.note(format!("the wall clock of {id} jumps by {jump_ms} ms"));
                self.nodes.get_mut(&id)?.clock.jump(jump_ms);
                Active::Clock(id)
            }
            Fault::ClockDrift => {
                let now_us = self.now_us;
                self.nodes.get_mut(&id)?.clock.set_drift(now_us, DRIFTS_PPM[which as usize % DRIFTS_PPM.len()]);
                Active::Clock(id)
            }
            Fault::Transfer => {
                self.transfer_one(planned.pick)?;
                Active::Restart(NodeId::NONE)
            }
            Fault::Join => {
                if self.nodes.len() >= NODES_MAX {
                    return None;
                }
                let port = self.next_port();
                self.join(port);
                Active::Restart(NodeId::NONE)
            }
            Fault::Remove => {
                if running.len() < 4 {
                    return None;
                }
                self.checks.wounded.insert(id);
                self.order(MetaCommand::RemoveNode { node: id }, Then::Nothing);
                Active::Removed(id)
            }
            Fault::Wipe => {
                self.lose(id, "loses its disk");
                Active::Restart(NodeId::NONE)
            }
            Fault::RollBack => {
                let node = self.nodes.get(&id)?;
                let (disk, folder) = (Box::new(node.disk.reopen()), Box::new(node.folder.clone()));
                Active::Backup { node: id, disk, folder, incarnation: node.incarnation }
            }
            Fault::RotLog => {
                let node = self.nodes.get(&id)?;
                let replicas = node.disk.replicas().ok()?;
                let (replica, log) = replicas.get(which as usize % replicas.len().max(1))?;
                let entries = log.last.0 - log.truncated.0.0;
                let first = log.truncated.0.0 + 1 + (which >> 8) % entries.max(1);
                node.disk.damage_entries(*replica, LogIndex(first), LogIndex(first + which % 4));
                self.checks.wounded.insert(id);
                Active::Restart(id)
            }
            Fault::RotObject => {
                let node = self.nodes.get(&id)?;
                let replicas = node.disk.replicas().ok()?;
                let objects: Vec<_> = replicas.iter().flat_map(|(_, log)| log.checkpoint.objects()).collect();
                node.disk.damage_object(*objects.get(which as usize % objects.len().max(1))?);
                self.checks.wounded.insert(id);
                Active::Restart(id)
            }
        })
    }

    fn end(&mut self, active: Active) {
        match active {
            Active::Down(nodes) => nodes.into_iter().for_each(|node| self.start(node)),
            Active::Cut(cut) => self.mend(&cut),
            Active::Weather(before) => self.network.weather = before,
            Active::Slow(id) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.disk_us_max = 2_000;
                }
            }
            Active::Full(id) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.disk.set_full(false);
                }
            }
            Active::Clock(id) => {
                let now_us = self.now_us;
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.clock.set_right(now_us, node.honest_ahead_ms);
                }
            }
            Active::Removed(id) => {
                // Whether it is gone from the metadata or not: its machine is switched off.
                self.crash(id);
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.retired = true;
                }
            }
            Active::Backup { node, disk, folder, incarnation } => self.roll_back(node, *disk, *folder, incarnation),
            Active::Restart(NodeId::NONE) => {}
            Active::Restart(id) => {
                self.crash(id);
                self.start(id);
            }
        }
    }

    /// Puts an older copy of a disk back, if the cluster can spare the node and every peer remembers more of it than the copy holds:
    /// within that window a roll-back cannot be noticed, and the documentation says so.
    fn roll_back(&mut self, id: NodeId, disk: Disk, folder: Folder, incarnation: flotilla_types::Incarnation) {
        let copied = disk.recovered();
        let remembers =
            |node: &crate::node::Node| node.disk.marks().iter().any(|mark| mark.node == id && mark.sequence > copied);
        let mut others = self.nodes.values().filter(|node| node.id != id && !node.retired);
        let known = others.all(remembers);
        if !known || self.unsettled(LAG_MAX).is_some() || self.nodes.get(&id).is_none_or(|node| node.retired) {
            self.note(format!("{id} is not rolled back after all"));
            return;
        }
        self.crash(id);
        self.note(format!("{id} comes back with an older copy of its disk, up to {copied}"));
        self.checks.wounded.insert(id);
        self.checks.rolled_back(&disk);
        if let Some(node) = self.nodes.get_mut(&id) {
            // The copy says what was on the disk, not how much room there is by now.
            disk.set_full(node.disk.is_full());
            (node.disk, node.folder, node.incarnation) = (disk, folder, incarnation);
        }
        self.start(id);
    }

    /// The directions that a partition cuts.
    fn cut_of(&self, fault: Fault, id: NodeId, which: u64) -> Cut {
        let all: Vec<_> = self.nodes.keys().copied().collect();
        let others = || all.iter().copied().filter(move |other| *other != id);
        // Bits of the choice say on which side a node stands.
        let side = |node: NodeId| which >> (node.0 % 16) & 1 == 0;
        let between = |left: &dyn Fn(NodeId) -> bool, right: &dyn Fn(NodeId) -> bool| -> Cut {
            let pairs = all.iter().flat_map(|a| all.iter().map(move |b| (*a, *b)));
            pairs.filter(|(a, b)| (left(*a) && right(*b)) || (right(*a) && left(*b))).collect()
        };
        match fault {
            Fault::Isolate => others().flat_map(|other| [(id, other), (other, id)]).collect(),
            Fault::OneWay if which.is_multiple_of(2) => others().map(|other| (id, other)).collect(),
            Fault::OneWay => others().map(|other| (other, id)).collect(),
            Fault::Bridge => between(&|node| node != id && side(node), &|node| node != id && !side(node)),
            _ => between(&side, &|node| !side(node)),
        }
    }

    /// One leader is told to hand over to another voter.
    fn transfer_one(&mut self, pick: u64) -> Option<()> {
        let led: Vec<_> = self
            .nodes
            .values()
            .flat_map(|node| node.status().into_iter().map(|replica| (node.id, replica)))
            .filter(|(_, replica)| replica.group.as_ref().is_some_and(|group| group.role == Role::Leader))
            .collect();
        let (node, replica) = led.get(pick as usize % led.len().max(1))?;
        let others: Vec<_> = replica.descriptor.replicas.iter().filter(|other| other.node != *node).collect();
        let to = others.get((pick >> 16) as usize % others.len().max(1))?.node;
        let shard: ShardId = replica.shard;
        self.input(*node, Input::Transfer { shard, to });
        Some(())
    }

    /// Everything that lasts ends, and nothing begins any more.
    pub(crate) fn heal(&mut self) {
        self.faults.over = true;
        self.note("everything is put right");
        for (_, active) in std::mem::take(&mut self.faults.active) {
            // A disk that was copied and not put back stays as it is.
            if !matches!(active, Active::Backup { .. }) {
                self.end(active);
            }
        }
        self.network.weather = Weather::fair();
        let now_us = self.now_us;
        for node in self.nodes.values_mut() {
            node.paused_until_us = 0;
            node.fsync_fails = false;
        }
        for node in self.nodes.values_mut() {
            node.clock.set_right(now_us, node.honest_ahead_ms);
        }
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.start(id);
        }
    }
}

/// Faults that cost a copy of something that was promised.
fn loses(fault: Fault) -> bool {
    matches!(fault, Fault::Remove | Fault::Wipe | Fault::RollBack | Fault::RotLog | Fault::RotObject)
}

/// A cluster counts as whole when no replica lacks more entries.
const LAG_MAX: u64 = 64;
