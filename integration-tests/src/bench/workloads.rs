//! What is copied, in which order, and what comes out.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    rc::Rc,
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    assay::Assay,
    data::{self, Plan},
    discard::{discard, make_room},
    hosts::{self, Disk, Host},
    links,
    live::{Cost, LiveCopy},
    measure::Sample,
    network::{Network, Speed},
    postgres::{Changed, Cluster, changed_pages},
    process::succeed,
    real::Set,
    report::{self, CHANGED_PAGES, Row, WALL_AT_80_MS, WITHOUT_DELAY},
    rsync::{PLAIN, Rsync, Servers, VARIANTS, Variant, assert_equal},
    sparse::Sparse,
};

/// What a block of bytes takes over the slow link: half of its round trip.
const ONE_WAY: Duration = Duration::from_millis(40);
/// Of each of pgbench's clients, so that a few per cent of the pages change.
const TRANSACTIONS_PER_SCALE: u32 = 50;
/// How long pgbench works in each repetition.
const LOAD_SECONDS: u32 = 54;
/// Between two copies of a live cluster nothing is copied for so long: what a copy costs is told by what stands right before and
/// behind it, because a machine's own rate drifts by as much as that.
const PAUSE: Duration = Duration::from_millis(600);

/// One thing that backups have to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Workload {
    /// Everything is copied for the first time
    FirstCopy,
    /// Nothing has changed
    NoChange,
    /// An hour of work: 1 % appended to the tables, 1 % of the files new, 0.5 % edited, 0.5 % deleted
    Hour,
    /// One large text, three lines inserted
    LargeFile,
    /// A PostgreSQL data folder after a number of pgbench's transactions
    Postgres,
    /// A million tiny files: first copy and no change
    Million,
    /// A sparse file of 100 GB, of which 32 MiB are data: Assay alone
    Sparse,
    /// Small files, and an hour of work, over a link with a round trip of 80 ms
    Link,
    /// What copying costs a PostgreSQL that works meanwhile
    Live,
    /// First copies of made and real data, and an hour of work, over links of every speed
    Links,
}

impl Workload {
    /// All that run when none is named.
    pub const USUAL: [Self; 7] = [
        Self::FirstCopy,
        Self::NoChange,
        Self::Hour,
        Self::LargeFile,
        Self::Postgres,
        Self::Link,
        Self::Live,
    ];
    /// All that run when it has to be quick.
    pub const QUICK: [Self; 5] = [Self::FirstCopy, Self::NoChange, Self::Hour, Self::LargeFile, Self::Link];

    fn name(self) -> &'static str {
        match self {
            Self::FirstCopy => "first-copy",
            Self::NoChange => "no-change",
            Self::Hour => "hour",
            Self::LargeFile => "large-file",
            Self::Postgres => "postgres",
            Self::Million => "million",
            Self::Sparse => "sparse",
            Self::Link => "link",
            Self::Live => "live",
            Self::Links => "links",
        }
    }
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The workloads, in any order.
    pub workloads: Vec<Workload>,
    /// How often each is repeated.
    pub repetitions: usize,
    /// How much data there is.
    pub plan: Plan,
    /// The same for the slow link.
    pub link_plan: Plan,
    /// Scale of pgbench's tables.
    pub pgbench_scale: u32,
    /// Tiny files of the million.
    pub tiny_files: u32,
    /// The sparse file.
    pub sparse: Sparse,
    /// The data that goes over links of every speed.
    pub sets: Vec<Set>,
    /// How much of it is real data: bytes of each set.
    pub set_bytes: u64,
    /// How much of it the seed makes.
    pub set_plan: Plan,
    /// The speeds of those links.
    pub speeds: Vec<Speed>,
    /// Where everything is put; whoever made it removes it.
    pub folder: PathBuf,
    /// Where the agents' programs are.
    pub bin: PathBuf,
}

/// One program under test, with its own destination.
#[derive(Debug)]
pub(super) struct Tool {
    name: String,
    program: Program,
}

#[derive(Debug)]
enum Program {
    Assay(Assay),
    Rsync(Rsync),
}

impl Tool {
    pub(super) fn reset(&mut self) -> Result<()> {
        match &mut self.program {
            Program::Assay(assay) => assay.reset(),
            Program::Rsync(rsync) => rsync.reset(),
        }
    }

    fn remove(&mut self) -> Result<()> {
        match &mut self.program {
            Program::Assay(assay) => assay.remove(),
            Program::Rsync(rsync) => rsync.remove(),
        }
    }

    /// The source lives: that a file has vanished is no failure, and what the target does happens on another host.
    fn copy_from_a_live_host(&mut self, disk: &Disk) {
        match &mut self.program {
            Program::Assay(assay) => assay.apart = Some(disk.path().to_owned()),
            Program::Rsync(rsync) => rsync.live = true,
        }
    }

    fn run(&mut self, servers: &mut Servers) -> Result<Sample> {
        let sample = match &mut self.program {
            Program::Assay(assay) => assay.run(),
            Program::Rsync(rsync) => rsync.run(servers),
        };
        sample.with_context(|| self.name.clone())
    }
}

/// The tools of a workload, Assay first, and the tree that they copy.
#[derive(Debug)]
pub(super) struct Field {
    root: PathBuf,
    tools: Vec<Tool>,
}

impl Field {
    /// The backup host of every tool is at the other end of a link.
    pub(super) fn put_apart(&mut self, network: &Rc<Network>) {
        for tool in &mut self.tools {
            if let Program::Assay(assay) = &mut tool.program {
                assay.network = Some(Rc::clone(network));
            }
        }
    }

    /// Whether rsync's copies end when they are on the disk, as Assay's always do.
    pub(super) fn end_on_the_disk(&mut self, durable: bool) {
        for tool in &mut self.tools {
            if let Program::Rsync(rsync) = &mut tool.program {
                rsync.durable = durable;
            }
        }
    }
}

/// A driver at work.
#[derive(Debug)]
pub struct Bench {
    pub(super) options: Options,
    pub(super) servers: Servers,
    /// Hours of work that were done to the tree that goes over links.
    pub(super) hours_over_links: u64,
    rows: Vec<Row>,
}

impl Bench {
    /// Starts the servers that rsync needs.
    ///
    /// # Errors
    ///
    /// When one does not start.
    pub fn start(options: Options) -> Result<Self> {
        let destinations = options.folder.join("rsync");
        fs::create_dir_all(&destinations).with_context(|| destinations.display().to_string())?;
        let servers = Servers::start(&options.folder.join("servers"), &destinations)?;
        Ok(Self { options, servers, hours_over_links: 0, rows: Vec::new() })
    }

    /// Runs all workloads that were asked for, and returns their rows.
    ///
    /// # Errors
    ///
    /// When a tool fails, or what Assay has sealed is not what the source has.
    pub fn run(mut self) -> Result<Vec<Row>> {
        let wanted = self.options.workloads.clone();
        if [Workload::FirstCopy, Workload::NoChange, Workload::Hour].iter().any(|of| wanted.contains(of)) {
            self.tree()?;
        }
        if wanted.contains(&Workload::LargeFile) {
            self.large_file()?;
        }
        if wanted.contains(&Workload::Postgres) {
            self.postgres()?;
        }
        if wanted.contains(&Workload::Million) {
            self.million()?;
        }
        if wanted.contains(&Workload::Sparse) {
            self.sparse()?;
        }
        if wanted.contains(&Workload::Link) {
            self.link()?;
        }
        if wanted.contains(&Workload::Live) {
            self.live()?;
        }
        if links::is_wanted(&wanted)? {
            self.links()?;
        }
        Ok(self.rows)
    }

    /// First copy, no change and an hour of work build upon each other.
    fn tree(&mut self) -> Result<()> {
        let plan = self.options.plan;
        let root = self.options.folder.join("tree");
        say(&format!("making the tree from seed {} ...", plan.seed));
        data::make_tree(&root, &plan)?;
        describe(&root, &plan)?;
        let mut field = self.field(&root, &VARIANTS)?;
        if self.options.workloads.contains(&Workload::FirstCopy) {
            self.measure(Workload::FirstCopy.name(), &mut field, |tool| tool.reset(), |_| Ok(()))?;
        } else {
            self.copy_once(&mut field)?;
        }
        if self.options.workloads.contains(&Workload::NoChange) {
            self.measure(Workload::NoChange.name(), &mut field, |_| Ok(()), |_| Ok(()))?;
        }
        if self.options.workloads.contains(&Workload::Hour) {
            let work = |repetition| {
                let change = data::work_an_hour(&root, &plan, repetition)?;
                if repetition == 0 {
                    say(&format!(
                        "each hour: {} pages appended to each table, {} files new, {} edited, {} deleted, {} renamed, \
                         3 lines inserted in the dump",
                        change.pages, change.new, change.edited, change.deleted, change.renamed
                    ));
                }
                Ok(())
            };
            self.measure(Workload::Hour.name(), &mut field, |_| Ok(()), work)?;
        }
        finish(field)
    }

    fn large_file(&mut self) -> Result<()> {
        let plan = self.options.plan;
        let root = self.options.folder.join("large");
        data::make_dump(&root.join("dump.sql"), &plan)?;
        let mut field = self.field(&root, &VARIANTS)?;
        self.copy_once(&mut field)?;
        let insert = |repetition| data::insert_lines(&root.join("dump.sql"), plan.seed, repetition);
        self.measure(Workload::LargeFile.name(), &mut field, |_| Ok(()), insert)?;
        finish(field)
    }

    fn postgres(&mut self) -> Result<()> {
        let scale = self.options.pgbench_scale;
        let each = scale * TRANSACTIONS_PER_SCALE;
        say(&format!("making a PostgreSQL cluster with pgbench's tables of scale {scale} ..."));
        let mut cluster = Cluster::create(&self.options.folder.join("pg"), scale)?;
        cluster.stop()?;
        let root = cluster.data();
        let mut field = self.field(&root, &VARIANTS)?;
        self.copy_once(&mut field)?;
        let before = self.options.folder.join("before");
        let seed = self.options.plan.seed;
        let mut changed: Vec<Changed> = Vec::new();
        let work = |repetition| {
            if before.exists() {
                fs::remove_dir_all(&before).with_context(|| before.display().to_string())?;
            }
            succeed(Command::new("cp").arg("-a").args([&root, &before]))?;
            cluster.start()?;
            cluster.transactions(each, seed + repetition)?;
            cluster.stop()?;
            changed.push(changed_pages(&before, &root)?);
            Ok(())
        };
        let name = Workload::Postgres.name();
        let samples = self.measure(name, &mut field, |_| Ok(()), work)?;
        let compressed: Vec<f64> = changed.iter().map(|changed| changed.compressed_bytes as f64).collect();
        for (repetition, changed) in changed.iter().enumerate() {
            println!(
                "{name} {}: after 4 x {each} transactions {} pages of 8 KiB are new or different, {} with zstd -3",
                repetition + 1,
                changed.pages,
                report::amount(changed.compressed_bytes as f64, "B")
            );
        }
        let wire: Vec<f64> = samples[0].1.iter().map(|sample| sample.wire).collect();
        let least = Row::new(name, "wire", "B", &wire, &[(CHANGED_PAGES.to_owned(), compressed)]);
        if let Some(row) = self.rows.iter_mut().find(|row| row.workload == name && row.metric == "wire") {
            row.peers.extend(least.peers);
        }
        finish(field)?;
        fs::remove_dir_all(&before).with_context(|| before.display().to_string())
    }

    fn million(&mut self) -> Result<()> {
        let root = self.options.folder.join("tiny");
        say(&format!("making {} tiny files ...", self.options.tiny_files));
        data::make_tiny_files(&root, self.options.plan.seed, self.options.tiny_files)?;
        let mut field = self.field(&root, &[PLAIN])?;
        self.measure("million, first copy", &mut field, |tool| tool.reset(), |_| Ok(()))?;
        self.measure("million, no change", &mut field, |_| Ok(()), |_| Ok(()))?;
        finish(field)
    }

    /// rsync would read the holes, for minutes: what this shows is the agents' memory.
    fn sparse(&mut self) -> Result<()> {
        let (name, sparse) = (Workload::Sparse.name(), self.options.sparse);
        let root = self.options.folder.join("sparse");
        sparse.make(&root.join("file"))?;
        let mut tool = self.assay("Assay", "assay", &root, None);
        let mut samples = Vec::new();
        for repetition in 0..self.options.repetitions {
            tool.reset()?;
            let sample = tool.run(&mut self.servers).with_context(|| name.to_owned())?;
            say(&format!("{name} {}/{}: {:.2} s", repetition + 1, self.options.repetitions, sample.wall));
            samples.push(sample);
            if let Program::Assay(assay) = &tool.program {
                sparse.verify(&assay.latest().join("file"))?;
            }
        }
        self.rows.extend(report::rows(name, &[(tool.name.clone(), samples)]));
        finish(Field { root, tools: vec![tool] })
    }

    /// The same over a link without and with a delay, both through our proxy.
    fn link(&mut self) -> Result<()> {
        let plan = self.options.link_plan;
        let root = self.options.folder.join("link-files");
        data::make_small_files(&root, &plan)?;
        let mut field = self.slow_field(&root)?;
        let samples = self.sample("link-files", &mut field, |tool| tool.reset(), |_| Ok(()))?;
        self.link_rows("link-files", &samples);
        finish(field)?;

        let root = self.options.folder.join("link-tree");
        data::make_tree(&root, &plan)?;
        let mut field = self.slow_field(&root)?;
        self.copy_once(&mut field)?;
        let work = |repetition| data::work_an_hour(&root, &plan, repetition).map(drop);
        let samples = self.sample("link-hour", &mut field, |_| Ok(()), work)?;
        self.link_rows("link-hour", &samples);
        finish(field)
    }

    /// Only the wall clock: the proxy doubles the bytes on loopback, and its own time is nobody's.
    fn link_rows(&mut self, name: &str, samples: &[(String, Vec<Sample>)]) {
        let wall = |number: usize| {
            let (name, samples): &(String, Vec<Sample>) = &samples[number];
            (name.clone(), samples.iter().map(|sample| sample.wall).collect::<Vec<_>>())
        };
        let (fast, slow) = (wall(0), wall(1));
        self.rows.push(Row::new(name, "wall, 0 ms", "s", &fast.1, &[wall(2)]));
        self.rows.push(Row::new(name, "wall, 80 ms", "s", &slow.1, &[wall(3)]));
        self.rows.push(Row::new(name, WALL_AT_80_MS, "s", &slow.1, &[fast]));
    }

    fn live(&mut self) -> Result<()> {
        let folder = self.options.folder.clone();
        // Where the destinations of rsync are looked for.
        let disk = Disk::mount(&folder.join("rsync/backup-host"))?;
        let servers = || Servers::start(&folder.join("live-servers"), &folder.join("rsync"));
        let mut servers = hosts::on(Host::Backup, servers)??;
        hosts::on(Host::Live, || self.live_with(&mut servers, &disk))?
    }

    /// With servers that are on the backup host, from the live one.
    fn live_with(&mut self, servers: &mut Servers, disk: &Disk) -> Result<()> {
        let name = Workload::Live.name();
        let mut cluster = Cluster::create(&self.options.folder.join("live"), self.options.pgbench_scale)?;
        let root = cluster.data();
        let tools = vec![
            self.assay("Assay", "assay", &root, None),
            self.rsync(PLAIN.name, "backup-host/copy", PLAIN, &root, None)?,
        ];
        let mut field = Field { root: root.clone(), tools };
        for tool in &mut field.tools {
            tool.copy_from_a_live_host(disk);
            tool.reset()?;
            tool.run(servers)?;
        }
        let mut costs: Vec<Vec<Cost>> = vec![Vec::new(); field.tools.len()];
        for repetition in 0..self.options.repetitions {
            rustix::fs::sync();
            let mut copies: Vec<LiveCopy> = Vec::new();
            let transactions =
                cluster.load(LOAD_SECONDS, self.options.plan.seed + repetition as u64, || {
                    pause();
                    let tool = (repetition + copies.len()) % field.tools.len();
                    let start = since_1970()?;
                    let cpu = field.tools[tool].run(servers)?.source_cpu;
                    copies.push(LiveCopy { tool, time: start..since_1970()?, cpu });
                    Ok(())
                })?;
            for (number, tool) in field.tools.iter().enumerate() {
                let cost = Cost::of(number, &copies, &transactions);
                ensure!(cost.copies > 0.0, "{}: no copy was made while pgbench worked", tool.name);
                say(&format!(
                    "{name} {}: {} copied {} times, each {:.2} s of its processor; {:.0} of {:.0} transactions meanwhile",
                    repetition + 1,
                    tool.name,
                    cost.copies,
                    cost.cpu / cost.copies,
                    cost.ended,
                    cost.expected
                ));
                costs[number].push(cost);
            }
            say(&format!(
                "{name} {}: {} transactions in {LOAD_SECONDS} s",
                repetition + 1,
                transactions.count()
            ));
        }
        cluster.stop()?;
        if let Some(Tool { program: Program::Assay(assay), .. }) = field.tools.first_mut() {
            assay.run()?;
            assert_equal(&root, &assay.latest())?;
        }
        type Figure = fn(&Cost) -> f64;
        let rows: [(_, _, Figure); 3] = [
            ("transactions lost", "%", |cost| (1.0 - cost.ended / cost.expected) * 100.0),
            ("cpu, source", "s", |cost| cost.cpu / cost.copies),
            // Whoever is done sooner loses them for a shorter time.
            ("lost by a copy", "", |cost| (cost.expected - cost.ended) / cost.copies),
        ];
        for (metric, unit, of) in rows {
            let of_tool = |number: usize| costs[number].iter().map(of).collect::<Vec<_>>();
            let rsync = [(PLAIN.name.to_owned(), of_tool(1))];
            self.rows.push(Row::new(name, metric, unit, &of_tool(0), &rsync));
        }
        finish(field)
    }

    /// Assay and variants of rsync for one tree.
    pub(super) fn field(&self, root: &Path, variants: &[Variant]) -> Result<Field> {
        let mut tools = vec![self.assay("Assay", "assay", root, None)];
        for (number, variant) in variants.iter().enumerate() {
            tools.push(self.rsync(variant.name, &format!("copy{number}"), *variant, root, None)?);
        }
        Ok(Field { root: root.to_owned(), tools })
    }

    /// Assay without and with the delay, then rsync without and with it.
    fn slow_field(&self, root: &Path) -> Result<Field> {
        let (fast, slow) = (Some(Duration::ZERO), Some(ONE_WAY));
        let tools = vec![
            self.assay(WITHOUT_DELAY, "assay-0", root, fast),
            self.assay("Assay, 80 ms", "assay-80", root, slow),
            self.rsync("rsync -az (ssh), 0 ms", "copy-0", PLAIN, root, fast)?,
            self.rsync("rsync -az (ssh), 80 ms", "copy-80", PLAIN, root, slow)?,
        ];
        Ok(Field { root: root.to_owned(), tools })
    }

    fn assay(&self, name: &str, folder: &str, root: &Path, delay: Option<Duration>) -> Tool {
        let assay = Assay::new(&self.options.bin, &self.options.folder.join(folder), root, delay);
        Tool { name: name.to_owned(), program: Program::Assay(assay) }
    }

    fn rsync(
        &self,
        name: &str,
        folder: &str,
        variant: Variant,
        root: &Path,
        delay: Option<Duration>,
    ) -> Result<Tool> {
        let destination = self.options.folder.join("rsync").join(folder);
        let rsync = self.servers.rsync(variant, root, &destination, delay)?;
        Ok(Tool { name: name.to_owned(), program: Program::Rsync(rsync) })
    }

    /// Brings every tool to the state from which the measured copies start.
    fn copy_once(&mut self, field: &mut Field) -> Result<()> {
        for tool in &mut field.tools {
            tool.reset()?;
            tool.run(&mut self.servers)?;
        }
        Ok(())
    }

    /// Samples, and makes rows of all of it.
    pub(super) fn measure(
        &mut self,
        name: &str,
        field: &mut Field,
        prepare: impl FnMut(&mut Tool) -> Result<()>,
        change: impl FnMut(u64) -> Result<()>,
    ) -> Result<Vec<(String, Vec<Sample>)>> {
        let samples = self.sample(name, field, prepare, change)?;
        self.rows.extend(report::rows(name, &samples));
        Ok(samples)
    }

    /// Runs every tool in every repetition, each time with another one first.
    fn sample(
        &mut self,
        name: &str,
        field: &mut Field,
        mut prepare: impl FnMut(&mut Tool) -> Result<()>,
        mut change: impl FnMut(u64) -> Result<()>,
    ) -> Result<Vec<(String, Vec<Sample>)>> {
        let mut samples: Vec<(String, Vec<Sample>)> =
            field.tools.iter().map(|tool| (tool.name.clone(), Vec::new())).collect();
        let count = field.tools.len();
        for repetition in 0..self.options.repetitions {
            make_room(&[&self.options.folder, &self.options.folder.join("rsync")])?;
            change(repetition as u64)?;
            data::read_once(&field.root)?;
            for place in 0..count {
                let number = (repetition + place) % count;
                let tool = &mut field.tools[number];
                prepare(tool)?;
                // What others have written is not to be flushed in the time of this one.
                rustix::fs::sync();
                let sample = tool.run(&mut self.servers).with_context(|| name.to_owned())?;
                say(&format!(
                    "{name} {}/{}: {} {:.2} s",
                    repetition + 1,
                    self.options.repetitions,
                    tool.name.clone(),
                    sample.wall
                ));
                samples[number].1.push(sample);
            }
        }
        for tool in &field.tools {
            if let Program::Assay(assay) = &tool.program {
                assert_equal(&field.root, &assay.latest())?;
            }
        }
        println!(
            "{name}: the newest generation is what the source has; Assay's phases: {}",
            report::phases(&samples[0].1)
        );
        Ok(samples)
    }
}

/// Removes the copies and the tree: the next workload needs the room.
pub(super) fn finish(mut field: Field) -> Result<()> {
    for tool in &mut field.tools {
        tool.remove()?;
    }
    discard(&field.root)
}

fn describe(root: &Path, plan: &Plan) -> Result<()> {
    let size = |name: &str| data::size_of(&root.join(name));
    let (small, tables, all) = (size("small")?, size("tables")?, data::size_of(root)?);
    let dump = fs::metadata(root.join("dump.sql")).context("dump.sql")?.len();
    let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    println!(
        "data from seed {}: {} files, {}: {} small files of {} (half of them text), {} tables of {}, a dump of {}",
        plan.seed,
        all.files,
        megabytes(all.bytes),
        small.files,
        megabytes(small.bytes),
        tables.files,
        megabytes(tables.bytes / tables.files.max(1)),
        megabytes(dump)
    );
    Ok(())
}

/// Nothing is waited for: how pgbench does in this time is what is measured.
#[allow(clippy::disallowed_methods, reason = "the pause itself is measured")]
fn pause() {
    thread::sleep(PAUSE);
}

/// What pgbench's log counts in.
fn since_1970() -> Result<Duration> {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("the clock")
}

/// Progress goes to standard error: standard output is for what came out.
pub(super) fn say(text: &str) {
    eprintln!("{text}");
}
