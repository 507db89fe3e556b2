//! What a step sees of `/etc`: a list of what programs need to start, and three files that are made for it.
//!
//! Nothing else of `/etc` is shown, so no key is, whatever its name is and however it is renewed. A profile that needs more
//! names it in `[sandbox] visible`.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use assay_common::profile::TargetNames;

use crate::userns::Account;

/// Shown read-only where this host has it.
pub(super) const SHOWN: [&str; 28] = [
    // The dynamic loader.
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ld.so.preload",
    "/etc/alternatives",
    // Names.
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/protocols",
    "/etc/services",
    "/etc/networks",
    "/etc/shells",
    "/etc/login.defs",
    // Language and time.
    "/etc/localtime",
    "/etc/timezone",
    "/etc/locale.alias",
    "/etc/locale.conf",
    "/etc/default/locale",
    "/etc/inputrc",
    "/etc/terminfo",
    // What system this is.
    "/etc/os-release",
    "/etc/debian_version",
    "/etc/redhat-release",
    // Certificates of authorities, and which ciphers are allowed.
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust/extracted",
    "/etc/crypto-policies",
];

/// The host's names lead to an address even without a network.
pub(super) fn hosts(host_name: &str, target: &TargetNames) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in target.fqdn.iter().chain(&target.host).map(String::as_str).chain([host_name]) {
        let plain =
            !name.is_empty() && !name.contains(|it: char| it.is_whitespace() || it.is_control() || it == '#');
        if plain && !names.contains(&name) {
            names.push(name);
        }
    }
    let address =
        target.address.as_deref().filter(|it| it.parse::<std::net::IpAddr>().is_ok()).unwrap_or("127.0.1.1");
    let names = names.join(" ");
    format!("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{address} {names}\n")
}

/// The host's accounts without what is written about their people, and one for the step itself where its number has none.
pub(super) fn passwd(step: Account) -> String {
    let host = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut text = String::new();
    let mut has_own = false;
    for line in host.lines() {
        let fields: Vec<_> = line.split(':').collect();
        if let [name, _, uid, gid, _, home, shell] = fields[..] {
            has_own |= uid.parse() == Ok(step.uid);
            text.push_str(&format!("{name}:x:{uid}:{gid}::{home}:{shell}\n"));
        }
    }
    if !has_own {
        let home = super::sandbox::SCRATCH;
        text.push_str(&format!("assay-check:x:{}:{}::{home}:/bin/sh\n", step.uid, step.gid));
    }
    text
}

/// The host's groups without their members, and one for the step itself where its number has none.
pub(super) fn group(step: Account) -> String {
    let host = fs::read_to_string("/etc/group").unwrap_or_default();
    let mut text = String::new();
    let mut has_own = false;
    for line in host.lines() {
        let fields: Vec<_> = line.split(':').collect();
        if let [name, _, gid, _] = fields[..] {
            has_own |= gid.parse() == Ok(step.gid);
            text.push_str(&format!("{name}:x:{gid}:\n"));
        }
    }
    if !has_own {
        text.push_str(&format!("assay-check:x:{}:\n", step.gid));
    }
    text
}

/// Writes one of them, for everyone to read.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::File::options().write(true).create_new(true).mode(0o644).open(path)?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_shown_without_what_is_said_of_people() {
        let step = Account { uid: 1_234_567, gid: 7_654_321 };
        let (passwd, group) = (passwd(step), group(step));
        assert!(
            passwd.contains("\nassay-check:x:1234567:7654321::") && passwd.starts_with("root:x:0:0::"),
            "{passwd}"
        );
        assert!(passwd.lines().all(|line| line.split(':').nth(4) == Some("")), "{passwd}");
        assert!(group.contains("\nassay-check:x:7654321:\n"), "{group}");
        assert!(!self::passwd(Account { uid: 0, gid: 0 }).contains("assay-check"));
    }

    #[test]
    fn no_shown_path_is_one_of_secrets() {
        for path in SHOWN.map(Path::new) {
            assert_eq!(super::super::sandbox::reaches(path, &[]), None, "{}", path.display());
        }
    }
}
