//! Hosts without IPv4: agents, metrics, notices and every address that is printed.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use crate::pair::{Done, done, eventually, program};

/// A network of its own, whose only address is `::1`. Its ports are all free.
struct Network {
    folder: tempfile::TempDir,
    /// Keeps the network.
    keeper: Child,
    others: Vec<Child>,
}

impl Drop for Network {
    fn drop(&mut self) {
        for process in self.others.iter_mut().chain([&mut self.keeper]) {
            process.kill().ok();
            process.wait().ok();
        }
    }
}

impl Network {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("assay-ipv6-").tempdir().expect("temp");
        let script =
            "ip link set lo up && ip -4 address flush dev lo && echo up > \"$0\" && exec sleep infinity";
        let up = folder.path().join("up");
        let keeper = Command::new("unshare").args(["--net", "sh", "-c", script]).arg(&up).spawn();
        let own = Self { folder, keeper: keeper.expect("unshare comes with util-linux"), others: Vec::new() };
        eventually("the network is there", || up.exists());
        let addresses = own.run(&["ip", "-o", "address"]).stdout;
        assert!(addresses.contains("::1/128") && !addresses.contains("127.0.0.1"), "{addresses}");
        own
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.keeper.id().to_string(), "--net", "--"]).args(words);
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Done {
        done(&mut self.command(words))
    }

    fn agent(&self, role: &str, arguments: &[&str]) -> Done {
        let (program, config) =
            (program(&format!("assay-{role}")), self.path(role).join(format!("{role}.toml")));
        let words = [program.to_str().expect("text"), "--config", config.to_str().expect("text")];
        self.run(&[words.as_slice(), arguments].concat())
    }

    fn good(&self, role: &str, arguments: &[&str]) -> String {
        let done = self.agent(role, arguments);
        assert_eq!(done.code, 0, "{role} {arguments:?}: {done:?}");
        done.stdout
    }

    /// Starts something that goes on, with what it prints in `NAME.log`.
    fn start(&mut self, name: &str, words: &[&str]) {
        let log = fs::File::create(self.path(&format!("{name}.log"))).expect("log");
        let child = self.command(words).stdout(log.try_clone().expect("clone")).stderr(log).spawn();
        self.others.push(child.expect("it starts"));
    }

    fn serve(&mut self, role: &str) {
        let (program, config) =
            (program(&format!("assay-{role}")), self.path(role).join(format!("{role}.toml")));
        self.start(
            role,
            &[program.to_str().expect("text"), "--config", config.to_str().expect("text"), "serve"],
        );
        eventually("the agent serves", || self.agent(role, &["health"]).code == 0);
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// Adds to a configuration, before its first table of the name.
    fn configure(&self, role: &str, before: &str, text: &str) {
        let path = self.path(role).join(format!("{role}.toml"));
        let old = fs::read_to_string(&path).expect("read");
        assert!(old.contains(before), "{before}: {old}");
        fs::write(path, old.replacen(before, &format!("{text}{before}"), 1)).expect("write");
    }
}

/// A receiver of HTTP and one of mail, which print what they get.
const RECEIVERS: &str = r#"
import http.server, socket, socketserver, threading
class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        print("webhook host", self.headers["Host"], flush=True)
        self.send_response(204)
        self.end_headers()
class Mail(socketserver.StreamRequestHandler):
    def handle(self):
        say = lambda text: self.wfile.write(text.encode() + b"\r\n")
        say("220 mail.test ESMTP")
        data = False
        for line in self.rfile:
            text = line.decode().rstrip()
            if data:
                data = text != "."
                if not data:
                    print("mail arrived", flush=True)
                    say("250 taken")
            elif text.upper().startswith("DATA"):
                data = True
                say("354 go on")
            elif text.upper().startswith("QUIT"):
                say("221 bye")
                return
            else:
                say("250 good")
class Web(http.server.HTTPServer):
    address_family = socket.AF_INET6
class Post(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
threading.Thread(target=Web(("::1", 8025), Hook).serve_forever).start()
threading.Thread(target=Post(("::1", 25), Mail).serve_forever).start()
print("ready", flush=True)
"#;

#[test]
fn two_agents_without_ipv4_do_all_that_they_do() {
    let mut network = Network::new();
    let path = |name: &str| network.path(name).to_str().expect("text").to_owned();
    let (store, ca, live, state, answer) =
        (path("store"), path("authority"), path("live.git"), path("state"), path("answer"));
    let git = network.run(&["git", "init", "-q", "--bare", &live]);
    assert_eq!(git.code, 0, "{git:?}");

    // Each listens on all addresses, and an operator on the host finds it.
    let init =
        ["init", "--host", "[::1]", "--host", "backup.test", "--listen", "[::]:7402", "--store", &store];
    network.good("target", &[init.as_slice(), &["--ca-folder", &ca]].concat());
    let invited = network.good("target", &["invite", "db1", "--ca-folder", &ca]);
    assert!(invited.contains("The source will call https://[::1]:7402."), "{invited}");
    let invitation = path("assay-invite-db1.json");
    let join =
        ["init", "--join", &invitation, "--state", &state, "--listen", "[::]:7401", "--repository", "code"];
    network.good("source", &[join.as_slice(), &["--answer", &answer, &live]].concat());
    network.good("target", &["accept", "--file", &answer]);
    network.start("receivers", &["python3", "-c", RECEIVERS]);
    eventually("the receivers listen", || network.log("receivers").contains("ready"));
    for (role, port) in [("source", 9464), ("target", 9465)] {
        let further = format!(
            "[metrics]\nlisten = \"[::1]:{port}\"\n\
             [[notify]]\nkind = \"webhook\"\nurl = \"http://[::1]:8025/hook\"\n\
             [[notify]]\nkind = \"webhook\"\nname = \"away\"\nurl = \"http://[::1]:1/secret\"\n\
             [[notify]]\nkind = \"mail\"\nsmtp = \"smtp://[::1]\"\nfrom = \"a@example.org\"\nto = [\"b@example.org\"]\n"
        );
        network.configure(role, "[[repository]]", &further);
        network.good(role, &["config", "check"]);
        network.serve(role);
    }
    let run = network.good("source", &["run", "--follow"]);
    assert!(run.contains("PASS"), "{run}");
    for (role, port) in [("source", "9464"), ("target", "9465")] {
        network.good(role, &["status"]);
        let doctor = network.agent(role, &["doctor"]).stdout;
        assert!(doctor.contains(&format!("[::1]:{port}")) && doctor.contains("0 BAD"), "{doctor}");
        let metrics = network.run(&["python3", "-c", &format!(
            "import urllib.request; print(urllib.request.urlopen('http://[::1]:{port}/metrics').read().decode())"
        )]);
        assert!(metrics.stdout.contains("assay_"), "{metrics:?}");
        assert!(network.log(role).contains("[::]:740"), "{}", network.log(role));
        // Two of its three ways arrive, and the message about the third has brackets.
        let test = network.agent(role, &["notify", "test"]);
        let text = format!("{}{}", test.stdout, test.stderr);
        assert!(text.contains("[::1]:1: ") && !text.contains(" ::1:1"), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
    let heard = network.log("receivers");
    assert!(heard.matches("webhook host [::1]:8025").count() >= 2, "{heard}");
    assert!(heard.matches("mail arrived").count() >= 2, "{heard}");
    // As the documents have it.
    let pki = network.path("source/pki");
    let file = |name: &str| pki.join(name).to_str().expect("text").to_owned();
    let keys = (file("ca.crt"), file("operator.crt"), file("operator.key"));
    let called = network.run(&[
        "grpcurl",
        "-cacert",
        &keys.0,
        "-cert",
        &keys.1,
        "-key",
        &keys.2,
        "[::1]:7401",
        "assay.v1.SourceService/GetStatus",
    ]);
    assert!(called.code == 0 && called.stdout.contains("OUTCOME_PASS"), "{called:?}");
    // Nobody is there: the address is one that can be called again.
    let away = network.agent("source", &["status", "--server", "https://[::1]:1"]);
    assert!(away.code == 4 && away.stderr.contains("[::1]:1"), "{away:?}");
}
