//! A series of rounds.

use std::{
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::{
    PLACES, edits,
    file_systems::Kind,
    mapped::Mapper,
    meanwhile::{self, WholeFiles},
    pair::{Pair, rsync_finds_no_difference},
};

/// Runs a series: the seed alone says what is done.
pub(crate) fn run(seed: u64, rounds: u64) {
    let (root, store) = PLACES[usize::try_from(seed % PLACES.len() as u64).expect("small")];
    println!("seed {seed}: {rounds} rounds from {root:?} to {store:?}");
    let mut random = StdRng::seed_from_u64(seed);
    // What is read again by turns is compared on the way.
    let reread = ["7d", "1m", "2s", "off"][random.random_range(0..4)];
    let pair = Pair::lean(root, store, &format!("reread_within = {reread:?}\n"));
    let live = pair.root(0);
    std::fs::write(live.join("anchor"), "never removed").expect("write");
    let mut whole = WholeFiles::new(&live);
    let tree = live.join("tree");
    std::fs::create_dir(&tree).expect("mkdir");
    let mut mapper = Mapper::start();
    for round in 0..rounds {
        for _ in 0..random.random_range(1..30) {
            edits::edit(&tree, &mut random, &mut mapper);
        }
        if random.random_range(0..5) == 0 {
            let seed = random.random();
            let ended = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let work = scope.spawn(|| meanwhile::work(&live, seed, &mut whole, &mut mapper, &ended));
                let done = pair.source(&["--json", "run", "--follow"]);
                ended.store(true, Ordering::SeqCst);
                work.join().expect("the work goes on");
                assert_eq!(done.code, 0, "round {round}: {done:?}\n{}", pair.logs());
            });
            whole.judge(&pair.latest());
        }
        let run = pair.run(0);
        assert_eq!(run["outcome"], "OUTCOME_PASS", "round {round}: {run}");
        judge(&live, &pair.latest(), (root, store));
    }
}

/// rsync prints nothing. XFS lists its ACLs a second time, under names of its own: they are no difference between two kinds.
fn judge(live: &Path, copy: &Path, (root, store): (Kind, Kind)) {
    if (root == Kind::Xfs) == (store == Kind::Xfs) {
        return rsync_finds_no_difference(live, copy);
    }
    let output = Command::new("rsync")
        .args(["-aHAXn", "--checksum", "--delete", "--itemize-changes", "--modify-window=-1"])
        .args(["--filter=-x system.*", "--filter=-x trusted.SGI_ACL_*"])
        .args([format!("{}/", live.display()), format!("{}/", copy.display())])
        .output()
        .expect("rsync is installed by ./test");
    assert!(output.status.success() && output.stdout.is_empty(), "rsync says:\n{output:?}");
}
