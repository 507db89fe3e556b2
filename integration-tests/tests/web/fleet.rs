//! A target of many repositories whose past is written, for looking at.

use std::{fs, path::Path};

use assay_common::{
    signing::SigningKey,
    verdict::{NegativeControl, Outcome, sign_control},
};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::{
    pair::Pair,
    past::Planned,
    site::{Site, write_past},
};

/// How a repository of the fleet has fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It passes every hour, and missed a few.
    Good,
    /// It failed an hour ago, and once before.
    Failed,
    /// Its newest check could not do its work.
    Inconclusive,
    /// Its source has fallen silent.
    Silent,
    /// It has no verdict yet.
    New,
}

/// What a repository of this fate has been through in 90 days, until now.
fn past(fate: Fate, seed: i64) -> Vec<Planned> {
    let now = Timestamp::now();
    let hours = if seed % 3 == 0 { 90 * 24 } else { 70 * 24 };
    let mut all = Vec::new();
    for back in (1..hours).rev() {
        let hour = hours - back;
        // Two nights on which nothing ran.
        let is_missed = (hour / 24) % 31 == 11 + seed % 7 && hour % 24 < 9;
        if is_missed || fate == Fate::New || (fate == Fate::Silent && back < 31) {
            continue;
        }
        let signed = now - SignedDuration::from_hours(back) + SignedDuration::from_mins(48);
        let mut planned = Planned::pass(signed);
        let wave = ((hour + seed * 40) as f64 / 90.0).sin() + 1.2;
        planned.content = (3.1e9 + hour as f64 * 9.0e5 * (1 + seed % 4) as f64 + wave * 2.0e7) as u64;
        planned.took =
            SignedDuration::from_secs(9 + hour / 300) + SignedDuration::from_secs((wave * 6.0) as i64);
        let (outcome, reason, message) = match (fate, back) {
            (Fate::Failed, 1) | (Fate::Failed, 1100) => (
                Outcome::Fail,
                "damage-found",
                "heap table \"orders\", block 4711: item pointer 12 points past the end of the page",
            ),
            (Fate::Inconclusive, 1..=3) => {
                (Outcome::Inconclusive, "licence-missing", "maintain: no licence for this host and port")
            }
            _ if (hour + seed * 17) % 409 == 0 => {
                (Outcome::NotRun, "target-full", "the target's disk is full")
            }
            _ if (hour + seed * 29) % 811 == 0 => {
                (Outcome::Inconclusive, "time-out", "the step amcheck took longer than 30 min")
            }
            _ => (Outcome::Pass, "check-passed", "all steps passed"),
        };
        (planned.outcome, planned.reason, planned.message) = (outcome, reason, message.to_owned());
        all.push(planned);
    }
    all
}

/// Puts the newest generation that passed, as a record, and a negative control beside a ledger of the past.
fn write_generation(pair: &Pair, name: &str, past: &[Planned], key: &SigningKey) {
    let store = pair.path(&format!("store/{name}"));
    let Some(newest) = past.iter().rposition(|planned| planned.outcome == Outcome::Pass) else { return };
    let of = pair.path("store/repo");
    let mut record: serde_json::Value =
        serde_json::from_slice(&fs::read(of.join("generations/000001/record.json")).expect("a record"))
            .expect("JSON");
    for number in [newest.saturating_sub(2), newest.saturating_sub(1), newest] {
        let (number, planned) = (number + 1, &past[number]);
        let sealed = planned.signed - SignedDuration::from_secs(2) - planned.took;
        record["repository"] = json!(name);
        record["generation"] = json!(number);
        record["sealed"] = json!(sealed);
        record["mark"] =
            json!({ "id": format!("backup mark {number}"), "time": sealed - SignedDuration::from_secs(38) });
        record["total_bytes"] = json!(planned.content);
        record["new_bytes"] = json!(planned.content / 211);
        let folder = store.join(format!("generations/{number:06}"));
        fs::create_dir_all(folder.join("tree")).expect("mkdir");
        fs::write(folder.join("record.json"), record.to_string()).expect("write");
    }
    let control = NegativeControl {
        outcome: Outcome::Fail,
        time: Timestamp::now() - SignedDuration::from_hours(50),
        generation: None,
        message: "2 of 2 damages were found".to_owned(),
        seed: Some(7),
        profile: None,
        damages: Vec::new(),
    };
    fs::write(store.join("control.json"), sign_control(name, &control, key).to_json()).expect("write");
    fs::copy(of.join("control.of"), store.join("control.of")).expect("copy");
}

/// The target of `pair` has these repositories too, and serves pages.
pub(crate) fn site(pair: Pair, fleet: &[(&str, Fate)]) -> Site {
    fs::write(pair.root(0).join("file"), "content").expect("write");
    pair.run(0);
    pair.kill("target");
    let vars = crate::pair::plain_vars();
    let sections: String = fleet
        .iter()
        .map(|(name, _)| {
            format!(
                "[[repository]]\nname = {name:?}\nsource = \"source\"\nsource_key = \"pki/source-signing.pub\"\nmax_age = \"2h\"\n\
                 control_every = \"never\"\nprofile = \"generic\"\n{vars}\nretention = {{ last = 24, daily = 14, weekly = 8 }}\n"
            )
        })
        .collect();
    let first = "[[repository]]\nname = \"repo\"";
    pair.configure("target", first, &format!("{sections}{first}"));
    // The stores are made.
    pair.start("target");
    pair.kill("target");
    let key = SigningKey::load(&pair.path("pki/target-signing.key")).expect("a key");
    for ((name, fate), seed) in fleet.iter().zip(1..) {
        let past = past(*fate, seed);
        write_past(&pair, name, &past);
        write_generation(&pair, name, &past, &key);
    }
    Site::new(pair)
}

/// A fleet of the usual kinds.
pub(crate) const USUAL: &[(&str, Fate)] = &[
    ("accurev-main", Fate::Inconclusive),
    ("billing-postgresql", Fate::Failed),
    ("git-platform", Fate::Good),
    ("intranet-sqlite", Fate::Silent),
    ("new-wiki", Fate::New),
    ("orders-postgresql", Fate::Good),
    ("svn-docs", Fate::Good),
];

/// Where screenshots go; nowhere unless somebody wants to look at them.
pub(crate) fn screenshots() -> Option<std::path::PathBuf> {
    let folder = std::env::var_os("ASSAY_SCREENSHOTS")?;
    fs::create_dir_all(Path::new(&folder)).expect("mkdir");
    Some(folder.into())
}
