//! The way between the agents: cut at many bytes, forgotten by a firewall, and slow.

use crate::{long, rig::Rig};

/// Wherever a connection is cut, the run goes on or says so, and the next one passes.
#[test]
fn a_connection_may_be_cut_at_any_byte() {
    let mut rig = Rig::new(None, false, 13);
    rig.start_both();
    let (whole, code) = rig.run_over_link(|_| {});
    assert_eq!(code, 0);
    let cuts = if long() { 80 } else { 12 };
    let mut ends = std::collections::BTreeMap::<i32, u64>::new();
    for cut in 0..cuts {
        // No two runs send the same number of bytes: the last tenth may not come.
        let at = whole * 9 / 10 * cut / cuts + 1;
        let before = rig.pair.link().cuts();
        let (_, code) = rig.run_over_link(|link| link.cut_after(at));
        assert!(matches!(code, 0 | 3 | 4), "cut at byte {at} the run ends with {code}\n{}", rig.pair.logs());
        assert_eq!(rig.pair.link().cuts(), before + 1, "cut at byte {at}");
        *ends.entry(code).or_default() += 1;
    }
    println!("{cuts} cuts within {whole} bytes; runs by exit code: {ends:?}");
    rig.stop_both();
    rig.clean_run("after the last cut");
}

/// A connection on which every byte comes alone is as good as another.
#[test]
fn bytes_that_come_one_by_one_are_understood() {
    let mut rig = Rig::new(None, false, 17);
    rig.start_both();
    let (_, code) = rig.run_over_link(|link| link.trickle(60_000));
    assert_eq!(code, 0, "{}", rig.pair.logs());
    rig.stop_both();
    rig.clean_run("after the slow run");
}

/// A connection that a firewall has forgotten looks open from both ends: keep-alives find out, and the run goes on. It takes their
/// time, so only the long mode waits for it.
#[test]
fn a_connection_that_is_dead_and_open_is_given_up() {
    let mut rig = Rig::new(None, false, 19);
    rig.start_both();
    let (whole, _) = rig.run_over_link(|_| {});
    for part in if long() { vec![1, 3, 5, 7] } else { Vec::new() } {
        let (_, code) = rig.run_over_link(|link| link.die_after(whole * part / 8));
        assert!(matches!(code, 0 | 3 | 4), "the run ends with {code}\n{}", rig.pair.logs());
        println!("dead after {part}/8 of its bytes: exit code {code}");
    }
    rig.stop_both();
    rig.clean_run("after a dead connection");
}
