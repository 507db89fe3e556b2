//! Two hosts joined by a link of a set speed: two network namespaces, a veth pair between them, and a token bucket (`tbf`) at
//! each end.
//!
//! The driver's own namespace is the live host. What is started by [`Ends::far_command`] is on the backup host. Both share the
//! processors and the disk.

use std::{fmt, net::Ipv4Addr, path::Path, process::Command};

use anyhow::{Context as _, Result};

use super::{
    measure::interface_bytes,
    process::{Background, succeed},
};

/// The live host's end of the link.
const NEAR: (Ipv4Addr, &str) = (Ipv4Addr::new(10, 88, 0, 1), "assay0");
/// The backup host's end.
const FAR: (Ipv4Addr, &str) = (Ipv4Addr::new(10, 88, 0, 2), "assay1");
/// How long a packet may wait in the bucket before it is dropped: a switch's buffer, so that TCP finds the rate.
const QUEUE: &str = "50ms";

/// What a link lets through in each direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speed {
    /// As much as the kernel moves.
    Unlimited,
    /// So many megabits a second.
    Megabits(u32),
}

impl Speed {
    /// The speeds that are measured, the fastest first.
    pub const ALL: [Self; 4] =
        [Self::Unlimited, Self::Megabits(10_000), Self::Megabits(1000), Self::Megabits(100)];

    /// The bucket: what may pass at once. The kernel refills it a few hundred times a second, so it must hold what passes between
    /// two refills, and a whole segment of the network card's (64 KiB) where the link is slow.
    fn burst_bytes(megabits: u32) -> u64 {
        let a_tick = u64::from(megabits) * 1_000_000 / 8 / 250;
        (2 * a_tick).max(128 * 1024)
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlimited => formatter.write_str("no limit"),
            Self::Megabits(megabits) if megabits % 1000 == 0 => {
                write!(formatter, "{} Gbit/s", megabits / 1000)
            }
            Self::Megabits(megabits) => write!(formatter, "{megabits} Mbit/s"),
        }
    }
}

/// Where the two ends of a copy are.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    /// The network of the backup host; absent when both ends are on loopback.
    network: Option<&'a Network>,
}

impl<'a> Ends<'a> {
    /// Both on this host.
    pub const LOOPBACK: Self = Self { network: None };

    /// The backup host is at the other end of a link.
    pub fn apart(network: &'a Network) -> Self {
        Self { network: Some(network) }
    }

    /// The address at which the live host reaches the backup host.
    pub fn far_address(self) -> Ipv4Addr {
        self.network.map_or(Ipv4Addr::LOCALHOST, |_| FAR.0)
    }

    /// A command that runs on the backup host.
    pub fn far_command(self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.network
            .map_or_else(|| Command::new(program.as_ref()), |network| network.command(program.as_ref()))
    }

    /// Bytes between the two hosts until now, in both directions, with all headers.
    ///
    /// # Errors
    ///
    /// When the interface is not there.
    pub fn wire_bytes(self) -> Result<f64> {
        match self.network {
            // What is sent to loopback is received there too, so what was sent is all of it.
            None => interface_bytes("lo").map(|(sent, _)| sent),
            Some(_) => interface_bytes(NEAR.1).map(|(sent, received)| sent + received),
        }
    }
}

/// The backup host's network, which goes away with this.
#[derive(Debug)]
pub struct Network {
    /// A process that keeps the namespace.
    holder: Background,
}

impl Network {
    /// Makes the namespace and the link, without a limit. The driver must have a network namespace of its own.
    ///
    /// # Errors
    ///
    /// When that is not permitted, or `ip` is not there.
    pub fn start(log: &Path) -> Result<Self> {
        let mut holder = Background::start(
            Command::new("unshare").args(["--net", "sleep", "infinity"]),
            "the network's holder",
            log,
        )?;
        let own = std::fs::read_link("/proc/self/ns/net").context("/proc/self/ns/net")?;
        let of_holder = format!("/proc/{}/ns/net", holder.pid());
        holder.wait_until(|| std::fs::read_link(&of_holder).is_ok_and(|other| other != own))?;
        let network = Self { holder };
        let pid = network.holder.pid().to_string();
        succeed(
            Command::new("ip")
                .args(["link", "add", NEAR.1, "type", "veth", "peer", "name", FAR.1, "netns", &pid]),
        )?;
        let address = |(address, name): (Ipv4Addr, &str)| {
            ["addr", "add", &format!("{address}/30"), "dev", name].map(str::to_owned)
        };
        succeed(Command::new("ip").args(address(NEAR)))?;
        succeed(network.command("ip".as_ref()).args(address(FAR)))?;
        succeed(Command::new("ip").args(["link", "set", NEAR.1, "up"]))?;
        for name in ["lo", FAR.1] {
            succeed(network.command("ip".as_ref()).args(["link", "set", name, "up"]))?;
        }
        Ok(network)
    }

    /// Limits both directions of the link.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn limit(&self, speed: Speed) -> Result<()> {
        for (mut command, name) in [(Command::new("tc"), NEAR.1), (self.command("tc".as_ref()), FAR.1)] {
            match speed {
                Speed::Unlimited => {
                    command.args(["qdisc", "replace", "dev", name, "root", "noqueue"]);
                }
                Speed::Megabits(megabits) => {
                    let (rate, burst) = (format!("{megabits}mbit"), Speed::burst_bytes(megabits).to_string());
                    command.args(["qdisc", "replace", "dev", name, "root", "tbf", "rate", &rate]);
                    command.args(["burst", &burst, "latency", QUEUE]);
                }
            }
            succeed(&mut command)?;
        }
        Ok(())
    }

    fn command(&self, program: &std::ffi::OsStr) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.pid())).arg("--").arg(program);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_have_the_names_that_people_use() {
        let names: Vec<_> = Speed::ALL.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["no limit", "10 Gbit/s", "1 Gbit/s", "100 Mbit/s"]);
    }

    /// A bucket smaller than what passes between two refills would make the link slower than it says.
    #[test]
    fn a_bucket_holds_what_passes_between_two_refills() {
        assert_eq!(Speed::burst_bytes(10_000), 10_000_000);
        assert_eq!(Speed::burst_bytes(100), 128 * 1024);
    }

    #[test]
    fn on_loopback_both_ends_are_one_host() {
        assert_eq!(Ends::LOOPBACK.far_address(), Ipv4Addr::LOCALHOST);
        assert_eq!(Ends::LOOPBACK.far_command("true").get_program(), "true");
    }
}
