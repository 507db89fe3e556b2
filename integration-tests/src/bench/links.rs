//! First copies of made and real data, and an hour of work, over links of every speed.

use std::{path::Path, rc::Rc};

use anyhow::{Context as _, Result};

use super::{
    data::{self, Plan},
    network::{Network, Speed},
    real::{self, Set},
    rsync::{LINK_VARIANTS, Servers},
    workloads::{Bench, Field, Workload, finish, say},
};

/// Up to this speed the bytes on the wire set the pace.
const SLOW_MEGABITS: u32 = 100;

impl Bench {
    /// Every set over every link. The servers of rsync and the target agent are in a network of their own.
    pub(super) fn links(&mut self) -> Result<()> {
        let folder = self.options.folder.clone();
        let network = Rc::new(Network::start(&folder.join("network.log"))?);
        let servers = Servers::start_in(
            Some(Rc::clone(&network)),
            &folder.join("link-servers"),
            &folder.join("rsync"),
        )?;
        let loopback = std::mem::replace(&mut self.servers, servers);
        let measured =
            self.options.sets.clone().into_iter().try_for_each(|set| self.set_over_links(set, &network));
        self.servers = loopback;
        measured
    }

    fn set_over_links(&mut self, set: Set, network: &Rc<Network>) -> Result<()> {
        let folder = self.options.folder.join("set");
        let plan = self.options.set_plan;
        say(&format!("making the set {} ...", set.name()));
        let root = match set {
            Set::Made => {
                data::make_tree(&folder, &plan)?;
                folder.clone()
            }
            _ => real::make(set, &folder, self.options.set_bytes)?,
        };
        let size = data::size_of(&root)?;
        println!("{}: {} files, {:.1} MB", set.name(), size.files, size.bytes as f64 / 1e6);
        let mut field = self.field_over(&root, network)?;
        for speed in self.options.speeds.clone() {
            network.limit(speed)?;
            // rsync's page cache hides the disk where the link does not: there all of them end on the disk.
            let durable = !matches!(speed, Speed::Megabits(megabits) if megabits < 10_000);
            field.end_on_the_disk(durable);
            let name = format!("first copy, {}, {speed}", set.name());
            self.measure(&name, &mut field, |tool| tool.reset(), |_| Ok(()))?;
            if set == Set::Made {
                self.hour_over_link(&root, &plan, &mut field, speed)?;
            }
        }
        network.limit(Speed::Unlimited)?;
        finish(field)?;
        super::discard::discard(&folder)
    }

    /// The first copies have left every tool with the tree as it is.
    fn hour_over_link(&mut self, root: &Path, plan: &Plan, field: &mut Field, speed: Speed) -> Result<()> {
        let name = format!("hour, {}, {speed}", Set::Made.name());
        let done = self.hours_over_links;
        self.hours_over_links += self.options.repetitions as u64;
        let work = |repetition: u64| data::work_an_hour(root, plan, done + repetition).map(drop);
        self.measure(&name, field, |_| Ok(()), work).map(drop)
    }

    fn field_over(&self, root: &Path, network: &Rc<Network>) -> Result<Field> {
        let mut field = self.field(root, &LINK_VARIANTS)?;
        field.put_apart(network);
        Ok(field)
    }
}

/// What a link of this name demands of Assay's time, as a share of the fastest rsync's, and whether it demands it of the wire.
pub(super) fn demand_at(workload: &str) -> Option<(f64, bool)> {
    let speed = workload.rsplit(", ").next()?;
    let is = |speed_of: Speed| speed_of.to_string() == speed;
    match workload.split(", ").next()? {
        "hour" => Some((0.4, false)),
        "first copy" if is(Speed::Megabits(SLOW_MEGABITS)) => Some((0.6, true)),
        "first copy" if is(Speed::Megabits(1000)) => Some((0.7, false)),
        "first copy" if is(Speed::Megabits(10_000)) || is(Speed::Unlimited) => Some((0.8, false)),
        _ => None,
    }
}

/// That the workload is known by its name everywhere.
pub(super) fn is_wanted(workloads: &[Workload]) -> Result<bool> {
    let wanted = workloads.contains(&Workload::Links);
    if wanted {
        let found = super::process::succeed(std::process::Command::new("tc").arg("-V"));
        found.context("install iproute2: tc limits the links")?;
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_speed_has_its_demand() {
        let of = |speed: Speed| demand_at(&format!("first copy, git, {speed}"));
        assert_eq!(
            Speed::ALL.map(of),
            [Some((0.8, false)), Some((0.8, false)), Some((0.7, false)), Some((0.6, true))]
        );
        assert_eq!(demand_at("hour, made, 1 Gbit/s"), Some((0.4, false)));
        assert_eq!(demand_at("first-copy"), None);
    }
}
