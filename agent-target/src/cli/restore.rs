//! `restore` at the target itself: out of the store's folder, with or without a running agent.

use std::{process::ExitCode, time::Instant};

use assay_common::{
    cli::{CommandError, Offered, RestoreArgs},
    config::no_such_repository,
    error::{Hint as _, ShowPath},
    signing::{SigningKey, VerifyingKey},
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
        all => all.iter().find(|repository| repository.name == arguments.repository).ok_or_else(|| {
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
    // The key that this host signs with is the one that its own verdicts must bear.
    let key = SigningKey::load(&config.agent.signing_key)
        .map_err(|error| CommandError { hint: error.hint(), ..CommandError::usage(error.to_string()) })?;
    let source_key = arguments.source_key(|| Some(VerifyingKey::load(&repository.source_key)))?;
    let vouched = arguments.believe(&offered, &key.verifying_key(), source_key.as_ref())?;
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
