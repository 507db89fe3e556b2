//! What is copied, in which order, and what comes out.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    assay::Assay,
    data::{self, Plan},
    measure::Sample,
    report::{self, Row},
    rsync::{Rsync, Servers, VARIANTS, assert_equal},
};

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
}

impl Workload {
    /// All that run when none is named.
    pub const USUAL: [Self; 4] = [Self::FirstCopy, Self::NoChange, Self::Hour, Self::LargeFile];

    fn name(self) -> &'static str {
        match self {
            Self::FirstCopy => "first-copy",
            Self::NoChange => "no-change",
            Self::Hour => "hour",
            Self::LargeFile => "large-file",
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
    /// Where everything is put; whoever made it removes it.
    pub folder: PathBuf,
    /// Where the agents' programs are.
    pub bin: PathBuf,
}

/// One program under test, with its own destination.
#[derive(Debug)]
enum Tool {
    Assay(Assay),
    Rsync(Rsync),
}

impl Tool {
    fn name(&self) -> String {
        match self {
            Self::Assay(_) => "Assay".to_owned(),
            Self::Rsync(rsync) => rsync.variant.name.to_owned(),
        }
    }

    fn reset(&mut self) -> Result<()> {
        match self {
            Self::Assay(assay) => assay.reset(),
            Self::Rsync(rsync) => rsync.reset(),
        }
    }

    fn remove(&mut self) -> Result<()> {
        match self {
            Self::Assay(assay) => assay.remove(),
            Self::Rsync(rsync) => rsync.remove(),
        }
    }

    fn run(&mut self, servers: &mut Servers) -> Result<Sample> {
        match self {
            Self::Assay(assay) => assay.run(),
            Self::Rsync(rsync) => rsync.run(servers),
        }
    }
}

/// The tools of a workload, Assay first, and the tree that they copy.
#[derive(Debug)]
struct Field {
    root: PathBuf,
    tools: Vec<Tool>,
}

/// A driver at work.
#[derive(Debug)]
pub struct Bench {
    options: Options,
    servers: Servers,
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
        Ok(Self { options, servers, rows: Vec::new() })
    }

    /// Runs all workloads that were asked for, and returns their rows.
    ///
    /// # Errors
    ///
    /// When a tool fails, or what Assay has sealed is not what the source has.
    pub fn run(mut self) -> Result<Vec<Row>> {
        let wanted = |workload| self.options.workloads.contains(&workload);
        if wanted(Workload::FirstCopy) || wanted(Workload::NoChange) || wanted(Workload::Hour) {
            self.tree()?;
        }
        if self.options.workloads.contains(&Workload::LargeFile) {
            self.large_file()?;
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
            self.measure(Workload::FirstCopy.name(), &mut field, |tool, _| tool.reset(), |_| Ok(()))?;
        } else {
            self.copy_once(&mut field)?;
        }
        if self.options.workloads.contains(&Workload::NoChange) {
            self.measure(Workload::NoChange.name(), &mut field, |_, _| Ok(()), |_| Ok(()))?;
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
            self.measure(Workload::Hour.name(), &mut field, |_, _| Ok(()), work)?;
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
        self.measure(Workload::LargeFile.name(), &mut field, |_, _| Ok(()), insert)?;
        finish(field)
    }

    /// Assay and variants of rsync for one tree.
    fn field(&self, root: &Path, variants: &[super::rsync::Variant]) -> Result<Field> {
        self.field_over(root, variants, None)
    }

    fn field_over(
        &self,
        root: &Path,
        variants: &[super::rsync::Variant],
        delay: Option<Duration>,
    ) -> Result<Field> {
        let link = delay.map_or_else(String::new, |delay| format!("-{}ms", delay.as_millis()));
        let folder = self.options.folder.join(format!("assay{link}"));
        let mut tools = vec![Tool::Assay(Assay::new(&self.options.bin, &folder, root, delay))];
        for (number, variant) in variants.iter().enumerate() {
            let destination = self.options.folder.join(format!("rsync/copy{number}{link}"));
            tools.push(Tool::Rsync(self.servers.rsync(*variant, root, &destination, delay)?));
        }
        Ok(Field { root: root.to_owned(), tools })
    }

    /// Brings every tool to the state from which the measured copies start.
    fn copy_once(&mut self, field: &mut Field) -> Result<()> {
        for tool in &mut field.tools {
            tool.reset()?;
            tool.run(&mut self.servers).with_context(|| tool.name())?;
        }
        Ok(())
    }

    /// Measures every tool in every repetition, each time with another one first.
    fn measure(
        &mut self,
        name: &str,
        field: &mut Field,
        mut prepare: impl FnMut(&mut Tool, usize) -> Result<()>,
        mut change: impl FnMut(u64) -> Result<()>,
    ) -> Result<Vec<(String, Vec<Sample>)>> {
        let mut samples: Vec<(String, Vec<Sample>)> =
            field.tools.iter().map(|tool| (tool.name(), Vec::new())).collect();
        let count = field.tools.len();
        for repetition in 0..self.options.repetitions {
            change(repetition as u64)?;
            data::read_once(&field.root)?;
            for place in 0..count {
                let number = (repetition + place) % count;
                let tool = &mut field.tools[number];
                prepare(tool, repetition)?;
                // What others have written is not to be flushed in the time of this one.
                rustix::fs::sync();
                let sample =
                    tool.run(&mut self.servers).with_context(|| format!("{name}: {}", tool.name()))?;
                say(&format!(
                    "{name} {}/{}: {} {:.2} s",
                    repetition + 1,
                    self.options.repetitions,
                    tool.name(),
                    sample.wall
                ));
                samples[number].1.push(sample);
            }
        }
        for tool in &field.tools {
            if let Tool::Assay(assay) = tool {
                assert_equal(&field.root, &assay.latest())?;
            }
        }
        say(&format!(
            "{name}: the newest generation is what the source has; phases: {}",
            report::phases(&samples[0].1)
        ));
        self.rows.extend(report::rows(name, &samples));
        Ok(samples)
    }
}

/// Removes the copies and the tree: the next workload needs the room.
fn finish(mut field: Field) -> Result<()> {
    for tool in &mut field.tools {
        tool.remove()?;
    }
    fs::remove_dir_all(&field.root).with_context(|| field.root.display().to_string())
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

/// Progress goes to standard error: standard output is for what came out.
fn say(text: &str) {
    eprintln!("{text}");
}
