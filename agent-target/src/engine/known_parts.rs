//! The step's side of [`crate::check::known`]: what it reads and what it leaves.

use std::{
    fs,
    io::{self, Read as _},
    path::Path,
};

use crate::check::known::{FILE, Found, Known};

/// Reads from the standard input which results the step may carry.
///
/// # Errors
/// If the input cannot be read, or has another form.
pub(super) fn read() -> io::Result<Known> {
    let mut text = Vec::new();
    io::stdin().lock().read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Writes to the scratch folder which parts the step checked and carried.
///
/// # Errors
/// If the file cannot be written.
pub(super) fn write(found: &Found, scratch: &Path) -> io::Result<()> {
    fs::write(scratch.join(FILE), serde_json::to_vec(found)?)
}
