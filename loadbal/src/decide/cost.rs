//! Opportunity cost: CPU and memory of a node become one number.
//!
//! The cost of a node is `n^(CPU use) + n^(memory use)`, n being the number of nodes; the cost of
//! a process is what the node's cost grows by if it is there (Amir, Awerbuch, Barak, Borgstrom,
//! Keren: An Opportunity Cost Approach for Job Assignment, TPDS 11(7), 2000; the greedy form that
//! they call Enhanced MOSIX). CPU use has no upper limit of its own: it is taken relative to the
//! power of two above the largest load of any node.

use super::Model;
use crate::vector::NodeLoad;

/// Base and CPU unit of the cost, fixed for one decision.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Scale {
    base: f64,
    load_unit: f64,
}

impl Scale {
    /// The scale for the nodes of a model.
    #[must_use]
    pub fn of(model: &Model) -> Self {
        let nodes = model.others.iter().chain([&model.me]);
        let largest = nodes.map(|node| relative_load(node, node.load));
        let largest = largest.fold(f64::MIN_POSITIVE, f64::max);
        Self {
            base: (model.others.len() + 1).max(2) as f64,
            load_unit: largest.log2().ceil().clamp(-60.0, 60.0).exp2(),
        }
    }

    /// What leaving the node saves; `load` is the node's as the process feels it.
    #[must_use]
    pub fn leaving(self, node: &NodeLoad, load: f64, demand: f64, memory: u64) -> f64 {
        let after = (load - demand).max(0.0);
        let cpu = self.cpu(node, load) - self.cpu(node, after);
        let used = used(node);
        cpu + self.memory(node, used) - self.memory(node, used - memory as f64)
    }

    /// What entering the node costs; `load` is the node's as the process would feel it.
    #[must_use]
    pub fn entering(self, node: &NodeLoad, load: f64, demand: f64, memory: u64) -> f64 {
        let cpu = self.cpu(node, load + demand) - self.cpu(node, load);
        let used = used(node);
        cpu + self.memory(node, used + memory as f64) - self.memory(node, used)
    }

    fn cpu(self, node: &NodeLoad, load: f64) -> f64 {
        self.base
            .powf((relative_load(node, load) / self.load_unit).min(16.0))
    }

    fn memory(self, node: &NodeLoad, used: f64) -> f64 {
        let total = (node.memory_total as f64).max(1.0);
        self.base.powf((used / total).clamp(0.0, 2.0))
    }
}

/// Load per standard CPU.
fn relative_load(node: &NodeLoad, load: f64) -> f64 {
    load / (node.cpus * node.speed)
}

fn used(node: &NodeLoad) -> f64 {
    node.memory_total.saturating_sub(node.memory_free) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::tests::idle;

    fn model(loads: &[f64]) -> Model {
        let mut nodes = loads
            .iter()
            .zip(1..)
            .map(|(&load, id)| NodeLoad { load, ..idle(id) });
        Model {
            me: nodes.next().unwrap(),
            others: nodes.collect(),
        }
    }

    #[test]
    fn the_fuller_node_is_the_dearer_one() {
        let model = model(&[3.0, 1.0, 0.0]);
        let scale = Scale::of(&model);
        let costs: Vec<f64> = [&model.me, &model.others[0], &model.others[1]]
            .iter()
            .map(|node| scale.entering(node, node.load, 1.0, 1 << 20))
            .collect();
        assert!(costs[0] > costs[1] && costs[1] > costs[2], "{costs:?}");
    }

    #[test]
    fn scarce_memory_outweighs_an_idle_cpu() {
        let mut model = model(&[2.0, 0.0, 1.0]);
        model.others[0].memory_free = 600 << 20;
        model.others[1].memory_free = 1 << 30;
        let scale = Scale::of(&model);
        let needs = 500 << 20;
        assert!(
            scale.entering(&model.others[0], 0.0, 0.1, needs)
                > scale.entering(&model.others[1], 1.0, 0.1, needs)
        );
    }

    #[test]
    fn leaving_saves_what_entering_cost() {
        let mut model = model(&[3.0, 1.0]);
        let scale = Scale::of(&model);
        let entering = scale.entering(&model.me, 3.0, 1.0, 4096);
        model.me.load += 1.0;
        model.me.memory_free -= 4096;
        let leaving = scale.leaving(&model.me, 4.0, 1.0, 4096);
        assert!((entering - leaving).abs() < 1e-6);
    }
}
