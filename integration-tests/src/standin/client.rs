//! `accurev`: the client command. It only talks to a server, never to files.
//!
//! The server is the one in the first `SERVERS` line of `acclient.cnf` in the same `bin`. A copy of an installation
//! has a copy of that line: a client run out of the copy calls the LIVE server.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use super::layout::{Cnf, Installation};
use super::texts::fill;
use super::{Failure, Outcome};

const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// A mark flushes every table: a slow disk may take its time.
const ANSWER_PATIENCE: Duration = Duration::from_secs(120);

/// Runs the command with its arguments.
pub fn run(installation: &Installation, arguments: &[String]) -> Outcome {
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    let answer = match words[..] {
        ["backup", "mark"] if installation.has_database() => Err(Failure {
            text: installation.texts.text.mark_gone.clone(),
            exit: installation.texts.exit.usage,
        }),
        ["backup", "mark"] => mark(installation),
        ["backup", file] if installation.has_database() => backup(installation, file),
        ["show", "slices"] => ask(installation, "SLICES").map(|(_, body)| body),
        ["info"] => ask(installation, "INFO").map(|(_, body)| body),
        _ => Err(Failure {
            text: installation.texts.text.accurev_usage.clone(),
            exit: installation.texts.exit.usage,
        }),
    };
    answer.map_or_else(Outcome::from, Outcome::done)
}

fn mark(installation: &Installation) -> Result<String, Failure> {
    let (line, _) = ask(installation, "MARK")?;
    let words: Vec<_> = line.split(' ').collect();
    let [mark, date, time, slices, transactions] = words[..] else {
        return Err(refused(installation, &format!("the server answered {line:?}")));
    };
    let time = format!("{date} {time}");
    let values =
        [("mark", mark), ("time", time.as_str()), ("slices", slices), ("transactions", transactions)];
    Ok(fill(&installation.texts.text.mark_done, &values))
}

fn backup(installation: &Installation, file: &str) -> Result<String, Failure> {
    let (line, _) = ask(installation, &format!("BACKUP {file}"))?;
    let Some((time, file)) = line.split_once('|') else {
        return Err(refused(installation, &format!("the server answered {line:?}")));
    };
    Ok(fill(&installation.texts.text.backup_done, &[("time", time), ("file", file)]))
}

/// Sends one request; gives the rest of the first line and everything after it.
fn ask(installation: &Installation, request: &str) -> Result<(String, String), Failure> {
    let texts = &installation.texts;
    let path = installation.bin("acclient.cnf");
    let cnf = Cnf::read(&path).map_err(|error| installation.unreadable("accurev", &path, &error))?;
    let Some(server) = cnf.get("SERVERS").map(str::trim_end) else {
        let values = [("program", "accurev"), ("file", "acclient.cnf"), ("key", "SERVERS")];
        return Err(Failure { text: fill(&texts.text.key_missing, &values), exit: texts.exit.key_missing });
    };
    let answer = exchange(server, &texts.net.connect, request).map_err(|error| Failure {
        text: fill(&texts.text.no_server, &[("server", server), ("reason", &error.to_string())]),
        exit: texts.exit.no_server,
    })?;
    let (first, body) = answer.split_once('\n').unwrap_or((&answer, ""));
    match first.split_once(' ').unwrap_or((first, "")) {
        ("OK", rest) => Ok((rest.to_owned(), body.to_owned())),
        ("ERR", reason) => Err(refused(installation, reason)),
        _ => Err(refused(installation, "the connection was closed without an answer")),
    }
}

fn refused(installation: &Installation, reason: &str) -> Failure {
    let texts = &installation.texts;
    Failure { text: fill(&texts.text.refused, &[("reason", reason)]), exit: texts.exit.refused }
}

fn exchange(server: &str, connect: &str, request: &str) -> io::Result<String> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "not of the form host:port");
    let (host, port) = server.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let host = if connect.is_empty() { host } else { connect };
    let address = (host, port).to_socket_addrs()?.next().ok_or_else(|| io::Error::other("unknown host"))?;
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_PATIENCE)?;
    stream.set_read_timeout(Some(ANSWER_PATIENCE))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
