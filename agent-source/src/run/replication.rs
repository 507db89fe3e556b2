//! The content of a run: the basis that it is compared with, what is sent, and what it may drop.

use std::{collections::HashSet, sync::Arc};

use assay_common::{
    digest::RootDigest, error::IoContext as _, limits::MAX_MANIFEST_BYTES, tls::Meter, verdict::STATEMENTS,
};
use assay_proto::v1::{FetchManifestRequest, OpenRunRequest, OpenRunResponse, TransferStart};

use super::{Attempt, Client, Fault, PROTOCOL, fault, fetch, progress, roots};
use crate::{
    mark::Marker,
    replicate::{
        Plan, ReplicateError, Replicated, readings::Rereading, replicate, spool, transfer::TransferError,
    },
};

/// How often content is sent from its start in one run: anew when the target agent was restarted, or has lost what a file was
/// to share with the base.
const ATTEMPTS: usize = 5;

impl Attempt {
    /// Makes sure that the local basis is the target's base. False when there is none.
    pub(super) async fn prepare_basis(
        &self,
        client: &mut Client,
        opened: &OpenRunResponse,
    ) -> Result<bool, Fault> {
        let state = &self.context.state;
        state.next_basis().clear()?;
        if opened.base_generation == 0 {
            return Ok(false);
        }
        let base = RootDigest::from_slice(&opened.base_root_digest)
            .ok_or_else(|| Fault::protocol("the base's root digest has 32 bytes"))?;
        let basis = state.basis();
        if tokio::task::block_in_place(|| state.has_basis_of(base)) {
            return Ok(true);
        }
        tracing::info!(generation = opened.base_generation, "the base's manifest is fetched");
        basis.clear()?;
        let request = FetchManifestRequest {
            repository: self.context.repository.name.clone(),
            generation: opened.base_generation,
        };
        let patience = self.context.transfer.patience;
        let path = basis.manifest();
        let fetching = async {
            let parts = tokio::time::timeout(patience, client.fetch_manifest(request)).await;
            let parts = parts.unwrap_or_else(|_| Err(fault::silent(patience))).map_err(Fault::opening)?;
            fetch::manifest(parts.into_inner(), &path, base, MAX_MANIFEST_BYTES, patience).await
        };
        tokio::select! {
            fetched = fetching => fetched?,
            () = self.cancel.cancelled() => return Err(Fault::cancelled()),
        }
        basis.set_root_digest(base)?;
        Ok(true)
    }

    /// Replicates, and begins again when the target agent was restarted meanwhile, or lacks what was let go here and has
    /// changed: files are read again then, and what had arrived is found in the staging area and not sent again.
    pub(super) async fn replicate_all(
        &self,
        client: &Client,
        opened: &OpenRunResponse,
        marker: &Marker,
        copied: &roots::Copied,
        basis_known: bool,
        wire: &Meter,
    ) -> Result<Replicated, Fault> {
        let mut rotten: HashSet<Vec<u8>> = opened.rotten.iter().cloned().collect();
        // A full run takes nobody's word.
        let mut fingerprints = !self.options.full_read;
        for _ in 0..ATTEMPTS {
            match self
                .replicate(client.clone(), (&rotten, fingerprints), marker, copied, basis_known, wire)
                .await
            {
                Err(ReplicateError::Transfer(TransferError::TargetRestarted)) => {
                    tracing::warn!("the target was restarted; the run is taken up again");
                }
                // It compares every piece when the run is opened again.
                Err(ReplicateError::Transfer(TransferError::BaseRotten(status))) => {
                    tracing::warn!(status = status.message(), "the run is taken up again");
                    // Or it was a piece that only looked like one of the base.
                    fingerprints = false;
                }
                Err(ReplicateError::Transfer(TransferError::Changed { path })) => {
                    tracing::warn!(%path, "the target's disk has not kept it, and it has changed: the run is taken up again");
                    rotten.insert(path.into_bytes());
                }
                Err(ReplicateError::Cancelled) if self.cancel.is_cancelled() => {
                    return Err(Fault::cancelled());
                }
                ended => return Ok(ended?),
            }
            let again = self.open_again(client.clone()).await?;
            let same =
                again.generation == opened.generation && again.base_root_digest == opened.base_root_digest;
            if !same {
                let text = "the target's store changed while content was sent";
                return Err(Fault::not_run("target-changed", text));
            }
            rotten.extend(again.rotten);
        }
        let text = format!("the run was taken up {ATTEMPTS} times and did not come to its end");
        Err(Fault::not_run("target-unstable", text)
            .hint("the target's log says why: it was restarted, or its disk loses what was sealed"))
    }

    pub(super) async fn open_again(&self, mut client: Client) -> Result<OpenRunResponse, Fault> {
        let patience = self.context.transfer.patience;
        let mut request = OpenRunRequest {
            repository: self.context.repository.name.clone(),
            run_id: self.id.to_string(),
            protocol: PROTOCOL,
            nonce: self.nonce.0.to_vec(),
            statements: STATEMENTS,
            accept_history: self.options.accept_history,
            full_check: self.options.full_check,
            ..Default::default()
        };
        self.context.state.history().show(&mut request);
        loop {
            let opened = tokio::select! {
                opened = client.open_run(request.clone()) => opened,
                () = tokio::time::sleep(patience) => Err(fault::silent(patience)),
                () = self.cancel.cancelled() => return Err(Fault::cancelled()),
            };
            match opened {
                Ok(opened) => {
                    self.waits(String::new());
                    return Ok(opened.into_inner());
                }
                Err(status) if self.waits_for_target(&status).await? => {}
                Err(status) => return Err(Fault::opening(status)),
            }
        }
    }

    async fn replicate(
        &self,
        client: Client,
        (rotten, fingerprints): (&HashSet<Vec<u8>>, bool),
        marker: &Marker,
        copied: &roots::Copied,
        basis_known: bool,
        wire: &Meter,
    ) -> Result<Replicated, ReplicateError> {
        let context = &self.context;
        let mark = match marker.files() {
            None => None,
            Some(path) => {
                let folder = assay_common::confined::Folder::open(path).at("open", path);
                Some(Arc::new(folder.map_err(spool::SpoolError::from)?))
            }
        };
        let (within, rate) = (context.repository.reread_within, context.repository.reread_bytes_per_second);
        let basis = basis_known.then(|| context.state.basis());
        let plan = Plan {
            rereading: Rereading::begin(basis.as_ref(), within, rate),
            header: context.repository.header.clone(),
            roots: copied.folders.clone(),
            mark,
            late_files: marker.late_files(),
            rules: Arc::new(context.repository.rules()),
            ground: copied.ground.clone(),
            basis,
            filter: Arc::clone(&self.filter),
            filtered_otherwise: self.filtered_otherwise,
            full_read: self.options.full_read,
            rotten: rotten.clone(),
            fingerprints,
            work: context.state.work(),
            threads: context.threads,
            memory: context.memory.clone(),
            transfer: context.transfer.clone(),
        };
        let start =
            TransferStart { repository: context.repository.name.clone(), run_id: self.id.to_string() };
        let work = replicate(client, start, plan, Arc::clone(&self.counters), self.cancel.clone());
        tokio::pin!(work);
        let mut tick = tokio::time::interval(progress::TICK);
        loop {
            tokio::select! {
                done = &mut work => {
                    self.count(wire);
                    return done;
                }
                _ = tick.tick() => self.count(wire),
            }
        }
    }

    /// The safety stop: a run that drops most of the tree is more likely an unmounted folder or a disaster than work.
    pub(super) fn check_drops(&mut self, replicated: &Replicated) -> Result<(), Fault> {
        let limit = self.context.repository.max_drop_percent;
        if replicated.gone * 100 > replicated.basis_entries * u64::from(limit) {
            if !self.options.allow_mass_drop {
                return Err(Fault::mass_drop(
                    replicated.gone,
                    replicated.basis_entries,
                    limit,
                    replicated.moved,
                ));
            }
            self.overrides.push("allow_mass_drop".to_owned());
        }
        Ok(())
    }
}
