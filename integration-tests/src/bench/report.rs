//! From samples to a table and to JSON.

use std::fmt::Write as _;

use serde_json::json;

use super::{
    links::demand_at,
    measure::Sample,
    stats::{Ratio, median},
};

/// What a demand is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Demand {
    /// The ratio to the tool that is best in this row must not be larger.
    RatioToBest(f64),
    /// The ratio to this peer must not be larger.
    Ratio(&'static str, f64),
    /// The value itself must not be larger.
    Value(f64),
    /// The value must not be larger than the peer's times this, and so many units on top.
    RatioAnd(&'static str, f64, f64),
}

/// One other program, or what else Assay is compared with.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its median.
    pub value: f64,
    /// Assay's values divided by its values of the same repetition; none when those are nothing.
    pub ratio: Option<Ratio>,
}

/// One metric of one workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The workload.
    pub workload: String,
    /// The metric.
    pub metric: &'static str,
    /// Unit of the values.
    pub unit: &'static str,
    /// Assay's median.
    pub assay: f64,
    /// What it is compared with.
    pub peers: Vec<Peer>,
    /// Repetitions behind the medians.
    pub repetitions: usize,
    /// What must be reached, where that is known.
    pub demand: Option<Demand>,
}

impl Row {
    /// A row of Assay's values beside those of its peers, repetition by repetition.
    pub fn new(
        workload: &str,
        metric: &'static str,
        unit: &'static str,
        assay: &[f64],
        peers: &[(String, Vec<f64>)],
    ) -> Self {
        let peers = peers
            .iter()
            .map(|(name, values)| Peer {
                name: name.clone(),
                value: median(values),
                ratio: Ratio::pairwise(assay, values),
            })
            .collect();
        Self {
            workload: workload.to_owned(),
            metric,
            unit,
            assay: median(assay),
            peers,
            repetitions: assay.len(),
            demand: demand(workload, metric),
        }
    }

    /// The tool that is best in this row: smaller is better everywhere.
    pub fn best(&self) -> Option<&Peer> {
        let tools = self.peers.iter().filter(|peer| peer.name != CHANGED_PAGES);
        tools.min_by(|a, b| a.value.total_cmp(&b.value))
    }

    /// Whether the demand is met, and how it reads. None where there is none or it cannot be told.
    fn judged(&self) -> Option<(bool, String)> {
        match self.demand? {
            Demand::RatioToBest(most) => {
                let ratio = self.best()?.ratio?;
                Some((ratio.median <= most, format!("<= {most} of the fastest: {:.2}", ratio.median)))
            }
            Demand::Ratio(name, most) => {
                let ratio = self.peers.iter().find(|peer| peer.name == name)?.ratio?;
                Some((ratio.median <= most, format!("<= {most} of {name}: {:.2}", ratio.median)))
            }
            Demand::RatioAnd(name, factor, more) => {
                let peer = self.peers.iter().find(|peer| peer.name == name)?;
                let most = factor * peer.value + more;
                let text = format!(
                    "<= {factor} x {name} + {}: {}",
                    amount(more, self.unit),
                    amount(most, self.unit)
                );
                Some((self.assay <= most, text))
            }
            Demand::Value(most) => Some((self.assay <= most, format!("<= {}", amount(most, self.unit)))),
        }
    }

    /// One JSON object for each peer; one without where there is none.
    pub fn json_lines(&self) -> Vec<String> {
        let line = |peer: Option<&Peer>| {
            let ratio = peer.and_then(|peer| peer.ratio);
            json!({
                "workload": self.workload, "metric": self.metric, "unit": self.unit, "assay": self.assay,
                "peer": peer.map(|peer| &peer.name), "peer_value": peer.map(|peer| peer.value),
                "ratio": ratio.map(|ratio| ratio.median), "ratio_min": ratio.map(|ratio| ratio.min),
                "ratio_max": ratio.map(|ratio| ratio.max), "repetitions": self.repetitions,
            })
            .to_string()
        };
        match self.peers.as_slice() {
            [] => vec![line(None)],
            peers => peers.iter().map(|peer| line(Some(peer))).collect(),
        }
    }
}

/// What Assay has to reach, by workload and metric.
fn demand(workload: &str, metric: &str) -> Option<Demand> {
    const PLAIN: &str = super::rsync::PLAIN.name;
    let demand = match (workload, metric) {
        ("first-copy", "wall") => Demand::Ratio(PLAIN, 0.5),
        ("first-copy", "cpu, both sides") => Demand::Ratio(PLAIN, 0.6),
        ("first-copy" | "hour", "wire") => Demand::Ratio(PLAIN, 1.0),
        ("no-change", "wall") => Demand::Ratio(PLAIN, 0.25),
        ("hour" | "large-file", "wall") => Demand::Ratio(PLAIN, 0.33),
        ("hour", "cpu, source") => Demand::Ratio(PLAIN, 0.5),
        ("live", "transactions lost" | "lost by a copy") => Demand::Ratio(PLAIN, 0.5),
        ("postgres", "wire") => Demand::Ratio(CHANGED_PAGES, 1.3),
        // Five round trips are what a run may wait for, whatever it copies.
        (_, WALL_AT_80_MS) => Demand::RatioAnd(WITHOUT_DELAY, 1.3, 0.4),
        (workload, "wall") => Demand::RatioToBest(demand_at(workload)?.0),
        (workload, "wire") if demand_at(workload).is_some_and(|(_, of_wire)| of_wire) => {
            Demand::Ratio(PLAIN, 1.0)
        }
        (workload, "cpu, source") if workload.starts_with("hour, ") => Demand::Ratio(PLAIN, 0.5),
        (_, "memory, source" | "memory, target") => Demand::Value(256.0 * 1024.0 * 1024.0),
        _ => return None,
    };
    Some(demand)
}

/// The name of what the wire of the PostgreSQL workload is compared with.
pub const CHANGED_PAGES: &str = "changed pages, zstd -3";

/// The metric that compares Assay on a slow link with itself on a fast one.
pub const WALL_AT_80_MS: &str = "wall, 80 ms to 0";
/// What it is compared with.
pub const WITHOUT_DELAY: &str = "Assay, 0 ms";

/// A metric: its name, its unit, and where it is in a sample.
type Metric = (&'static str, &'static str, fn(&Sample) -> Option<f64>);

const METRICS: [Metric; 7] = [
    ("wall", "s", |sample| Some(sample.wall)),
    ("cpu, source", "s", |sample| Some(sample.source_cpu)),
    ("cpu, target", "s", |sample| Some(sample.target_cpu)),
    ("cpu, both sides", "s", |sample| Some(sample.source_cpu + sample.target_cpu)),
    ("memory, source", "B", |sample| Some(sample.source_peak)),
    ("memory, target", "B", |sample| sample.target_peak),
    ("wire", "B", |sample| Some(sample.wire)),
];

/// The rows of a workload from the samples of each tool, Assay's first.
pub fn rows(workload: &str, samples: &[(String, Vec<Sample>)]) -> Vec<Row> {
    let Some(((_, assay), others)) = samples.split_first() else { return Vec::new() };
    let values = |samples: &[Sample], of: fn(&Sample) -> Option<f64>| {
        samples.iter().map(of).collect::<Option<Vec<_>>>()
    };
    METRICS
        .iter()
        .filter_map(|&(metric, unit, of)| {
            let peers: Vec<_> = others
                .iter()
                .filter_map(|(name, samples)| Some((name.clone(), values(samples, of)?)))
                .collect();
            Some(Row::new(workload, metric, unit, &values(assay, of)?, &peers))
        })
        .collect()
}

/// Where Assay's time went: the median of each phase.
pub fn phases(samples: &[Sample]) -> String {
    let Some(first) = samples.first() else { return String::new() };
    let mut text = String::new();
    for (name, _) in &first.phases {
        let of =
            |sample: &Sample| sample.phases.iter().find(|(known, _)| known == name).map(|(_, time)| *time);
        let times: Vec<f64> = samples.iter().filter_map(of).collect();
        let gap = if text.is_empty() { "" } else { ", " };
        // Writing to a string cannot fail.
        write!(text, "{gap}{name} {:.2} s", median(&times)).ok();
    }
    text
}

/// A value with its unit, three digits of it.
pub fn amount(value: f64, unit: &str) -> String {
    match unit {
        "B" if value >= 1024.0 * 1024.0 * 1024.0 => format!("{:.2} GiB", value / 1024.0 / 1024.0 / 1024.0),
        "B" if value >= 1024.0 * 1024.0 => format!("{:.1} MiB", value / 1024.0 / 1024.0),
        "B" => format!("{:.1} KiB", value / 1024.0),
        "" => format!("{value:.0}"),
        _ => format!("{value:.2} {unit}"),
    }
}

/// The table, ready to print.
pub fn table(rows: &[Row]) -> String {
    const HEAD: [&str; 8] =
        ["workload", "metric", "Assay", "best other", "its value", "ratio", "from - to", "must reach"];
    let mut cells = vec![HEAD.map(str::to_owned)];
    for row in rows {
        let best = row.best();
        let ratio = best.and_then(|best| best.ratio);
        let judged = row.judged().map(|(met, text)| format!("{text} {}", if met { "yes" } else { "NO" }));
        cells.push([
            row.workload.clone(),
            row.metric.to_owned(),
            amount(row.assay, row.unit),
            best.map_or_else(|| "-".to_owned(), |best| best.name.clone()),
            best.map_or_else(|| "-".to_owned(), |best| amount(best.value, row.unit)),
            ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.2}", ratio.median)),
            ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{:.2} - {:.2}", ratio.min, ratio.max)),
            judged.unwrap_or_default(),
        ]);
    }
    let widths: Vec<usize> = (0..HEAD.len())
        .map(|column| cells.iter().map(|line| line[column].chars().count()).max().unwrap_or_default())
        .collect();
    let mut text = String::new();
    for line in &cells {
        let mut padded = String::new();
        for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
            // Numbers stand under each other.
            let cell = if [2, 4, 5, 6].contains(&column) {
                format!("{cell:>width$}")
            } else {
                format!("{cell:width$}")
            };
            padded.push_str(&cell);
            padded.push_str("  ");
        }
        text.push_str(padded.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(wall: f64, target_peak: Option<f64>) -> Sample {
        Sample {
            wall,
            source_cpu: 1.0,
            target_cpu: 0.0,
            target_peak,
            phases: vec![("sealing".into(), wall)],
            ..Sample::default()
        }
    }

    fn example() -> Vec<Row> {
        rows(
            "no-change",
            &[
                (
                    "Assay".into(),
                    vec![sample(1.0, Some(9.0)), sample(2.0, Some(9.0)), sample(3.0, Some(9.0))],
                ),
                (
                    "rsync -az (ssh)".into(),
                    vec![sample(4.0, Some(9.0)), sample(4.0, Some(9.0)), sample(6.0, Some(9.0))],
                ),
                ("rsync -a (daemon)".into(), vec![sample(2.0, None), sample(2.0, None), sample(2.0, None)]),
            ],
        )
    }

    #[test]
    fn demands_are_judged_against_their_own_peer_and_not_against_the_best() {
        let rows = example();
        let wall = &rows[0];
        assert_eq!(wall.best().map(|peer| &*peer.name), Some("rsync -a (daemon)"));
        assert_eq!(wall.judged(), Some((false, "<= 0.25 of rsync -az (ssh): 0.50".into())));
        assert!(table(&rows).contains("<= 0.25 of rsync -az (ssh): 0.50 NO"));
    }

    #[test]
    fn what_was_not_measured_has_no_row_and_no_peer() {
        let rows = example();
        let memory = rows.iter().find(|row| row.metric == "memory, target").expect("a row");
        assert_eq!(memory.peers.len(), 1, "the daemon's memory is not known");
        assert_eq!(memory.judged(), Some((true, "<= 256.0 MiB".into())));
        assert!(super::rows("empty", &[]).is_empty());
    }

    #[test]
    fn a_slow_link_may_cost_a_factor_and_some_round_trips() {
        for (seconds, met) in [(1.7, true), (1.71, false)] {
            let row = Row::new("link", WALL_AT_80_MS, "s", &[seconds], &[(WITHOUT_DELAY.into(), vec![1.0])]);
            let (judged, text) = row.judged().expect("a demand");
            assert_eq!(judged, met, "{text}");
        }
    }

    #[test]
    fn changed_pages_are_judged_and_are_no_tool() {
        let peers = [(CHANGED_PAGES.to_owned(), vec![10.0]), ("rsync -az (ssh)".to_owned(), vec![50.0])];
        let row = Row::new("postgres", "wire", "B", &[12.0], &peers);
        assert_eq!(row.best().map(|peer| peer.value), Some(50.0));
        assert_eq!(row.judged().map(|(met, _)| met), Some(true));
    }

    #[test]
    fn json_has_one_object_for_each_peer_and_null_where_there_is_no_ratio() {
        let rows = example();
        let lines = rows[0].json_lines();
        assert_eq!(lines.len(), 2);
        let value: serde_json::Value = serde_json::from_str(&lines[1]).expect("JSON");
        assert_eq!(
            value,
            json!({
                "workload": "no-change", "metric": "wall", "unit": "s", "assay": 2.0, "peer": "rsync -a (daemon)",
                "peer_value": 2.0, "ratio": 1.0, "ratio_min": 0.5, "ratio_max": 1.5, "repetitions": 3,
            })
        );
        let target = rows.iter().find(|row| row.metric == "cpu, target").expect("a row");
        assert!(target.json_lines()[0].contains("\"ratio\":null"));
        let alone = Row::new("sparse", "wall", "s", &[2.0], &[]);
        let lines: Vec<serde_json::Value> =
            alone.json_lines().iter().map(|line| serde_json::from_str(line).expect("an object")).collect();
        assert_eq!(lines.len(), 1);
        assert!(lines[0]["assay"] == 2.0 && lines[0]["peer"].is_null() && lines[0]["peer_value"].is_null());
    }

    #[test]
    fn the_table_is_aligned_and_has_no_spaces_at_the_ends() {
        let text = table(&example());
        let lines: Vec<&str> = text.lines().collect();
        let column = lines[0].find("best other").expect("the head");
        assert!(lines[1..].iter().all(|line| line[column..].starts_with("rsync")), "{text}");
        assert!(lines.iter().all(|line| line.trim_end() == *line));
        assert_eq!(phases(&[sample(1.0, None), sample(3.0, None)]), "sealing 2.00 s");
    }

    #[test]
    fn amounts_have_the_unit_that_fits() {
        for (value, unit, text) in [
            (512.0, "B", "0.5 KiB"),
            (1_572_864.0, "B", "1.5 MiB"),
            (3_221_225_472.0, "B", "3.00 GiB"),
            (0.125, "s", "0.12 s"),
            (1234.4, "", "1234"),
        ] {
            assert_eq!(amount(value, unit), text);
        }
    }
}
