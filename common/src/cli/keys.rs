//! How `keys show` lists the pinned keys of an agent.

use std::{cmp::Ordering, path::Path};

use super::{CommandError, print, print_json};
use crate::{error::ShowPath, keyring::Keyring};

/// Prints the keys of `owner`, oldest first.
pub fn show_keys(owner: &str, file: &Path, keys: &Keyring, json: bool) {
    let mut text = format!("{owner} ({})\n", ShowPath(file));
    for (place, key) in keys.all().iter().enumerate() {
        let word = match place.cmp(&keys.current_place()) {
            Ordering::Less => "former",
            Ordering::Equal => "signs",
            Ordering::Greater => "announced",
        };
        if json {
            print_json(&serde_json::json!({ "owner": owner, "key": key.key_id(), "place": word }));
        } else {
            text += &format!("  {}  {word}\n", key.key_id());
        }
    }
    if !json {
        print(&text);
    }
}

/// Refuses a text of an operator that is too long to be signed.
///
/// # Errors
/// When it is.
pub fn checked_why(why: &str) -> Result<(), CommandError> {
    match why.len() <= crate::verdict::MAX_KEY_CHANGE_BYTES {
        true => Ok(()),
        false => Err(CommandError::usage(format!(
            "--why: must have at most {} bytes",
            crate::verdict::MAX_KEY_CHANGE_BYTES
        ))),
    }
}
