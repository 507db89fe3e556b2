//! Metrics for Prometheus, off unless the configuration names an address: plain HTTP, `GET /metrics`.
//!
//! A page is made from the record ([`crate::watch`]) when it is asked for: there are no counters beside it that could say
//! something else. Ages are there as times and as seconds, so that a rule can fire on age whether the agent runs or not.

mod page;
mod serve;

pub use page::{
    CheckQueueFacts, ControlFacts, Facts, Page, RepositoryFacts, RestoreFacts, RunQueueFacts, ScrubFacts,
    StoreFacts,
};
pub use serve::{MetricsError, MetricsSection, MetricsServer};
