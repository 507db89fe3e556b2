//! Who may call what: every call of the contract, by every role, through the real services.

use std::collections::BTreeMap;

use assay_common::{
    pki::{Party, issue},
    rpc_status::fault_from_status,
    tls::{ConnectOptions, Role, TlsFiles, connect},
};
use assay_proto::bounded::BoundedCodec;
use prost::Message as _;
use tonic::{Code, Request, Status, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};

use crate::{ground::agent_url, pair::Pair};

/// Services, the agent that serves them, and the roles that may call.
const SERVICES: [(&str, Role, &[Role]); 4] = [
    ("SourceService", Role::Source, &[Role::Operator]),
    ("ReplicationService", Role::Target, &[Role::Source]),
    ("TargetService", Role::Target, &[Role::Operator]),
    ("RestoreService", Role::Target, &[Role::Restore]),
];

/// Calls that other roles may make than the rest of their service, by `Service/Call`.
const EXCEPTIONS: &[(&str, &[Role])] = &[];

/// The calls of a service, from the contract.
fn calls(service: &str) -> Vec<String> {
    let set = prost_types::FileDescriptorSet::decode(assay_proto::DESCRIPTORS).expect("the build wrote it");
    let services = set.file.iter().flat_map(|file| &file.service);
    let service = services.into_iter().find(|it| it.name() == service).expect("it is in the contract");
    service.method.iter().map(|method| method.name().to_owned()).collect()
}

/// Calls with an empty message; what is said first.
async fn call(channel: Channel, path: String) -> Result<(), Status> {
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::try_from(path).expect("a path");
    let codec = BoundedCodec::<(), ()>::default();
    let request = Request::new(tokio_stream::once(()));
    let mut answers = client.streaming(request, path, codec).await?.into_inner();
    answers.message().await.map(drop)
}

#[test]
fn every_call_is_for_its_roles_only() {
    let pair = Pair::plain(1);
    let day = std::time::Duration::from_secs(24 * 3600);
    let keeper = Party { name: "keeper".to_owned(), hosts: Vec::new() };
    issue(&pair.path("pki"), pair.authority(), Role::Restore, &keeper, day, jiff::Timestamp::now())
        .expect("issue");
    pair.restart_with("target", "source = \"source\"", "source = \"source\"\nrestore = [\"keeper\"]");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let mut table = BTreeMap::new();
    let named: usize = {
        // No service of the contract is left out.
        let set =
            prost_types::FileDescriptorSet::decode(assay_proto::DESCRIPTORS).expect("the build wrote it");
        set.file.iter().filter(|file| file.package() == "assay.v1").map(|file| file.service.len()).sum()
    };
    assert_eq!(named, SERVICES.len(), "a service has no row in SERVICES");
    for (service, agent, service_roles) in SERVICES {
        let url = agent_url(&pair, agent.as_str());
        for role in Role::ALL {
            let name = match role {
                Role::Restore => "restore-keeper".to_owned(),
                role => role.as_str().to_owned(),
            };
            let file = |end: &str| pair.path(&format!("pki/{name}.{end}"));
            let files = TlsFiles { ca: pair.path("pki/ca.crt"), cert: file("crt"), key: file("key") };
            for method in calls(service) {
                let key = format!("{service}/{method}");
                let roles = EXCEPTIONS.iter().find(|(it, _)| *it == key).map_or(service_roles, |(_, it)| it);
                let ended = runtime.block_on(async {
                    let options = ConnectOptions::default();
                    let (channel, _) = connect(&url, agent, &files, &[role], &options).await.expect("let in");
                    call(channel, format!("/assay.v1.{key}")).await
                });
                let refused = ended.err().filter(|status| {
                    status.code() == Code::PermissionDenied
                        && fault_from_status(status).reason == "role-not-allowed"
                });
                let may = refused.is_none();
                assert_eq!(may, roles.contains(&role), "{role} calls {key}: {refused:?}");
                table.entry(key).or_insert_with(Vec::new).push(if may { "may" } else { "-" });
            }
        }
    }
    println!("| call | {} |", Role::ALL.map(|role| role.as_str()).join(" | "));
    println!("| --- | --- | --- | --- | --- |");
    for (call, cells) in &table {
        println!("| {call} | {} |", cells.join(" | "));
    }
    assert!(table.len() >= 20, "{table:?}");
}
