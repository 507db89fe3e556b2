//! What a process used, as the kernel counts it.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

/// Ticks of the times in `/proc/PID/stat`. The kernel's interface has it fixed at 100 on every architecture that
/// Debian has, whatever its own clock does.
const TICKS_PER_SECOND: f64 = 100.0;

/// One measured copy.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Seconds from the start of the command to its end.
    pub wall: f64,
    /// Seconds of processor on the source's side.
    pub source_cpu: f64,
    /// Seconds of processor on the target's side.
    pub target_cpu: f64,
    /// Most bytes in memory that one process of the source's side had.
    pub source_peak: f64,
    /// The same of the target's side. None where it cannot be told.
    pub target_peak: Option<f64>,
    /// Bytes between the two hosts, both directions, with all headers. On loopback this includes what the operator's command line
    /// and the source agent tell each other on their own host: some kilobytes to Assay's disadvantage.
    pub wire: f64,
    /// Seconds of each phase, where the tool tells its phases.
    pub phases: Vec<(String, f64)>,
}

/// Processor seconds of a process and of the children that it has waited for.
///
/// # Errors
///
/// When the process is gone.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    parse_stat(&text).with_context(|| format!("{path} is not as expected: {text}"))
}

fn parse_stat(text: &str) -> Option<f64> {
    // The name, in brackets, may contain anything, brackets too.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    // Fields 14 to 17 of proc(5), user and system time of its own and of its children; the first here is field 3.
    let ticks = fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok()).sum::<Option<u64>>()?;
    Some(ticks as f64 / TICKS_PER_SECOND)
}

/// Most bytes in memory since the last reset.
///
/// # Errors
///
/// When the process is gone.
pub fn peak_bytes(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: Option<f64> = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    Ok(kib.with_context(|| format!("{path} has no VmHWM"))? * 1024.0)
}

/// Lets the peak of a process start anew.
///
/// # Errors
///
/// When the process is gone.
pub fn reset_peak(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, "5").with_context(|| path.clone())
}

/// Bytes that an interface has sent and received, with all headers.
///
/// # Errors
///
/// When there is no such interface.
pub fn interface_bytes(name: &str) -> Result<(f64, f64)> {
    let text = fs::read_to_string("/proc/net/dev").context("/proc/net/dev")?;
    parse_net_dev(&text, name).with_context(|| format!("/proc/net/dev has no {name}"))
}

fn parse_net_dev(text: &str, name: &str) -> Option<(f64, f64)> {
    let counters = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))?;
    // Eight columns of what was received stand before those of what was sent.
    let mut columns = counters.split_whitespace().step_by(8).map(|column| column.parse().ok());
    let (received, sent) = (columns.next()??, columns.next()??);
    Some((sent, received))
}

/// Format for `time`: what [`read_time_file`] reads.
pub const TIME_FORMAT: &str = "%U %S %M";

/// Processor seconds and peak bytes as `time` wrote them.
///
/// # Errors
///
/// When the file is not there or not as expected.
pub fn read_time_file(path: &Path) -> Result<(f64, f64)> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    parse_time(&text).with_context(|| format!("{} is not as expected: {text}", path.display()))
}

fn parse_time(text: &str) -> Option<(f64, f64)> {
    // A line on the exit code stands before it where that was not 0.
    let mut fields = text.lines().last()?.split_whitespace().map(|field| field.parse::<f64>().ok());
    let (user, system, kib) = (fields.next()??, fields.next()??, fields.next()??);
    Some((user + system, kib * 1024.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_process_name() {
        let text = "7 (a b) c)) S 1 7 7 0 -1 4194560 1 2 3 4 100 50 25 25 20 0 1 0";
        assert_eq!(parse_stat(text), Some(2.0));
        assert_eq!(parse_stat("7 (short) S 1"), None);
    }

    #[test]
    fn what_an_interface_sent_is_the_ninth_column() {
        let text = "Inter-| x\n face |bytes\n  eth0: 1 1 1 1 1 1 1 1 5\n    lo: 10 2 0 0 0 0 0 0 4321 2 0 0 0 0 0 0\n";
        assert_eq!(parse_net_dev(text, "lo"), Some((4321.0, 10.0)));
        assert_eq!(parse_net_dev(text, "eth0"), Some((5.0, 1.0)));
        assert_eq!(parse_net_dev(text, "eth"), None);
        assert_eq!(parse_net_dev("eth0: 1", "eth0"), None);
    }

    #[test]
    fn the_last_line_of_time_counts() {
        assert_eq!(
            parse_time("Command exited with non-zero status 24\n1.50 0.25 2048\n"),
            Some((1.75, 2_097_152.0))
        );
        assert_eq!(parse_time(""), None);
    }

    #[test]
    fn a_process_can_be_asked_for_its_own_use() {
        let pid = std::process::id();
        assert!(cpu_seconds(pid).expect("stat") >= 0.0);
        assert!(peak_bytes(pid).expect("status") > 0.0);
    }
}
