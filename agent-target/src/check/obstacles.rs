//! Words of something that was in the way of a checker, whatever the engine.
//!
//! A step that fails by its exit code alone may have failed for one of these: a refused system call, an interpreter that could
//! not run the program, a host without room. Then nothing is known of the data. A pattern of damage is stronger than all of
//! them, because the profile knows its checker's words.

use regex::bytes::{RegexSet, RegexSetBuilder};

/// Each obstacle: the reason for the verdict, and an expression for a line that names it.
///
/// Steps run with `LC_ALL=C.UTF-8`, so the C library speaks English.
const OBSTACLES: &[(&str, &str)] = &[
    (
        "network-refused",
        r"(?i)\b(?:network is (?:unreachable|down)|connection refused|name resolution|could not resolve host)\b",
    ),
    ("access-refused", r"(?i)\b(?:read-only file system|permission denied|operation not permitted)\b"),
    // The host has no room, or its disk does not answer.
    (
        "checker-error",
        r"(?i)\b(?:cannot allocate memory|out of memory|no space left on device|too many open files|input/output error|resource temporarily unavailable)\b",
    ),
    // Programs, libraries and shells.
    (
        "checker-error",
        r"(?:\bcommand not found\b|^(?:\S+: )?(?:line )?\d*:? *\d* *(?:Segmentation fault|Bus error|Illegal instruction|Aborted|Killed)(?: +\(core dumped\).*|  +.*)?\r?$|^env: .*: No such file or directory\r?$|^terminate called |^\*\*\* stack smashing detected |^double free or corruption |^free\(\): |^malloc\(\): |^\S+: (?:line )?\d+: .*: not found\r?$|\b[Ee]xec format error\b|\bbad interpreter\b|: cannot execute\b|: required file not found|\berror while loading shared libraries: |: symbol lookup error: |: version `[^']*' not found)",
    ),
    (
        "checker-error",
        r"(?:: syntax error near unexpected token|: syntax error: |: Syntax error: |: 0: [Cc]an(?:no|')t open |: unbound variable\r?$)",
    ),
    // Python.
    (
        "checker-error",
        r"(?:^Traceback \(most recent call last\):|^(?:\w+\.)*(?:ModuleNotFoundError|ImportError|SyntaxError|IndentationError|NameError|MemoryError)\b|: No module named |: can't open file ')",
    ),
    // Perl.
    (
        "checker-error",
        r"(?:^Can't locate \S.* (?:in|via) |^Can't open perl script |^BEGIN failed--compilation aborted|^syntax error at .* line \d+|^Execution of .* aborted due to compilation errors|^Undefined subroutine )",
    ),
    // JavaScript.
    (
        "checker-error",
        r"(?:^(?:Uncaught )?(?:\w*Error|Error \[\w+\]): Cannot find (?:module|package)|^(?:Uncaught )?(?:ReferenceError|TypeError|SyntaxError|RangeError): |^error: Module not found |^node:internal/|^Node\.js v\d+|^\s+at .*\bnode:internal/)",
    ),
    // Ruby.
    (
        "checker-error",
        r"(?:^\S+:\d+:in [`'].*: |\((?:LoadError|NameError|NoMethodError|SyntaxError|NoMemoryError)\)\r?$)",
    ),
    // Java.
    (
        "checker-error",
        r#"(?:^Exception in thread "|^Error: (?:Could not find or load main class|Unable to access jarfile|A JNI error)|\bjava\.lang\.(?:NoClassDefFoundError|ClassNotFoundException|UnsupportedClassVersionError|OutOfMemoryError)\b)"#,
    ),
    // PHP, Lua, Go, Rust, .NET, Erlang, R, Tcl, awk.
    (
        "checker-error",
        r"(?:^(?:PHP )?(?:Fatal|Parse) error: |^stack traceback:|^lua\S*: cannot open |^goroutine \d+ \[|^panic: |^thread '.*' .*panicked at |^Unhandled exception[.:]|^escript: |\bthere is no package called |^invalid command name |^\w*awk: .*(?:fatal|syntax error|cannot open))",
    ),
];

/// The expressions of all obstacles, in the order of the table.
pub(super) fn expressions<'a>() -> impl Iterator<Item = &'a str> {
    OBSTACLES.iter().map(|(_, expression)| *expression)
}

/// The reason that belongs to an expression.
pub(super) fn reason(index: usize) -> &'static str {
    OBSTACLES[index].0
}

/// The reason, when a line says that something was in the way. For checks that this program brings itself.
pub(crate) fn obstacle(line: &[u8]) -> Option<&'static str> {
    static SET: std::sync::LazyLock<RegexSet> = std::sync::LazyLock::new(|| {
        let set = RegexSetBuilder::new(expressions()).multi_line(true).crlf(true).build();
        set.expect("the table's expressions are tested")
    });
    SET.matches(line).iter().next().map(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of real programs, and what they say was in the way.
    const LINES: &[(&str, Option<&str>)] = &[
        ("connect: Network is unreachable", Some("network-refused")),
        ("curl: (7) Failed to connect: Connection refused", Some("network-refused")),
        ("open: Permission denied", Some("access-refused")),
        ("cp: cannot create regular file: Read-only file system", Some("access-refused")),
        ("write: No space left on device", Some("checker-error")),
        ("read error: Input/output error", Some("checker-error")),
        ("bash: line 1: dbverify: command not found", Some("checker-error")),
        ("sh: 1: dbverify: not found", Some("checker-error")),
        ("/srv/check.sh: 12: dbverify: not found", Some("checker-error")),
        ("./check: ./check: cannot execute binary file: Exec format error", Some("checker-error")),
        (
            "/bin/sh: ./check: /usr/bin/python9: bad interpreter: No such file or directory",
            Some("checker-error"),
        ),
        (
            "check: error while loading shared libraries: libx.so.1: cannot open shared object file",
            Some("checker-error"),
        ),
        (
            "./check: /lib/libc.so.6: version `GLIBC_2.99' not found (required by ./check)",
            Some("checker-error"),
        ),
        ("check.sh: line 3: syntax error near unexpected token `done'", Some("checker-error")),
        ("check.sh: 3: Syntax error: \"done\" unexpected", Some("checker-error")),
        ("sh: 0: cannot open check.sh: No such file", Some("checker-error")),
        ("Traceback (most recent call last):", Some("checker-error")),
        ("ModuleNotFoundError: No module named 'psycopg2'", Some("checker-error")),
        ("/usr/bin/python3: No module named dbcheck", Some("checker-error")),
        (
            "python3: can't open file '/srv/check.py': [Errno 2] No such file or directory",
            Some("checker-error"),
        ),
        ("SyntaxError: invalid syntax", Some("checker-error")),
        (
            "Can't locate DBD/SQLite.pm in @INC (you may need to install the DBD::SQLite module)",
            Some("checker-error"),
        ),
        ("Can't locate object method \"new\" via package \"X\" at check.pl line 2.", Some("checker-error")),
        ("syntax error at check.pl line 3, near \"}\"", Some("checker-error")),
        ("Error: Cannot find module 'sqlite3'", Some("checker-error")),
        ("ReferenceError: x is not defined", Some("checker-error")),
        ("    at node:internal/modules/run_main:36:49", Some("checker-error")),
        ("check.rb:1:in `require': cannot load such file -- sqlite3 (LoadError)", Some("checker-error")),
        (
            "check.rb:1:in '<main>': undefined local variable or method 'x' for main (NameError)",
            Some("checker-error"),
        ),
        ("Exception in thread \"main\" java.lang.NullPointerException", Some("checker-error")),
        ("Error: Could not find or load main class Check", Some("checker-error")),
        ("PHP Fatal error:  Uncaught Error: Call to undefined function check()", Some("checker-error")),
        ("thread 'main' (17) panicked at src/main.rs:3:5:", Some("checker-error")),
        (
            "bash: line 1:   123 Segmentation fault      (core dumped) dbverify /srv/data",
            Some("checker-error"),
        ),
        ("Segmentation fault", Some("checker-error")),
        ("/srv/check.sh: line 3: 77 Killed                  dbverify", Some("checker-error")),
        ("Killed", Some("checker-error")),
        ("Aborted (core dumped)", Some("checker-error")),
        ("terminate called after throwing an instance of 'std::bad_alloc'", Some("checker-error")),
        ("env: 'python9': No such file or directory", Some("checker-error")),
        (
            "<internal:/usr/lib/ruby/rubygems.rb>:85:in `require': cannot load such file -- x (LoadError)",
            Some("checker-error"),
        ),
        ("panic: runtime error: index out of range [3] with length 3", Some("checker-error")),
        (
            "Unhandled exception. System.IO.FileNotFoundException: Could not load file or assembly 'X'",
            Some("checker-error"),
        ),
        ("Error in library(x) : there is no package called ‘x’", Some("checker-error")),
        (
            "awk: fatal: cannot open file `check.awk' for reading: No such file or directory",
            Some("checker-error"),
        ),
        ("lua: cannot open check.lua", Some("checker-error")),
        (
            "Caused by: java.lang.ClassNotFoundException: java.lang.ClassNotFoundException",
            Some("checker-error"),
        ),
        ("java.lang.OutOfMemoryError: Java heap space", Some("checker-error")),
        // Words of damage that sound alike.
        ("Killed records: 3 of 40 are damaged", None),
        ("table Aborted: row 7 is damaged", None),
        ("environment: page 3: bad checksum", None),
        ("element.ndb: not found", None),
        ("row 12 not found in index by_name", None),
        ("table t: syntax of record 9 is wrong", None),
        ("Error: page 7 is corrupt", None),
        ("checksum mismatch at line 12", None),
        ("ERROR: 3 records of 40 have a bad checksum", None),
        ("missing: storage/element.ndb: No such file or directory", None),
    ];

    #[test]
    fn each_obstacle_is_told_from_damage() {
        for (line, expected) in LINES {
            assert_eq!(obstacle(line.as_bytes()), *expected, "{line}");
        }
    }

    /// A row without an example would hold nothing.
    #[test]
    fn every_row_of_the_table_has_an_example() {
        let set =
            RegexSetBuilder::new(expressions()).multi_line(true).crlf(true).build().expect("expressions");
        for index in 0..set.len() {
            let mut lines = LINES.iter().filter(|(_, expected)| *expected == Some(reason(index)));
            assert!(lines.any(|(line, _)| set.matches(line.as_bytes()).matched(index)), "row {index}");
        }
    }
}
