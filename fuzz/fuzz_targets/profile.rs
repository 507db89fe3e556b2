//! An operator's profile: refused with words, or good for what comes after.
#![no_main]

use std::{collections::BTreeMap, path::Path};

use assay_common::profile::Profile;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Profile::parse(Path::new("own.toml"), text) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(profile) => {
            assert!(!profile.checks.is_empty());
            if let Ok(vars) = profile.bind(&BTreeMap::new(), &["main"]) {
                drop(profile.databases(&vars));
                drop(assay_common::profile::FileRules::new(&profile, &vars, &[]));
            }
        }
    }
});
