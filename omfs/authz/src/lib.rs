//! Who may do what: every permission decision of a node.
//!
//! The functions here do no I/O. A caller gathers the facts (credentials of a process, the name in a
//! certificate, an export's rules), asks one function, and acts on its answer. `docs/threat-model.md`
//! names the attackers that these decisions hold back.

#![forbid(unsafe_code)]

pub mod admin;
pub mod export;
pub mod guest;
pub mod member;
pub mod process;
