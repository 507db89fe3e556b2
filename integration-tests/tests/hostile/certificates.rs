//! Certificates of agents that run: renewed, broken, somebody else's, near their end; and TLS before 1.3.

use std::{
    fs,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use assay_common::{
    pki::{Certificate, Party, Role, issue},
    tls::{ConnectOptions, TlsFiles, connect},
};
use assay_proto::v1::{GetStatusRequest, source_service_client::SourceServiceClient};
use integration_tests::evil::source::{Act, EvilSource, Meanwhile, Tree};

use crate::{
    ground::{Ground, agent_url},
    pair::{Pair, eventually, json},
};

const AGENTS: [(&str, Role); 2] = [("source", Role::Source), ("target", Role::Target)];

fn hang_up(pair: &Pair, agent: &str) {
    let id = rustix::process::Pid::from_raw(pair.process(agent).try_into().expect("a process id"));
    rustix::process::kill_process(id.expect("not 0"), rustix::process::Signal::HUP).expect("it runs");
}

fn logged(pair: &Pair, agent: &str, words: &str) -> usize {
    fs::read_to_string(pair.path(&format!("{agent}.log"))).expect("log").matches(words).count()
}

fn status(pair: &Pair, agent: &str) -> serde_json::Value {
    let arguments = ["--json", "status"];
    let done = if agent == "source" { pair.source(&arguments) } else { pair.target(&arguments) };
    assert_eq!(done.code, 0, "{done:?}");
    json(&done.stdout)
}

/// Issues a certificate for a week under another name of the file, and puts it in the place of the agent's own.
fn renew(pair: &Pair, agent: &str, role: Role, name: &str) {
    let week = Duration::from_secs(7 * 24 * 3600);
    let party = Party { name: name.to_owned(), hosts: vec!["127.0.0.1".to_owned()] };
    issue(&pair.path("pki"), pair.authority(), role, &party, week, jiff::Timestamp::now()).expect("issue");
    for end in ["crt", "key"] {
        let new = pair.path(&format!("pki/{agent}-{name}.{end}"));
        fs::rename(new, pair.path(&format!("pki/{agent}.{end}"))).expect("rename");
    }
}

/// An agent that runs takes a renewed certificate for every connection from then on, and keeps the old one when the new one is
/// broken or somebody else's.
#[test]
fn a_renewed_certificate_is_taken_and_a_broken_one_refused() {
    let pair = Pair::plain(1);
    fs::write(pair.root(0).join("file"), "good").expect("write");
    for (agent, role) in AGENTS {
        let before = status(&pair, agent)["certificateExpires"].clone();
        assert!(before.is_string(), "{before}");
        // The authority's own end comes first: it was made for a day. What was read is told by the log.
        renew(&pair, agent, role, agent);
        hang_up(&pair, agent);
        pair.eventually("it is taken", || logged(&pair, agent, "the certificate was reloaded") == 1);
        let served = served_by(&pair, agent);
        assert_eq!(served, fingerprint(&pair, &format!("pki/{agent}.crt")), "{agent}");

        let good = fs::read(pair.path(&format!("pki/{agent}.crt"))).expect("read");
        fs::write(pair.path(&format!("pki/{agent}.crt")), "broken").expect("write");
        hang_up(&pair, agent);
        pair.eventually("it is refused", || logged(&pair, agent, "certificate is REFUSED") == 1);
        assert_eq!(served_by(&pair, agent), served, "{agent}: the old one is kept");
        assert_eq!(logged(&pair, agent, "does not hold a certificate"), 1);

        renew(&pair, agent, role, "stranger");
        hang_up(&pair, agent);
        pair.eventually("it is refused", || logged(&pair, agent, "it is somebody else's") == 1);
        assert_eq!(served_by(&pair, agent), served, "{agent}: the old one is kept");

        renew(&pair, agent, role, agent);
        fs::write(pair.path("spare.crt"), good).expect("write");
        hang_up(&pair, agent);
        pair.eventually("it is taken", || logged(&pair, agent, "the certificate was reloaded") == 2);
        assert_ne!(served_by(&pair, agent), served, "{agent}: the new one is served");
    }
    // Both work together with what they have now.
    pair.run(0);
}

/// The certificate that an agent shows.
fn served_by(pair: &Pair, agent: &str) -> String {
    let shown = s_client(pair, agent, &[]);
    let mut x509 = Command::new("openssl")
        .args(["x509", "-noout", "-fingerprint", "-sha256"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("openssl is installed by ./test");
    std::io::Write::write_all(&mut x509.stdin.take().expect("piped"), shown.as_bytes()).expect("write");
    let output = x509.wait_with_output().expect("openssl");
    assert!(output.status.success(), "{shown}");
    String::from_utf8(output.stdout).expect("text")
}

fn fingerprint(pair: &Pair, file: &str) -> String {
    let output = Command::new("openssl")
        .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
        .arg(pair.path(file))
        .output()
        .expect("openssl is installed by ./test");
    String::from_utf8(output.stdout).expect("text")
}

fn s_client(pair: &Pair, agent: &str, further: &[&str]) -> String {
    let url = agent_url(pair, agent);
    let output = Command::new("openssl")
        .args(["s_client", "-alpn", "h2", "-connect", url.trim_start_matches("https://")])
        .args(["-CAfile", "pki/ca.crt", "-cert", "pki/operator.crt", "-key", "pki/operator.key"])
        .args(further)
        .current_dir(pair.path("."))
        .stdin(Stdio::null())
        .output()
        .expect("openssl is installed by ./test");
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Versions before 1.3 are refused, with a right certificate too.
#[test]
fn tls_before_1_3_is_refused() {
    let pair = Pair::plain(1);
    for (agent, _) in AGENTS {
        let shown = s_client(&pair, agent, &["-tls1_3"]);
        assert!(shown.contains("TLSv1.3") && shown.contains("Verify return code: 0"), "{shown}");
        let shown = s_client(&pair, agent, &["-tls1_2"]);
        assert!(shown.contains("alert protocol version"), "{shown}");
    }
}

/// The tests' certificates are for a day: the log warns of it, and so does the status.
#[test]
fn the_end_of_a_certificate_is_warned_of() {
    let pair = Pair::plain(1);
    for (agent, _) in AGENTS {
        let text = "this agent's certificate, one that it needs, or its CA's expires in 24 hours";
        assert_eq!(logged(&pair, agent, text), 1);
        let done = if agent == "source" { pair.source(&["status"]) } else { pair.target(&["status"]) };
        assert!(done.stdout.contains("WARNING: this agent's certificate"), "{done:?}");
    }
}

/// An agent does not start with a key that others could have put there.
#[test]
fn a_key_in_a_folder_of_somebody_else_is_refused() {
    let pair = Pair::plain(1);
    std::os::unix::fs::chown(pair.path("pki"), Some(1), None).expect("the tests are root's");
    for (agent, _) in AGENTS {
        let done = pair.refused_start(agent);
        assert_eq!(done.code, 4, "{done:?}");
        for words in
            ["can be replaced by others (it belongs to the user 1)", "HINT: let root or the agent's own user"]
        {
            assert!(done.stderr.contains(words), "{words:?} is missing in {done:?}");
        }
    }
}

/// A certificate that the configuration names is refused from then on: on connections that stand, on new ones, in both directions,
/// without a restart. A list that nobody understands changes nothing.
#[test]
fn a_revoked_certificate_is_refused_while_the_agents_run() {
    let pair = Pair::plain(1);
    fs::write(pair.root(0).join("file"), "good").expect("write");
    for (agent, _) in AGENTS {
        fs::write(pair.path(&format!("revoked-{agent}.txt")), "# nobody\n").expect("write");
        pair.restart_with(agent, "[tls]\n", &format!("[tls]\nrevoked = \"revoked-{agent}.txt\"\n"));
    }
    let of =
        |name: &str| Certificate::read(&pair.path(&format!("pki/{name}.crt"))).expect("read").fingerprints;
    let revoke =
        |agent: &str, text: &str| fs::write(pair.path(&format!("revoked-{agent}.txt")), text).expect("write");
    pair.run(0);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let (pki, url) = (pair.path("pki"), agent_url(&pair, "target"));
    let source = runtime.block_on(EvilSource::connect(&pki, &url)).expect("it is let in");
    let open = || runtime.block_on(source.open(source.opening(&source.run_id())));
    open().expect("it may");

    // By its serial: the connection that stands, and new ones.
    revoke("target", &format!("{}   # stolen\n", of("source").serial));
    pair.eventually("the call is refused", || {
        open().is_err_and(|fault| fault.reason == "certificate-revoked")
    });
    assert!(runtime.block_on(EvilSource::connect(&pki, &url)).is_err() || open().is_err());
    let refused = pair.run(4);
    assert_eq!(refused["outcome"], "OUTCOME_NOT_RUN", "{refused}");
    assert!(pair.target(&["status"]).code == 0, "others go on");

    // A list that is none keeps the one before.
    revoke("target", "alice\n");
    pair.eventually("it is refused", || {
        logged(&pair, "target", "list of revoked certificates is REFUSED") == 1
    });
    assert_eq!(open().expect_err("still").reason, "certificate-revoked");

    // Nobody is revoked any longer; then the operator is, by its key, at both ends.
    revoke("target", "");
    pair.eventually("it may again", || open().is_ok());
    for (agent, _) in AGENTS {
        revoke(agent, &format!("key {}\n", of("operator").key.to_uppercase()));
        pair.eventually("the operator is refused", || {
            let done = if agent == "source" {
                pair.grpcurl_as("pki/operator", false, &[], &["assay.v1.SourceService/GetStatus"])
            } else {
                pair.grpcurl_as("pki/operator", true, &[], &["assay.v1.TargetService/GetStatus"])
            };
            done.code != 0
        });
        revoke(agent, "");
        pair.eventually("and is not", || {
            let done = if agent == "source" { pair.source(&["status"]) } else { pair.target(&["status"]) };
            done.code == 0
        });
    }

    // The server too: a source does not call a target whose certificate it has revoked.
    revoke("source", &of("target").serial);
    pair.eventually("the target is not called", || {
        logged(&pair, "source", "list of revoked certificates was reloaded") >= 3
    });
    let refused = pair.run(4);
    assert_eq!(refused["reason"], "target-unreachable", "{refused}");
    revoke("source", "");
    pair.eventually("it is called again", || pair.source(&["run", "--follow"]).code == 0);
}

/// A source whose certificate is revoked in the middle of a stream brings nothing more on it.
#[test]
fn a_source_that_is_revoked_in_the_middle_of_a_stream_is_cut_off() {
    let mut ground = Ground::new("");
    ground.honest_run();
    let (list, log) = (ground.pair.path("revoked.txt"), ground.pair.path("target.log"));
    fs::write(&list, "").expect("write");
    ground.restart("[tls]\n", "[tls]\nrevoked = \"revoked.txt\"\n");
    fs::write(ground.live().join("further"), "more").expect("write");
    let source = Certificate::read(&ground.pair.path("pki/source.crt")).expect("read");
    let happens = move || {
        let read = || fs::read_to_string(&log).expect("log").matches("certificates was reloaded").count();
        let before = read();
        fs::write(&list, &source.fingerprints.serial).expect("write");
        eventually("the list is read", || read() > before);
    };
    let tree = Tree::honest(&ground.live());
    let run = ground.source.run_id();
    let mut script = ground.source.script(&run, 2, &tree);
    assert!(script.acts.len() > 1, "there is content to send");
    script.acts.insert(1, Act::Meanwhile(Meanwhile(Arc::new(happens))));
    let (call, fault) = ground.runtime.block_on(ground.source.play(script)).fault();
    assert_eq!(call, "Transfer", "{fault:?}");
    assert_eq!(ground.generations().len(), 1);
}

/// A CA of the file can be revoked like a certificate, in the form in which openssl prints its fingerprint: whomever it vouches for is
/// refused, on connections that stand and on new ones.
#[test]
fn a_revoked_authority_vouches_for_nobody() {
    let pair = &Pair::plain(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    fs::write(pair.path("revoked.txt"), "").expect("write");
    let source_status = pair.source(&["status"]);
    assert_eq!(source_status.code, 0, "{source_status:?}");
    pair.restart_with("source", "[tls]\n", "[tls]\nrevoked = \"revoked.txt\"\n");
    let standing = runtime.block_on(async {
        let file = |name: &str| pair.path(&format!("pki/{name}"));
        let files = TlsFiles { ca: file("ca.crt"), cert: file("operator.crt"), key: file("operator.key") };
        let url = agent_url(pair, "source");
        let options = ConnectOptions::default();
        connect(&url, Role::Source, &files, &[Role::Operator], &options).await.expect("it is let in").0
    });
    let call = || {
        let mut client = SourceServiceClient::new(standing.clone());
        runtime.block_on(client.get_status(GetStatusRequest {}))
    };
    call().expect("it may");
    let fingerprint = fingerprint(pair, "pki/ca.crt");
    assert!(fingerprint.to_lowercase().starts_with("sha256 fingerprint="), "{fingerprint}");
    fs::write(pair.path("revoked.txt"), &fingerprint).expect("write");
    pair.eventually("the connection that stands is refused", || call().is_err());
    assert_ne!(pair.source(&["status"]).code, 0, "and a new one");
    fs::write(pair.path("revoked.txt"), "").expect("write");
    pair.eventually("it may again", || pair.source(&["status"]).code == 0);
}

/// New certificates for the same holders, hosts and keys, with one command; one that was renewed has a serial number of its own.
#[test]
fn certificates_are_renewed_with_one_command() {
    let pair = Pair::plain(1);
    fs::write(pair.root(0).join("file"), "good").expect("write");
    let read = |name: &str| Certificate::read(&pair.path(&format!("pki/{name}.crt"))).expect("read");
    let ca = pair.authority().to_str().expect("utf-8");
    let before = ["source", "target", "operator"].map(read);
    let skipped = pair.target(&["pki", "renew", "pki", "--ca-folder", ca, "--within", "0"]);
    assert!(skipped.code == 0 && skipped.stdout.contains("not renewed"), "{skipped:?}");
    assert_eq!(["source", "target", "operator"].map(read), before);
    let done = pair.target(&["pki", "renew", "pki", "--ca-folder", ca, "--within", "30"]);
    assert_eq!(done.code, 0, "{done:?}");
    let renewed = ["source", "target", "operator"].map(read);
    for (before, renewed) in before.iter().zip(&renewed) {
        assert_eq!((&before.identity, &before.hosts), (&renewed.identity, &renewed.hosts));
        assert_eq!(before.fingerprints.key, renewed.fingerprints.key);
        assert_ne!(before.fingerprints.serial, renewed.fingerprints.serial);
        assert!(renewed.not_after > before.not_after);
        assert!(
            done.stdout.contains(&renewed.fingerprints.serial)
                && done.stdout.contains(&renewed.fingerprints.key)
        );
    }
    let done = pair.target(&["pki", "renew", "pki", "--ca-folder", ca, "pki/operator.crt", "--new-keys"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_ne!(read("operator").fingerprints.key, renewed[2].fingerprints.key);
    pair.run(0);
}

/// Puts the authority's private key into a file beside the agents.
fn bring_authority_key(pair: &Pair, file: &std::path::Path) {
    fs::create_dir_all(file.parent().expect("a folder")).expect("mkdir");
    fs::copy(pair.authority().join("ca.key"), file).expect("copy");
}

/// An agent does not start when the authority's private key lies below its configuration, whatever the file and its folder are called.
#[test]
fn an_agent_does_not_start_with_the_authoritys_key_below_its_configuration() {
    let pair = Pair::plain(1);
    for (agent, _) in AGENTS {
        assert_eq!(logged(&pair, agent, "certificate authority's private key"), 0);
    }
    for place in ["pki/ca.key", "ca/ca.key", "spare.txt", "pki/old/2026/authority", "a/b/c/backup.pem"] {
        let file = pair.path(place);
        bring_authority_key(&pair, &file);
        if place == "pki/ca.key" {
            // Certificates may stand in the same file.
            let mut both = fs::read(pair.path("pki/ca.crt")).expect("read");
            both.extend(fs::read(&file).expect("read"));
            fs::write(&file, both).expect("write");
        }
        for (agent, _) in AGENTS {
            let refused = pair.refused_start(agent);
            assert_eq!(refused.code, 2, "{place}: {refused:?}");
            let stderr = &refused.stderr;
            let name = file.file_name().expect("a name").to_str().expect("utf-8");
            assert!(
                stderr.contains("private key lies below this agent's configuration"),
                "{place}: {stderr}"
            );
            assert!(stderr.contains(name) && stderr.contains("HINT: "), "{place}: {stderr}");
            assert!(stderr.contains("install -d -m 0700 /var/lib/assay-ca/"), "{place}: {stderr}");
            let doctor = if agent == "source" { pair.source(&["doctor"]) } else { pair.target(&["doctor"]) };
            assert!(doctor.stdout.contains("BAD   CA key"), "{place}: {doctor:?}");
        }
        fs::remove_file(&file).expect("remove");
    }
    pair.restart_with("target", "[tls]", "[tls]");
    pair.restart_with("source", "[tls]", "[tls]");
}

/// The authority of an earlier version lies where that version put it: the service goes on, and says at each start how to move the key.
#[test]
fn an_authority_of_an_earlier_version_is_warned_of_and_goes_on() {
    let pair = Pair::plain(1);
    fs::write(pair.root(0).join("file"), "good").expect("write");
    // As 0.1 made them: no word in the certificate that the key is apart.
    let openssl = |arguments: &[&str]| {
        let status = Command::new("openssl")
            .args(arguments)
            .current_dir(pair.path("pki"))
            .stderr(Stdio::null())
            .status();
        assert!(status.expect("openssl is installed by ./test").success(), "{arguments:?}");
    };
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/O=Assay/CN=Assay CA 01",
        "-keyout",
        "ca.key",
        "-out",
        "ca.crt",
        "-addext",
        "keyUsage=critical,keyCertSign",
    ]);
    fs::set_permissions(pair.path("pki/ca.key"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .expect("chmod");
    // Where it was is where `pki renew` and `pki issue` find it.
    let done = pair.target(&["pki", "renew", "pki"]);
    assert_eq!(done.code, 0, "{done:?}");
    for (agent, _) in AGENTS {
        pair.restart_with(agent, "[tls]", "[tls]");
        assert_eq!(logged(&pair, agent, "private key lies where this agent can read it"), 1);
        let doctor = if agent == "source" { pair.source(&["doctor"]) } else { pair.target(&["doctor"]) };
        assert!(
            doctor.stdout.contains("WARN  CA key") && doctor.stdout.contains("install -d -m 0700"),
            "{doctor:?}"
        );
    }
    pair.run(0);
}

/// Nothing copies the authority's key to the target, and nothing shows it to a check.
#[test]
fn no_root_profile_or_overlay_takes_the_authoritys_key_along() {
    let pair = Pair::plain(1);
    // In what is copied, under another name, beside certificates of the agent.
    bring_authority_key(&pair, &pair.root(0).join("pki/authority.pem"));
    fs::copy(pair.path("pki/ca.crt"), pair.root(0).join("pki/ca.crt")).expect("copy");
    let inside = pair.root(0).join("pki");
    let ca = format!("ca = \"{}/ca.crt\"", inside.display());
    pair.configure("source", "ca = \"pki/ca.crt\"", &ca);
    let refused = pair.refused_start("source");
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(
        refused.stderr.contains("authority.pem") && refused.stderr.contains("copied to the target"),
        "{refused:?}"
    );
    // In what a check would be shown, and as a file that is laid over the copy.
    let shown = tempfile::Builder::new().prefix("assay-shown-").tempdir().expect("temp");
    let key = shown.path().join("lib/x/notes");
    bring_authority_key(&pair, &key);
    let profile = format!(
        "name = \"own\"\ndescription = \"made by a test\"\nversion = \"1\"\ndepth = \"L0\"\n[mark]\nkind = \"none\"\n\
         [sandbox]\nvisible = [{:?}]\n[[check]]\nname = \"list\"\nargv = [\"ls\"]\nfail_exit = [1]\n",
        shown.path()
    );
    fs::write(pair.path("showing.toml"), profile).expect("write");
    let target = fs::read_to_string(pair.path("target.toml")).expect("read");
    for (from, to, words) in [
        ("profile = \"generic\"", "profile = \"./showing.toml\"".to_owned(), "[sandbox] visible: "),
        (
            "profile = \"generic\"",
            format!("profile = \"generic\"\noverlay = {{ \"licence\" = {key:?} }}"),
            ": overlay.",
        ),
    ] {
        fs::write(pair.path("target.toml"), target.replace(from, &to)).expect("write");
        let refused = pair.refused_start("target");
        assert_eq!(refused.code, 2, "{refused:?}");
        assert!(
            refused.stderr.contains(words) && refused.stderr.contains("certificate authority's private key"),
            "{refused:?}"
        );
    }
}
