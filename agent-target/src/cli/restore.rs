//! `restore` at the target itself: out of the store's folder, with or without a running agent.

use std::{process::ExitCode, time::Instant};

use assay_common::{
    cli::{CommandError, Offered, RestoreArgs, all},
    config::no_such_repository,
    error::{Hint as _, ShowPath},
    keyring::Keyring,
    ledger::{EntryId, Ledger},
    signing::{KeyError, SigningKey},
    verdict::verify_verdict_with,
};

use crate::{
    config::Config,
    restore::{Done, Sealed, note},
};

pub(super) fn restore(
    config: &Config,
    mut arguments: RestoreArgs,
    json: bool,
) -> Result<ExitCode, CommandError> {
    let began = Instant::now();
    arguments.stores = vec![config.agent.store.clone()];
    let known = || {
        config.repositories.iter().map(|repository| repository.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let repository = match &config.repositories[..] {
        [only] if arguments.repository.is_empty() => only,
        all => all.iter().find(|it| it.name == all::real_name(&arguments.repository)).ok_or_else(|| {
            CommandError::usage(no_such_repository(&arguments.repository, "in the configuration"))
                .hint(format!("its repositories are: {}", known()))
        })?,
    };
    let store = config.agent.store.join(&repository.name);
    let generation =
        (arguments.generation > 0).then_some(assay_common::id::GenerationNumber(arguments.generation));
    let sealed = Sealed::open(&store, generation)
        .map_err(|error| CommandError { hint: error.hint(), ..CommandError::not_run(error.to_string()) })?;
    let root = sealed.root_digest().ok_or_else(|| {
        CommandError::not_run(format!("{}: the generation's record has no root digest", ShowPath(&store)))
    })?;
    let offered = Offered {
        repository: repository.name.clone(),
        generation: assay_common::id::GenerationNumber(sealed.record.generation),
        root,
        verdict: sealed.verdict.clone(),
        is_verified: sealed.is_verified,
    };
    // The keys that this host signs or signed with are those that its own verdicts must bear.
    let keys = own_keys(config)
        .map_err(|error| CommandError { hint: error.hint(), ..CommandError::usage(error.to_string()) })?;
    let source_keys = arguments.source_keys(|| Some(Keyring::load(&repository.source_key)))?;
    let vouched = arguments.believe(&offered, &keys, source_keys.as_ref())?;
    refuse_out_of_time(&store, &offered, &keys)?;
    if !json {
        assay_common::cli::print(&format!("{}\n", vouched.text));
    }
    let failed = |error: assay_common::error::PathError| CommandError::not_run(error.to_string());
    let (manifest, content) = (sealed.manifest().map_err(failed)?, sealed.content().map_err(failed)?);
    let ended = arguments.run(&offered, manifest, began, json, move |wants, parts| {
        // It ends when nobody wants anything any longer.
        drop(std::thread::spawn(move || content.answer(wants, &parts)));
    })?;
    let done = Done {
        time: jiff::Timestamp::now(),
        generation: offered.generation,
        seconds: ended.took.as_secs_f64(),
        files: ended.asked.0,
        total_bytes: ended.asked.1,
        received_bytes: ended.report.progress.fetched_bytes,
        complete: ended.is_complete(),
        by: "this host".to_owned(),
        unverified: vouched.unverified.clone(),
        unproven: vouched.unproven.is_some(),
    };
    if let Err(error) = note(&store, &done) {
        tracing::warn!(%error, "the restore cannot be noted");
    }
    Ok(arguments.show(&offered, &vouched, &ended, json))
}

/// The keys of this agent: the one that it signs with, and those that it had before.
///
/// # Errors
/// [`KeyError`].
pub(super) fn own_keys(config: &Config) -> Result<Keyring, KeyError> {
    let path = &config.agent.signing_key;
    Keyring::around(SigningKey::load(path)?.verifying_key(), path)
}

/// A verdict of a former key must stand in that key's time: whoever has stolen it could have put one into the ledger since.
fn refuse_out_of_time(
    store: &std::path::Path,
    offered: &Offered,
    keys: &Keyring,
) -> Result<(), CommandError> {
    let Some(envelope) = &offered.verdict else { return Ok(()) };
    let Ok(verified) = verify_verdict_with(envelope, keys, None) else { return Ok(()) };
    if verified.target_place == keys.current_place() {
        return Ok(());
    }
    let id = EntryId(verified.verdict.sequence);
    let chain = Ledger::at(&store.join("ledger"))
        .check(keys, None)
        .map_err(|error| CommandError { hint: error.hint(), ..CommandError::not_run(error.to_string()) })?;
    if chain.is_in_time_of_target(verified.target_place, id) {
        return Ok(());
    }
    let key = keys.all()[verified.target_place].key_id();
    Err(CommandError::not_run(format!(
        "verdict {id} is signed with key {key}, whose time had ended: it was replaced before"
    ))
    .hint("`assay-target ledger verify` shows the times of the keys; find out who has signed this, and check the generation again: assay-target verify"))
}
