//! docs/CONFIGURATION.md: its tables are the configuration structs of the code, doc comments and all. `ASSAY_WRITE_DOCS=1 ./test e2e`
//! writes them instead of comparing them.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use syn::{Attribute, Expr, Fields, GenericArgument, Item, Lit, Meta, PathArguments, Type};

use crate::metrics::repository;

const DOCUMENT: &str = "docs/CONFIGURATION.md";
const BEGIN: &str = "<!-- reference: written by ASSAY_WRITE_DOCS=1 ./test e2e -->";
const END: &str = "<!-- end of reference -->";
const SOURCE: &str = "agent-source/src/config.rs";
const TARGET: &str = "agent-target/src/config.rs";
const METRICS: &str = "common/src/metrics/serve.rs";
const WEB: &str = "agent-target/src/web/config.rs";
const SNAPSHOT: &str = "agent-source/src/snapshot/section.rs";
const TRACES: &str = "common/src/traces/config.rs";
const NOTIFY: &str = "common/src/notify/config.rs";

/// A file, its struct, and how the section begins.
type Section = (&'static str, &'static str, &'static str);

/// The sections in their order.
const SECTIONS: [(&str, &[Section]); 3] = [
    (
        "assay-source",
        &[
            (SOURCE, "AgentSection", "[agent]"),
            (SOURCE, "TlsSection", "[tls]"),
            (SOURCE, "OperatorSection", "[operator]"),
            (SOURCE, "TargetSection", "[target]"),
            (SOURCE, "RepositorySection", "[[repository]]"),
            (SOURCE, "RootSection", "[[repository.root]]"),
            (SOURCE, "ScheduleSection", "[repository.schedule]"),
            (SNAPSHOT, "SnapshotSection", "[repository.snapshot]"),
        ],
    ),
    (
        "assay-target",
        &[
            (TARGET, "AgentSection", "[agent]"),
            (TARGET, "TlsSection", "[tls]"),
            (TARGET, "OperatorSection", "[operator]"),
            (TARGET, "PeerLimitsSection", "[limits]"),
            (TARGET, "RepositorySection", "[[repository]]"),
            (TARGET, "HostSection", "[repository.host]"),
            ("common/src/profile/limits.rs", "Limits", "[repository.limits]"),
            (TARGET, "RetentionSection", "[repository.retention]"),
            (WEB, "WebSection", "[web]"),
        ],
    ),
    (
        "Both agents",
        &[
            (METRICS, "MetricsSection", "[metrics]"),
            (TRACES, "TracesSection", "[traces]"),
            (NOTIFY, "NotifySection", "[[notify]]"),
        ],
    ),
];

/// What a type of the code is in TOML; types that are not here are enums, whose words are listed.
const TYPES: [(&str, &str); 24] = [
    ("IpAddr", "text"),
    ("RevokedSetting", "list of texts, or path"),
    ("UserName", "text or number"),
    ("String", "text"),
    ("PathBuf", "path"),
    ("SocketAddr", "`\"ADDRESS:PORT\"`"),
    ("Span", "time"),
    ("SpanOrNever", "time or `\"never\"`"),
    ("Size", "size"),
    ("bool", "`true`, `false`"),
    ("u8", "number"),
    ("u32", "number"),
    ("u64", "number"),
    ("i32", "number"),
    ("usize", "number"),
    ("Value", "text or list of texts"),
    ("Compression", "text or number"),
    ("Event", "text"),
    ("SpecialFile", "text"),
    ("IoClass", "`\"idle\"`, `\"best-effort\"`"),
    ("RootSection", "section"),
    ("ScheduleSection", "section"),
    ("HostSection", "section"),
    ("Limits", "section"),
];

fn items(file: &str) -> Vec<Item> {
    let text = fs::read_to_string(repository().join(file)).expect("read");
    syn::parse_file(&text).unwrap_or_else(|error| panic!("{file}: {error}")).items
}

/// The doc comment, on one line.
fn documentation(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(meta) if meta.path.is_ident("doc") => match &meta.value {
            Expr::Lit(value) => match &value.lit {
                Lit::Str(text) => Some(text.value().trim().to_owned()),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    });
    lines.collect::<Vec<_>>().join(" ")
}

/// What stands in `#[serde(…)]`, as text.
fn serde(attributes: &[Attribute]) -> String {
    let lists = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("serde") => Some(list.tokens.to_string()),
        _ => None,
    });
    lists.collect::<Vec<_>>().join(", ")
}

fn renamed(serde: &str) -> Option<String> {
    let rest = serde.split("rename = \"").nth(1)?;
    Some(rest.split('"').next()?.to_owned())
}

/// A type's own name, and what it is of.
fn parts(kind: &Type) -> (String, Vec<&Type>) {
    let Type::Path(path) = kind else {
        panic!("a configuration has named types only");
    };
    let last = path.path.segments.last().expect("a name");
    let of = match &last.arguments {
        PathArguments::AngleBracketed(of) => of
            .args
            .iter()
            .filter_map(|argument| match argument {
                GenericArgument::Type(kind) => Some(kind),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    };
    (last.ident.to_string(), of)
}

/// How a value is written, and whether it may be left out because of its type.
fn written(kind: &Type, enums: &BTreeMap<String, String>) -> (String, bool) {
    let (name, of) = parts(kind);
    match name.as_str() {
        "Option" => (written(of[0], enums).0, true),
        // With its place in the file.
        "Spanned" => written(of[0], enums),
        "Vec" if parts(of[0]).0.ends_with("Section") => ("sections".to_owned(), false),
        "Vec" => (format!("list of {}s", written(of[0], enums).0), false),
        "BTreeMap" => (format!("table: {}", written(of[1], enums).0), false),
        name if name.ends_with("Section") => ("section".to_owned(), false),
        name => match TYPES.iter().find(|(known, _)| *known == name) {
            Some((_, word)) => ((*word).to_owned(), false),
            None => {
                let words = enums.get(name);
                (words.unwrap_or_else(|| panic!("what is a {name} in TOML?")).clone(), false)
            }
        },
    }
}

/// The words of the enums of a file.
fn enums(file: &str) -> BTreeMap<String, String> {
    let enums = items(file).into_iter().filter_map(|item| match item {
        Item::Enum(item) => Some(item),
        _ => None,
    });
    enums
        .map(|item| {
            let words =
                item.variants.iter().map(|word| format!("`\"{}\"`", word.ident.to_string().to_lowercase()));
            (item.ident.to_string(), words.collect::<Vec<_>>().join(", "))
        })
        .collect()
}

fn section(file: &str, name: &str, head: &str, faults: &mut Vec<String>) -> String {
    let found = items(file).into_iter().find_map(|item| match item {
        Item::Struct(item) if item.ident == name => Some(item),
        _ => None,
    });
    let found = found.unwrap_or_else(|| panic!("{file} has no struct {name}"));
    let mut words = enums(file);
    words.extend(enums("common/src/telemetry.rs"));
    let mut text = format!("### `{head}`\n\n");
    let about = documentation(&found.attrs);
    let about = about.split_once("`: ").map_or("", |(_, about)| about);
    if name != "Limits" && !about.is_empty() {
        let _ = writeln!(text, "{}{}\n", about[..1].to_uppercase(), &about[1..]);
    }
    text.push_str("| key | value | meaning |\n| --- | --- | --- |\n");
    let Fields::Named(fields) = &found.fields else {
        panic!("{name} has named fields");
    };
    for field in &fields.named {
        let serde = serde(&field.attrs);
        let key = renamed(&serde).unwrap_or_else(|| field.ident.as_ref().expect("named").to_string());
        let meaning = documentation(&field.attrs);
        let (kind, optional) = written(&field.ty, &words);
        if meaning.is_empty() {
            faults.push(format!("{file}: {name}.{key} has no doc comment"));
        }
        let may_be_absent = optional || serde.contains("default");
        let says_what_then = ["Default: ", "when it is not set", "False", "section", "True: "];
        let is_section = kind.starts_with("section");
        let of_a_kind = [
            "btrfs, lvm: ",
            "lvm, zfs: ",
            "lvm: ",
            "command: ",
            "webhook: ",
            "mail: ",
            "A run at every",
            "Five fields",
            "Names of",
            "What a step",
            "Variables of",
        ];
        if may_be_absent
            && !is_section
            && !says_what_then.iter().any(|word| meaning.to_lowercase().contains(&word.to_lowercase()))
            && !of_a_kind.iter().any(|word| meaning.starts_with(word))
        {
            faults.push(format!("{file}: {name}.{key}: the doc comment says no Default:"));
        }
        let key = if may_be_absent { format!("`{key}`") } else { format!("**`{key}`**") };
        let _ = writeln!(text, "| {key} | {kind} | {} |", meaning.replace('|', "\\|"));
    }
    text.push('\n');
    text
}

fn reference() -> String {
    let (mut text, mut faults) = (String::new(), Vec::new());
    for (heading, sections) in SECTIONS {
        let _ = writeln!(text, "## {heading}\n");
        for (file, name, head) in sections {
            text.push_str(&section(file, name, head, &mut faults));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    text
}

/// Every key of every section is in the reference, with what it means and what is taken without it.
#[test]
fn the_reference_is_what_the_code_has() {
    let path = repository().join(DOCUMENT);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{DOCUMENT}: {error}"));
    let (before, rest) = text.split_once(BEGIN).expect("the beginning's mark");
    let (written, after) = rest.split_once(END).expect("the end's mark");
    let made = format!("\n\n{}", reference());
    if std::env::var_os("ASSAY_WRITE_DOCS").is_some_and(|value| value == "1") {
        fs::write(&path, format!("{before}{BEGIN}{made}{END}{after}")).expect("write");
        return;
    }
    assert!(
        written == made,
        "{DOCUMENT} is not what the code has; HINT: ASSAY_WRITE_DOCS=1 ./test e2e\n{made}"
    );
}

/// No struct of a configuration is left out.
#[test]
fn every_section_of_the_code_is_in_the_reference() {
    for file in [SOURCE, TARGET, NOTIFY, METRICS, WEB, SNAPSHOT] {
        for item in items(file) {
            let Item::Struct(item) = item else { continue };
            let name = item.ident.to_string();
            let is_there =
                SECTIONS.iter().flat_map(|(_, sections)| *sections).any(|it| (it.0, it.1) == (file, &name));
            assert!(!name.ends_with("Section") || is_there, "{file}: {name} has no row in SECTIONS");
        }
    }
    assert!(Path::new(&repository().join(DOCUMENT)).exists());
}
