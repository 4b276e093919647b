//! What is offered and what is chosen.

/// One IKE proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IkeProposal {}

/// One ESP proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EspProposal {}
